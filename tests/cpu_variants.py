"""The sets of kernels of the CPU device, for tests that run all of them; and programs that run on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anthesis.devices.cpu import CpuDevice
from anthesis.devices.cpu.device import CpuExecutable
from anthesis.native import extension
from anthesis.program.ir import Program
from anthesis.quantize import WEIGHT_KINDS, quantize

KERNELS: tuple[str, ...] = tuple(extension().kernels())
"""Those that this processor can run; on one without AVX-512 those for it stay untested here."""

VARIABLE = "ANTHESIS_CPU_KERNELS"


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chooses each set in turn."""
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


def on_cpu(
    program: Program,
    weights: Mapping[str, NDArray[Any]],
    *,
    blocks: int,
    threads: int = 1,
    device: CpuDevice | None = None,
) -> CpuExecutable:
    """The program over these weights, each rounded to the kind that the program says."""
    device, uses = device or CpuDevice(threads), program.uses()
    packed = {
        value.name: device.pack(
            quantize(weights[value.name].astype(np.float32), WEIGHT_KINDS[value.dtype]), uses[value.name]
        )
        for value in program.of_kind("weight")
    }
    return device.compile(program, packed, device.allocate(program, blocks))
