"""The sets of kernels of the CPU device, for tests that run all of them."""

from __future__ import annotations

import pytest

from anthesis.native import extension

KERNELS: tuple[str, ...] = tuple(extension().kernels())
"""Those that this processor can run; on one without AVX-512 those for it stay untested here."""

VARIABLE = "ANTHESIS_CPU_KERNELS"


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chooses each set in turn."""
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)
