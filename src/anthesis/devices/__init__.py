"""The devices by name. A device and what it depends on are imported only when it is used."""

from __future__ import annotations

import logging

from anthesis.devices.device import Device
from anthesis.errors import RequestError, UnsupportedError
from anthesis.native import extension
from anthesis.parallel.seat import Seat

logger = logging.getLogger("anthesis")

DEVICES = ("cpu", "cuda", "hpu", "reference", "reference-fp64")
"""All names but "auto", those that this version does not have included."""

_COMING = {
    "cuda": "the CUDA device",
    "hpu": "the Gaudi device",
}


def open_device(name: str, threads: int | None = None, seat: Seat | None = None) -> Device:
    """The device of that name.

    Args:
        name: "cpu", "reference", "reference-fp64", or "auto", the fastest there is (said in the log).
        threads: that it may use, or None for its own choice.
        seat: of this rank, where the model is split over several; None: it is not.

    Raises:
        UnsupportedError: a device that this version does not have, or whose extension was never built.
        RequestError: an unknown name.
    """
    check_device(name)
    if name == "auto":
        name, why = _fastest()
        logger.warning("device auto: %s (%s)", name, why)
    if name in ("reference", "reference-fp64"):
        import numpy as np

        from anthesis.devices.reference import ReferenceDevice

        return ReferenceDevice(np.float32 if name == "reference" else np.float64, threads or 1, seat)
    if name == "cpu":
        from anthesis.devices.cpu import CpuDevice

        return CpuDevice(threads, seat)
    raise AssertionError(f"{name} is one of DEVICES that nothing opens")


def check_device(name: str) -> None:
    """Refuses a name before anything is done for it.

    Raises:
        UnsupportedError: a device that this version does not have.
        RequestError: an unknown name.
    """
    if name in _COMING:
        raise UnsupportedError(f"{_COMING[name]} ({name}) is not in this version; --device cpu is")
    if name not in (*DEVICES, "auto"):
        raise RequestError(
            f"unknown device {name!r}; known are: auto, cpu, reference, reference-fp64 (and data sheets, for "
            "`anthesis plan`)"
        )


def _fastest() -> tuple[str, str]:
    """The name of the device that "auto" means, and why it is that one."""
    try:
        extension()
    except UnsupportedError:
        return "reference", "NumPy; correct but slow; the native extension was never built"
    return "cpu", "the only fast device in this version"
