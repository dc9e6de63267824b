"""The stand-in for Gaudi's software, put where Python finds it for as long as a test lasts."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed

from anthesis.parallel import gaudi

STAND_IN = Path(__file__).parent / "gaudi" / "stand_in"


@contextmanager
def installed(mode: str | None = None, **variables: str) -> Iterator[None]:
    """As in a process of its own: it was not imported yet, and afterwards it was never there.

    Args:
        mode: "lazy" or "eager", as a user chooses it; None: not said.
        variables: of the environment.
    """
    before = dict(os.environ)
    if mode is not None:
        variables[gaudi.MODE_VARIABLE] = mode
    _forget()
    sys.path.insert(0, str(STAND_IN))
    importlib.invalidate_caches()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        sys.path.remove(str(STAND_IN))
        _forget()


def _forget() -> None:
    """All but the card: what it told PyTorch about the device "hpu" can't be taken back, and need not be."""
    for name in [*sys.modules]:
        if name == "torch.hpu" or name.partition(".")[0] == "habana_frameworks":
            del sys.modules[name]
    if hasattr(torch, "hpu"):
        del torch.hpu
    backends = torch.distributed.Backend
    if "hccl" in backends.backend_list:
        backends.backend_list.remove("hccl")
        del backends._plugins["HCCL"]
    gaudi._loaded = gaudi._Loaded()
