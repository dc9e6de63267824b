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
    """How a device is opened: `with opened.device() as device`."""

    device: Callable[[], AbstractContextManager[Device]]


def marked(name: str, open_it: Callable[[], Device], *marks: Any) -> Any:
    """A parameter of tests."""
    return pytest.param(Opened(lambda: nullcontext(open_it())), id=name, marks=marks)


def gaudi(mode: Mode) -> Any:
    """The same for the code of the Gaudi device over a stand-in for Gaudi's software.

    PyTorch compiles steps over tensors that it knows only, so in eager mode they are the host's.
    """

    @contextmanager
    def opened() -> Iterator[Device]:
        with installed(mode):
            device = open_device("hpu")
            yield device if mode == "lazy" else HpuDevice(torch.device("cpu"), mode)

    return pytest.param(Opened(opened), id=f"hpu-{mode}-stand-in")


DEVICES = [
    marked("cpu", lambda: CpuDevice(2)),
    marked("reference", ReferenceDevice),
    marked("reference-fp64", lambda: ReferenceDevice(np.float64)),
    marked("cuda-plain-on-host", lambda: CudaDevice(torch.device("cpu"), Operations())),
    marked("cuda-kernels-on-host", lambda: CudaDevice(torch.device("cpu"), CudaOperations())),
    marked("cuda-invariant-on-host", lambda: CudaDevice(torch.device("cpu"), CudaOperations(True), invariant=True)),
    marked("cuda", lambda: open_device("cuda"), pytest.mark.cuda),
    marked("cuda-invariant", lambda: open_device("cuda", invariant=True), pytest.mark.cuda),
    gaudi("lazy"),
    gaudi("eager"),
    marked("hpu", lambda: open_device("hpu"), pytest.mark.hpu),
]
