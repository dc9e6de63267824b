"""Steps over tensors on the device "hpu" that have shapes and no numbers: nothing leaves the card, no shape depends on
data; and a rank's share of a model that no machine here could hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch._subclasses.fake_tensor import FakeTensorMode

from anthesis.checkpoint import open_checkpoint
from anthesis.devices.accelerator.exchange import Exchange
from anthesis.devices.accelerator.inputs import StepInputs
from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.accelerator.operations import Operations
from anthesis.devices.accelerator.sizes import StepSize, needed_blocks, size_of
from anthesis.devices.accelerator.step import Step
from anthesis.devices.hpu.operations import HpuOperations
from anthesis.devices.hpu.sampling import without_sampling
from anthesis.models import trace
from anthesis.parallel.process_groups import TorchCommunicator
from anthesis.program.fuse import fuse
from anthesis.program.ir import BLOCK_TOKENS, Program
from anthesis.program.partition import partition
from anthesis.quantize import WEIGHT_KINDS
from gaudi_software import installed
from programs import BLOOM, LLAMA, config_of, step_inputs

HPU = torch.device("hpu", 0)
CPU = torch.device("cpu")
BLOCKS = 40

STEPS = {
    "decode": [(slot, 70, [3]) for slot in range(4)],
    "prefill": [(0, 0, [3] * 150), (1, 20, [4] * 5), (2, 9, [5])],
}


@pytest.fixture
def shapes() -> Iterator[None]:
    """PyTorch knows the device, and makes tensors without numbers."""
    with installed("lazy"):
        import_module("habana_frameworks.torch.core")
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=HPU)


def traced_step(
    program: Program, rows: list[tuple[int, int, list[int]]], operations: Operations, ranks: Exchange | None = None
) -> Mapping[str, torch.Tensor]:
    """The outputs of a step: what it reads stands on the card, and it runs nothing."""
    weights: dict[str, Any] = {}
    for v in program.of_kind("weight"):
        if len(v.static_shape) == 1:
            weights[v.name] = empty(v.static_shape, torch.float32)
        else:
            dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[v.dtype]
            weights[v.name] = Matrix(WEIGHT_KINDS[v.dtype], v.static_shape, empty(v.static_shape, dtype))
    caches = {c.name: empty((2 * BLOCK_TOKENS * BLOCKS, c.static_width), torch.bfloat16)
              for c in program.of_kind("cache")}  # fmt: skip
    step = Step(program, weights, caches, operations, ranks, HPU)
    given = step_inputs(rows)
    size: StepSize = size_of(given, needed_blocks)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        shaped = StepInputs(program, size, step.frequencies, None, CPU, pinned=False, separate=True).tensors
    inputs = {name: empty(tuple(tensor.shape), tensor.dtype) for name, tensor in shaped.items()}
    return step.run(inputs, size)


def program_of(raw: dict[str, Any], finish: Any) -> Program:
    traced = trace(config_of(raw), finish, lambda n, s: "fp32" if len(s) == 1 else "bf16", "bf16")
    return without_sampling(fuse(traced))[0]


@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("finish", ["cache", "logits", "argmax", "sample"])
@pytest.mark.parametrize("raw", [BLOOM, LLAMA], ids=["bloom", "llama"])
def test_a_step_stays_on_the_card(shapes: None, raw: dict[str, Any], finish: str, rows: Any) -> None:
    outputs = traced_step(program_of(raw, finish), rows, HpuOperations())
    assert all(tensor.device == HPU for tensor in outputs.values())
    count = 1 << (sum(len(tokens) for _, _, tokens in rows) - 1).bit_length()
    expected = {
        "cache": {},
        "argmax": {"token": ((count,), torch.int32)},
        "logits": {"logits": ((count, raw["vocab_size"]), torch.float32)},
        "sample": {"logits": ((count, raw["vocab_size"]), torch.float32)},
    }[finish]
    assert {name: (tuple(t.shape), t.dtype) for name, t in outputs.items()} == expected


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: x * x[0, 0].item(),
        lambda x: x * x.nonzero().shape[0],
        lambda x: x + x[x > 0].sum(),
        lambda x: x + torch.empty(x.shape, device="cpu"),
        lambda x: x if x.sum() > 0 else -x,
    ],
    ids=["item", "nonzero", "mask", "host", "branch"],
)
def test_an_operation_that_does_not_is_found(shapes: None, bad: Any) -> None:
    class Broken(HpuOperations):
        def norm(self, x, norm):
            return super().norm(bad(x), norm)

    with pytest.raises((RuntimeError, torch._subclasses.fake_tensor.UnsupportedFakeTensorException)):
        traced_step(program_of(BLOOM, "logits"), STEPS["decode"], Broken())


@contextmanager
def rank_of(rank: int, size: int) -> Iterator[Exchange]:
    """What one rank of several exchanges by, the others being nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield Exchange(TorchCommunicator(distributed.group.WORLD, rank, size))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("finish", ["argmax", "sample"])
@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS)
def test_a_share_of_176_billion_weights(shapes: None, rows: Any, finish: Any) -> None:
    """Rank 3 of 8: the whole step, exchanges included, in shapes."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily(), open_checkpoint("random:bloomz-176b") as checkpoint:
        config = checkpoint.config
    whole = trace(config, finish, lambda n, s: "fp32" if len(s) == 1 else "bf16", "bf16")
    program, _ = without_sampling(fuse(partition(whole, 3, 8)))
    held = sum(value.nbytes() for value in program.of_kind("weight"))
    assert 43e9 < held < 46e9
    with rank_of(3, 8) as ranks:
        outputs = traced_step(program, rows, HpuOperations(), ranks)
    count = 1 << (sum(len(tokens) for _, _, tokens in rows) - 1).bit_length()
    (output,) = outputs.values()
    assert tuple(output.shape) == ((count,) if finish == "argmax" else (count, 250_880))
    assert output.device == HPU
