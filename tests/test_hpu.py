"""The Gaudi device over a stand-in for its software: what is captured and how often, and what a capture can't hold."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anthesis import LLM
from anthesis.bench import Request, measure
from anthesis.bench.sweep import points_of
from anthesis.devices import open_device
from anthesis.devices.accelerator.sizes import needed_blocks, size_of
from anthesis.devices.hpu import HpuDevice
from anthesis.devices.hpu.operations import HpuOperations
from anthesis.models import trace
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program
from anthesis.program.reference import execute
from anthesis.quantize import WEIGHT_KINDS, quantize
from decoding_ways import decoded, reused
from gaudi_software import installed
from programs import BLOOM, LLAMA, caches, config_of, random_weights, step_inputs
from text_model import text_model

Array = np.ndarray


@pytest.fixture(params=["lazy", "eager"])
def device(request: pytest.FixtureRequest) -> Iterator[HpuDevice]:
    """In each mode; PyTorch compiles steps over tensors that it knows only, in eager mode they are the host's."""
    with installed(request.param):
        opened = open_device("hpu")
        yield opened if request.param == "lazy" else HpuDevice(torch.device("cpu"), "eager")


@pytest.fixture
def lazy() -> Iterator[HpuDevice]:
    with installed("lazy"):
        yield open_device("hpu")


def program_of(raw: dict[str, Any], finish: Any = "logits", kind: str = "fp32") -> Program:
    return fuse(trace(config_of(raw), finish, lambda n, s: "fp32" if len(s) == 1 else kind, "fp32"))


def compiled(device: HpuDevice, program: Program, weights: dict[str, Array], blocks: int = 9) -> Any:
    uses = program.uses()
    packed = {
        v.name: device.pack(quantize(weights[v.name], WEIGHT_KINDS[v.dtype]), uses[v.name])
        for v in program.of_kind("weight")
    }
    return device.compile(program, packed, device.allocate(program, blocks))


def decode(position: int) -> dict[str, Array]:
    return step_inputs([(0, position, [3 + position % 7])], blocks_each=4)


# --- graphs ----------------------------------------------------------------------------------------------------------


def test_each_size_is_captured_once_and_none_in_a_second_pass(device: HpuDevice) -> None:
    program = program_of(BLOOM)
    executable = compiled(device, program, random_weights(program, np.float32))
    steps = [
        step_inputs([(0, 0, list(range(5)))]),  # a prompt
        *(decode(position) for position in range(5, 12)),
        *(decode(position) for position in (63, 64, 65, 127, 128, 200)),  # one block, two, four
        step_inputs([(0, 5, [1]), (1, 0, [2])]),
        step_inputs([(0, 0, list(range(20))), (1, 0, [2])]),
    ]
    sizes = {size_of(step, needed_blocks) for step in steps}
    assert len(sizes) < len(steps)
    first = [executable.run(step)["logits"] for step in steps]
    before = device.counters()
    assert before.captures == before.compilations == len(sizes)
    assert before.capture_s > 0
    assert before.memory_bytes > 0
    second = [executable.run(step)["logits"] for step in steps]
    after = device.counters()
    assert (after.captures, after.compilations, after.capture_s) == (len(sizes), len(sizes), before.capture_s)
    # a step on its own cache gives the same again; later ones see what the first pass has left behind them
    assert np.array_equal(first[0], second[0])


def test_a_replay_runs_the_whole_step_and_a_capture_gives_nothing(lazy: HpuDevice) -> None:
    """The stand-in spoils what a capture computed: what is returned comes from a replay."""
    program = program_of(LLAMA)
    weights = random_weights(program, np.float32)
    executable = compiled(lazy, program, weights)
    arrays = weights | caches(program, 9, np.float32)
    for position in range(4):
        true = execute(program, arrays | decode(position))["logits"]
        assert np.abs(executable.run(decode(position))["logits"] - true).max() < 1e-3
    assert lazy.counters().captures == 1


@pytest.mark.parametrize(("warmup", "invalid"), [(3, False), (0, True)])
def test_bench_tells_captures_from_timed_runs(lazy: HpuDevice, tmp_path: Path, warmup: int, invalid: bool) -> None:
    """Warmed up, no timed run captures or compiles; without warming up the first does, and the row says so."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(BLOOM))
    request = Request(prompt_tokens=(5,), max_new_tokens=4, warmup=warmup, runs=2, min_s=0, device="hpu")
    with LLM(f"random:{config}", device="hpu") as llm:
        found = measure(llm, request, points_of(request)[0])
    assert found.counted is not None
    assert (found.counted.captures > 0) is not invalid
    assert [reason.partition(" in ")[0] for reason in found.invalid] == (
        ["2 graph captures", "2 compilations"] if invalid else []
    )


def test_sampling_has_no_sizes_of_its_own(lazy: HpuDevice) -> None:
    """Whatever is drawn and filtered on the host, the card runs the same step."""
    program = program_of(BLOOM, "sample")
    executable = compiled(lazy, program, random_weights(program, np.float32))
    for temperature, top_k, penalty in ((0, 0, 1), (1, 0, 1), (1, 5, 1), (1, 5, 1.5)):
        given = {"temperature": temperature, "top_p": 1, "min_p": 0, "repetition_penalty": penalty}
        sampling = {name: np.full(1, value, np.float32) for name, value in given.items()}
        sampling |= {"top_k": np.full(1, top_k, np.int32), "seed": np.zeros(1, np.uint64)}
        sampling["seen"] = np.zeros((1, 13), np.uint8)
        executable.run(decode(0) | sampling)
    assert lazy.counters().captures == 1


# --- what a capture can't hold ---------------------------------------------------------------------------------------


class PositionAsValue(HpuOperations):
    """Attends from a position that Python holds."""

    position = 0

    def attend(self, attention, q, k, v, cache, inputs, size):
        there = torch.full((size.num_tiles,), self.position, dtype=torch.int32, device=q.device)
        return super().attend(attention, q, k, v, cache, {**inputs, "tile_position": there}, size)


def test_a_position_that_is_a_python_value_gives_wrong_logits(lazy: HpuDevice) -> None:
    """So the comparison with the definition would show it: a graph repeats what Python said when it was captured."""
    program = program_of(BLOOM)
    weights = random_weights(program, np.float32)
    lazy._operations = operations = PositionAsValue()
    executable = compiled(lazy, program, weights)
    arrays = weights | caches(program, 9, np.float32)
    differences = []
    for position in range(3):
        operations.position = position
        true = execute(program, arrays | decode(position))["logits"]
        differences.append(np.abs(executable.run(decode(position))["logits"] - true).max())
    assert differences[0] < 1e-3
    assert min(differences[1:]) > 1e-2


def waits(x: torch.Tensor) -> torch.Tensor:
    return x * float(x[0, 0])


def decides(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if (x > 0).any() else x


def selects(x: torch.Tensor) -> torch.Tensor:
    return x * (x > 0).nonzero().shape[0]


def masks(x: torch.Tensor) -> torch.Tensor:
    return x + x[x > 0].sum()


def writes_through_a_view(x: torch.Tensor) -> torch.Tensor:
    x = x + 0
    x[:, :1].zero_()
    return x


def asks_the_host(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().to(x.device)


def brings_from_the_host(x: torch.Tensor) -> torch.Tensor:
    return x + torch.ones(1, x.shape[1]).to(x.device)


def mixes(x: torch.Tensor) -> torch.Tensor:
    return x + torch.ones(x.shape)


def widens(x: torch.Tensor) -> torch.Tensor:
    return x.double().float()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (waits, "waits for a value"),
        (decides, "waits for a value"),
        (selects, "depends on the data"),
        (masks, "depends on the data"),
        (writes_through_a_view, "in place through a view"),
        (asks_the_host, "copies from or to the host"),
        (brings_from_the_host, "copies from or to the host"),
        (mixes, "tensors of the card and of the host"),
        (widens, "no float64"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_stand_in_finds_what_gaudi_has_not(lazy: HpuDevice, bad: Any, message: str) -> None:
    class Broken(HpuOperations):
        def norm(self, x, norm):
            return super().norm(bad(x), norm)

    program = program_of(BLOOM)
    lazy._operations = Broken()
    executable = compiled(lazy, program, random_weights(program, np.float32))
    with pytest.raises(RuntimeError, match=message):
        executable.run(decode(0))


def test_a_compiled_step_is_one_graph() -> None:
    """Where a value is waited for, PyTorch would cut it; that is an error instead."""

    class Broken(HpuOperations):
        def norm(self, x, norm):
            return super().norm(decides(x), norm)

    with installed("eager"):
        open_device("hpu")
        device = HpuDevice(torch.device("cpu"), "eager")
        program = program_of(BLOOM)
        device._operations = Broken()
        executable = compiled(device, program, random_weights(program, np.float32))
        with pytest.raises(torch._dynamo.exc.Unsupported):
            executable.run(decode(0))


def test_matrices_that_are_joined_are_not_held_twice_for_long(lazy: HpuDevice) -> None:
    """In lazy mode the parts live until the joining is done, and that would be with the first step."""
    card = importlib.import_module("gaudi_card").card
    program = program_of(LLAMA)
    before = card.mark_steps
    compiled(lazy, program, random_weights(program, np.float32))
    assert card.mark_steps - before >= 2 * program.config.num_layers, "for q/k/v and gate/up of each layer"


def test_copied_blocks_are_there_when_a_step_is_replayed(lazy: HpuDevice) -> None:
    """In lazy mode what is gathered is run when somebody asks for its result, and a replay asks for nothing."""
    card = importlib.import_module("gaudi_card").card
    cache = lazy.allocate(program_of(LLAMA), 9)
    before = card.mark_steps
    lazy.copy_blocks(cache, [1, 2, 2], [3, 4, 5])
    assert card.mark_steps > before


# --- operations ------------------------------------------------------------------------------------------------------


def test_logits_are_not_rounded_to_bf16(lazy: HpuDevice) -> None:
    """The layers' results are, by the library; logits that lie close together would become equal."""
    program = program_of(BLOOM, kind="bf16")
    found = compiled(lazy, program, random_weights(program, np.float32)).run(decode(0))["logits"]
    assert (torch.from_numpy(found).bfloat16().float().numpy() != found).mean() > 0.9


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.9, "seed": 3}, {"temperature": 1.2, "top_p": 0.8, "seed": 5}], ids=str
)
def test_texts_are_those_of_the_cpu_device(tmp_path: Path, sampling: dict[str, Any]) -> None:
    directory = text_model(tmp_path / "model", num_hidden_layers=2)
    prompts = ["the quick brown fox", "a", [5, 6, 7]]
    with LLM(str(directory), device="cpu", cache="fp32") as llm:
        expected = [r.token_ids for r in llm.generate(prompts, max_new_tokens=20, ignore_eos=True, **sampling)]
    with installed("lazy"), LLM(str(directory), device="hpu", cache="fp32", cache_memory=2**26) as llm:
        found = [r.token_ids for r in llm.generate(prompts, max_new_tokens=20, ignore_eos=True, **sampling)]
        captures = importlib.import_module("gaudi_card").card.compilations
        again = [r.token_ids for r in llm.generate(prompts, max_new_tokens=20, ignore_eos=True, **sampling)]
        assert importlib.import_module("gaudi_card").card.compilations == captures, "all sizes were captured before"
    assert found == expected == again


def test_every_way_of_decoding_gives_what_the_cpu_device_gives(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    with LLM(f"random:{path}", device="cpu", weights="fp32", reuse_prefixes=False) as llm:
        expected = decoded(llm, 10)
    options = {"weights": "fp32", "cache_memory": 2**26}
    with installed("lazy"), LLM(f"random:{path}", device="hpu", speculate="lookup", **options) as llm:
        assert decoded(llm, 10) == expected
        assert reused(llm) > 100
