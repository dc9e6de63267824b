"""The floor of steps that ran, against the program's cost of each; and what a data-set session makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from anthesis import LLM
from anthesis.dataset import Request, Summary, complete, merge, open_dataset, read_summary
from anthesis.dataset.worker import Worker
from anthesis.devices.device import Cache, Executable
from anthesis.errors import RequestError
from anthesis.models import family_of_config, trace
from anthesis.parallel.layout import Layout
from anthesis.plan.counted import StepCosts, StepCounter
from anthesis.plan.floor import floor
from anthesis.plan.hardware import Hardware
from anthesis.program.attend import Attend
from anthesis.program.cost import cost
from anthesis.program.fuse import fuse
from anthesis.program.ir import BLOCK_TOKENS, Arrays, Program, Step
from anthesis.program.partition import partition
from anthesis.program.stages import choose_stages, stage
from command_line import TINY_BLOOM
from completing import WORDS, write_rows
from text_model import CONFIG, text_model

LLAMA = {**CONFIG, "vocab_size": 331}
MODELS: dict[str, dict[str, Any]] = {
    "bloom": {**TINY_BLOOM, "vocab_size": 331},
    "llama": LLAMA,
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 24},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 331, "n_positions": 96},
}
RATES = {"read_bytes_per_s": 1e9, "flops_per_s": 4e9}
"""At which steps of many rows are bound by computing and those of few by the memory."""


class Recorder:
    """An executable that notes what it was given."""

    def __init__(self, executable: Executable, program: Program, steps: list[tuple[Program, dict[str, Any]]]) -> None:
        self._executable, self._program, self._steps = executable, program, steps

    def run(self, inputs: Arrays) -> dict[str, Any]:
        self._steps.append((self._program, {name: array.copy() for name, array in inputs.items()}))
        return self._executable.run(inputs)


def record(llm: LLM) -> list[tuple[Program, dict[str, Any]]]:
    """What the device is given from now on, step by step."""
    steps: list[tuple[Program, dict[str, Any]]] = []
    compile: Callable[..., Executable] = llm.loaded.compile

    def recording(finish: Any, top_logprobs: int | None, cache: Cache) -> Any:
        return Recorder(compile(finish, top_logprobs, cache), llm.loaded.program(finish, top_logprobs), steps)

    llm._engine._compile = recording
    llm._engine._executables.clear()
    return steps


def needed(program: Program, inputs: dict[str, Any]) -> tuple[int, int]:
    """(bytes of weights and cache, flops) of a step, operation by operation and row by row.

    What a sequence has in the same blocks as one before it counts as read.
    """
    step = Step(rows=len(inputs["tokens"]), logit_rows=len(inputs.get("logit_rows", ())))
    nbytes = flops = 0
    for op in program.ops:
        if not isinstance(op, Attend):
            of_rows = op.cost(program.values, step)
            nbytes, flops = nbytes + of_rows.weight_bytes + of_rows.cache_bytes, flops + of_rows.flops
            continue
        held: set[int] = set()
        for row, count, first in inputs["segments"][inputs["segments"][:, 1] > 0].tolist():
            nbytes += op.cost(program.values, Step(rows=count, context=first + count)).cache_bytes
            blocks = inputs["block_table"][inputs["slots"][row]].tolist()
            attended = range(max(0, first + count - (op.window or first + count)), first)
            again = sum(blocks[position // BLOCK_TOKENS] in held for position in attended)
            nbytes -= again * op.cost(program.values, Step()).cache_bytes // 2  # of which half is written
            held.update(blocks[: -(-first // BLOCK_TOKENS)])
            flops += sum(op.cost(program.values, Step(context=first + row + 1)).flops for row in range(count))
    return nbytes, flops


def table_of(inputs: dict[str, Any]) -> list[int]:
    """The blocks of all sequences of a step."""
    slots = np.unique(inputs["slots"])
    return [block for block in inputs["block_table"][slots].ravel().tolist() if block]


def counter_of(llm: LLM, **rates: float | None) -> StepCounter:
    return StepCounter(StepCosts(llm.loaded.programs, llm.layout, shares_memory=True), **{**RATES, **rates})


@pytest.mark.parametrize("family", MODELS)
def test_the_floor_is_the_sum_of_the_steps_costs(family: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MODELS[family]))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 300, length).tolist() for length in (1, 3, 70, 17, 40)]
    prompts.append([*prompts[2][:65], 5])  # which has a block of the one that is there
    with LLM(f"random:{path}", device="cpu", weights="int8", prefill_chunk=32) as llm:
        steps, counter = record(llm), counter_of(llm)
        llm.watch(counter)
        llm.generate(prompts, max_new_tokens=9, ignore_eos=True)
        llm.generate(prompts, max_new_tokens=5, ignore_eos=True, temperature=1.0, seed=0)
        llm.generate(prompts[2][::-1], max_new_tokens=1)  # alone, so its first chunks choose no token
        llm.logits(prompts[2])
        costs = [needed(program, inputs) for program, inputs in steps]
        llm.watch(None)
        llm.generate(prompts[0], max_new_tokens=2)
    memory_bound = [(b, f) for b, f in costs if b / RATES["read_bytes_per_s"] >= f / RATES["flops_per_s"]]
    assert 0 < len(memory_bound) < len(costs), "steps of both kinds are wanted"
    assert len({program.ops[-1].kind for program, _ in steps}) == 4, "all ways in which programs finish are wanted"
    shared = [len(set(blocks)) < len(blocks) for blocks in (table_of(inputs) for _, inputs in steps)]
    assert any(shared), "blocks that are shared are wanted"
    assert counter.steps == len(costs)
    assert counter.memory_bound_bytes == sum(b for b, _ in memory_bound)
    assert counter.compute_bound_flops == sum(f for b, f in costs if (b, f) not in memory_bound)
    longest = sum(max(b / RATES["read_bytes_per_s"], f / RATES["flops_per_s"]) for b, f in costs)
    assert counter.floor_s(**RATES) == pytest.approx(longest, rel=1e-12)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("shared", [True, False])
def test_of_equal_sequences_it_is_the_plans_floor(family: str, tp: int, pp: int, shared: bool) -> None:
    """Where all sequences are equally long; the plan says it of the programs of all ranks."""
    raw = {**MODELS[family], "num_hidden_layers": 2, "num_key_value_heads": 2}
    whole = trace(family_of_config(raw).read_config(raw))
    layers = choose_stages(whole, pp)
    stages = [[fuse(partition(stage(whole, layers[i]), share, tp)) for share in range(tp)] for i in range(pp)]
    costs = StepCosts(
        lambda finish: [program for ranks in stages for program in ranks], Layout(tp, pp), shares_memory=shared
    )
    counter = StepCounter(costs, read_bytes_per_s=1e9, flops_per_s=None)
    counter("argmax", [(49, 1)] * 3, 3)
    hardware = Hardware(
        name="a", description="", figures="", memory_bytes=1, memory_is_shared=shared, read_bytes_per_s=1e9
    )
    step = Step(rows=3, logit_rows=3, context=50, sequences=3)
    planned = floor([[(program, 1) for program in ranks] for ranks in stages], step, hardware, ["bf16"])
    assert counter.memory_bound_bytes == planned.read_bytes
    assert counter.floor_s(1e9, None) == pytest.approx(planned.memory_s, rel=1e-12)
    # stages need not wait for each other in a step that gives no token: the largest of them is the bound
    (nbytes, flops), *others = costs.of("cache", [(49, 1)] * 3, 0)
    single = [costs.of("argmax", [(49, 1)] * 3, 0)[i] for i in range(pp)]
    assert (nbytes, flops, others) == (max(b for b, _ in single), max(f for _, f in single), [])
    if tp * pp == 1:
        exact = cost(stages[0][0], step)
        assert counter.memory_bound_bytes == exact.weight_bytes + exact.cache_bytes


def test_a_rate_that_is_unknown_leaves_no_floor_or_computing_out() -> None:
    def counter(**rates: float | None) -> StepCounter:
        program = fuse(trace(family_of_config(LLAMA).read_config(LLAMA)))
        costs = StepCosts(lambda finish: [program], Layout(), shares_memory=True)
        found = StepCounter(costs, **{**RATES, **rates})
        found("argmax", [(0, 64)], 1)
        return found

    assert counter().floor_s(None, 1e9) is None
    assert counter().compute_bound_flops > 0
    assert counter(flops_per_s=None).compute_bound_flops == 0
    assert counter(flops_per_s=None).floor_s(1e9, None) == counter(flops_per_s=None).memory_bound_bytes / 1e9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model(tmp_path_factory.mktemp("model"))


def test_a_session_tells_its_share(model: Path, tmp_path: Path) -> None:
    data, output = write_rows(tmp_path / "rows.jsonl", 20), tmp_path / "out.jsonl"
    recorded: list[list[tuple[Program, dict[str, Any]]]] = []

    def load(llm: LLM) -> None:
        llm.load()
        recorded.append(record(llm))

    def run(limit: int) -> Summary:
        request = Request(prompt_tokens=8, max_new_tokens=6, limit=limit)
        dataset = open_dataset(name=str(data), column="content")
        return complete(request, dataset, output, lambda: LLM(str(model), device="cpu", load=False), load=load).summary

    run(5)
    summary = run(20)
    assert summary == read_summary(tmp_path / "out.jsonl.summary.json")
    assert len(summary.sessions) == 2
    for session, steps in zip(summary.sessions, recorded, strict=True):
        costs = [needed(program, inputs) for program, inputs in steps]
        assert session.steps == len(costs) >= 6
        bandwidth = mean(session.read_bytes_per_s)
        peak = mean(session.flops_per_s) if session.flops_per_s else float("inf")
        assert 1e8 < bandwidth < 1e13
        assert session.floor_s == pytest.approx(sum(max(b / bandwidth, f / peak) for b, f in costs), rel=1e-9)
        assert session.share_of_limit == pytest.approx(session.floor_s / session.run_s)
        assert 0 < session.share_of_limit < 1.1
    shares = [session.share_of_limit for session in summary.sessions if session.share_of_limit]
    assert summary.share_of_limit is not None
    assert min(shares) <= summary.share_of_limit <= max(shares)


def test_a_session_tells_what_rows_had_in_common(model: Path, tmp_path: Path) -> None:
    """And the limit is that of the rows that were computed, and of blocks that are shared read once."""
    instruction = "print the quick brown fox " * 13  # more than a block of tokens
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"content": f"{instruction}{word}"}) + "\n" for word in WORDS))
    dataset = open_dataset(name=str(data), column="content")
    request = Request(prompt_tokens=80, max_new_tokens=4)
    recorded: list[list[tuple[Program, dict[str, Any]]]] = []

    def load(llm: LLM) -> None:
        llm.load()
        recorded.append(record(llm))

    def run(reuse: bool) -> Summary:
        opened = lambda: LLM(str(model), device="cpu", load=False, reuse_prefixes=reuse)  # noqa: E731
        return complete(request, dataset, tmp_path / f"{reuse}.jsonl", opened, load=load).summary

    (without,), (session,) = run(False).sessions, run(True).sessions
    assert (tmp_path / "False.jsonl").read_bytes() == (tmp_path / "True.jsonl").read_bytes()
    assert (without.reused_tokens, session.reused_tokens) == (0, (len(WORDS) - 1) * BLOCK_TOKENS)
    computed = [sum(len(inputs["tokens"]) for _, inputs in steps) for steps in recorded]
    assert computed[0] - computed[1] == session.reused_tokens == session.counts.prompt_tokens - session.prefilled_tokens
    costs = [needed(program, inputs) for program, inputs in recorded[1]]
    bandwidth = mean(session.read_bytes_per_s)
    peak = mean(session.flops_per_s) if session.flops_per_s else float("inf")
    assert session.floor_s == pytest.approx(sum(max(b / bandwidth, f / peak) for b, f in costs), rel=1e-9)


def test_floors_of_shards_add_up(model: Path, tmp_path: Path) -> None:
    data, output = write_rows(tmp_path / "rows.jsonl", 12), tmp_path / "out.jsonl"
    request = Request(prompt_tokens=8, max_new_tokens=4)
    dataset = open_dataset(name=str(data), column="content")
    with Worker(request, dataset, output, lambda: LLM(str(model), device="cpu", load=False), num_shards=3) as worker:
        work = worker.complete_all()
    merged = merge(output).summary
    # all rows of a shard begin together: a step with the prompts gives the first token of four
    assert [session.steps for session in merged.sessions] == [4, 4, 4]
    floors = [session.floor_s for session in merged.sessions]
    assert all(floors)
    assert work.floor_s == pytest.approx(sum(floor or 0 for floor in floors))
    assert merged.share_of_limit == pytest.approx(sum(floor or 0 for floor in floors) / work.run_s)
    # measured once, before the weights were loaded: none of them took long
    assert len({session.read_bytes_per_s for session in merged.sessions}) == 1


def test_long_sessions_are_measured_at_both_ends(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anthesis.dataset.limit.MEASURE_AGAIN_S", 0.0)
    data, output = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out.jsonl"
    dataset = open_dataset(name=str(data), column="content")
    opened = lambda: LLM(str(model), device="cpu", load=False)  # noqa: E731
    with Worker(Request(max_new_tokens=2), dataset, output, opened, num_shards=2) as worker:
        worker.complete_all()
    first, second = merge(output).summary.sessions
    for session in (first, second):
        assert len(session.read_bytes_per_s) == 2
        floor_s = session.memory_bound_bytes / mean(session.read_bytes_per_s)
        if session.compute_bound_flops:
            floor_s += session.compute_bound_flops / mean(session.flops_per_s)
        assert session.floor_s == pytest.approx(floor_s, rel=1e-12)
    assert second.read_bytes_per_s[0] == first.read_bytes_per_s[1]


def test_summaries_from_before_are_read(model: Path, tmp_path: Path) -> None:
    data, output = write_rows(tmp_path / "rows.jsonl", 3), tmp_path / "out.jsonl"

    def run(limit: int) -> Summary:
        dataset = open_dataset(name=str(data), column="content")
        request = Request(prompt_tokens=4, max_new_tokens=2, limit=limit)
        return complete(request, dataset, output, lambda: LLM(str(model), device="cpu", load=False)).summary

    run(2)
    path = tmp_path / "out.jsonl.summary.json"
    document = json.loads(path.read_text())
    new = ("steps", "memory_bound_bytes", "compute_bound_flops", "read_bytes_per_s", "flops_per_s", "floor_s")
    for name in (*new, "share_of_limit"):
        del document["sessions"][0][name]
    path.write_text(json.dumps(document))
    assert read_summary(path).share_of_limit is None
    summary = run(3)
    assert [session.share_of_limit is None for session in summary.sessions] == [True, False]
    assert summary.share_of_limit == summary.sessions[1].share_of_limit
    with pytest.raises(RequestError, match=r"sessions\[0\].*counts"):
        Summary.from_document({**document, "sessions": [{**document["sessions"][0], "counts": 3}]})
