"""The devices that have to keep the contract, and how each is opened here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from anthesis.devices import open_device
from anthesis.devices.accelerator.operations import Operations
from anthesis.devices.cpu import CpuDevice
from anthesis.devices.cuda import CudaDevice, tiles
from anthesis.devices.cuda.operations import CudaOperations
from anthesis.devices.device import Device
from anthesis.devices.hpu import HpuDevice
from anthesis.devices.reference import ReferenceDevice
from anthesis.parallel.gaudi import Mode
from gaudi_software import installed

if os.environ.get("TRITON_INTERPRET") == "1":  # which takes milliseconds for each program: few and large ones
    tiles.PROGRAMS = 16


@dataclass(frozen=True)
class Opened:
    """How a device is opened: `with opened.device() as device`.

    Attributes:
        device: opens it.
        quick: of the tests of the contract those that `make test` runs, by their names without the device's; None: all.
            What interprets or compiles takes seconds for each; `make test-slow` runs the others.
    """

    device: Callable[[], AbstractContextManager[Device]]
    quick: tuple[str, ...] | None = None


QUICK = (
    "test_it_tells_about_itself[]",
    "test_logits_of_every_family[bloom-fused]",
    "test_every_kind_of_weights[bf16-bf16]",
    "test_programs_share_weights_and_a_cache[]",
    "test_tokens_are_drawn_as_the_definition_says[all-5]",
    "test_a_logit_that_is_not_finite_gives_no_token[]",
    "test_what_a_sequence_leaves_in_its_blocks_reaches_no_other[]",
)
QUICK_GAUDI = (*QUICK, "test_copied_blocks_are_read_as_their_sources_are[]")
QUICK_INVARIANT = ("test_every_kind_of_weights[bf16-bf16]",)


def marked(name: str, open_it: Callable[[], Device], *marks: Any, quick: tuple[str, ...] | None = None) -> Any:
    """A parameter of tests."""
    return pytest.param(Opened(lambda: nullcontext(open_it()), quick), id=name, marks=marks)


def is_quick(item: pytest.Item) -> bool:
    """Whether `make test` runs this test."""
    opened = getattr(getattr(item, "callspec", None), "params", {}).get("device")
    if not isinstance(opened, Opened) or opened.quick is None:
        return True
    name, _, parameters = item.name.partition("[")
    device = next(param.id for param in DEVICES if param.values[0] is opened)
    return f"{name}[{parameters.removesuffix(']').removeprefix(device).removeprefix('-')}]" in opened.quick


def gaudi(mode: Mode) -> Any:
    """The same for the code of the Gaudi device over a stand-in for Gaudi's software.

    PyTorch compiles steps over tensors that it knows only, so in eager mode they are the host's.
    """

    @contextmanager
    def opened() -> Iterator[Device]:
        with installed(mode):
            device = open_device("hpu")
            yield device if mode == "lazy" else HpuDevice(torch.device("cpu"), mode)

    return pytest.param(Opened(opened, QUICK_GAUDI), id=f"hpu-{mode}-stand-in")


DEVICES = [
    marked("cpu", lambda: CpuDevice(2)),
    marked("reference", ReferenceDevice),
    marked("reference-fp64", lambda: ReferenceDevice(np.float64)),
    marked("cuda-plain-on-host", lambda: CudaDevice(torch.device("cpu"), Operations())),
    marked("cuda-kernels-on-host", lambda: CudaDevice(torch.device("cpu"), CudaOperations()), quick=QUICK),
    marked(
        "cuda-invariant-on-host",
        lambda: CudaDevice(torch.device("cpu"), CudaOperations(True), invariant=True),
        quick=QUICK_INVARIANT,
    ),
    marked("cuda", lambda: open_device("cuda"), pytest.mark.cuda),
    marked("cuda-invariant", lambda: open_device("cuda", invariant=True), pytest.mark.cuda),
    gaudi("lazy"),
    gaudi("eager"),
    marked("hpu", lambda: open_device("hpu"), pytest.mark.hpu),
]
