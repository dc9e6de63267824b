"""The devices that have to keep the contract, and how each is opened here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from anthesis.devices import open_device
from anthesis.devices.accelerator.operations import Operations
from anthesis.devices.cpu import CpuDevice
from anthesis.devices.cuda import CudaDevice
from anthesis.devices.device import Device
from anthesis.devices.reference import ReferenceDevice


@dataclass(frozen=True)
class Opened:
    """How a device is opened."""

    open: Callable[[], Device]


def marked(name: str, open_it: Callable[[], Device], *marks: Any) -> Any:
    """A parameter of tests."""
    return pytest.param(Opened(open_it), id=name, marks=marks)


DEVICES = [
    marked("cpu", lambda: CpuDevice(2)),
    marked("reference", ReferenceDevice),
    marked("reference-fp64", lambda: ReferenceDevice(np.float64)),
    marked("cuda-plain-on-host", lambda: CudaDevice(torch.device("cpu"), Operations())),
    marked("cuda", lambda: open_device("cuda"), pytest.mark.cuda),
    marked("cuda-invariant", lambda: open_device("cuda", invariant=True), pytest.mark.cuda),
    marked("hpu", lambda: open_device("hpu"), pytest.mark.hpu),
]
