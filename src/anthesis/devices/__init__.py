"""The devices by name. A device and what it depends on are imported only when it is used."""

from __future__ import annotations

import logging

from anthesis.devices.device import Device
from anthesis.errors import RequestError, UnsupportedError

logger = logging.getLogger("anthesis")

DEVICES = ("cpu", "cuda", "hpu", "reference", "reference-fp64")
"""All names but "auto", those that this version does not have included."""

_COMING = {
    "cuda": "the CUDA device",
    "hpu": "the Gaudi device",
}


def open_device(name: str, threads: int | None = None) -> Device:
    """The device of that name.

    Args:
        name: "reference", "reference-fp64", or "auto", the fastest there is (said in the log).
        threads: that it may use, or None for its own choice.

    Raises:
        UnsupportedError: a device that this version does not have.
        RequestError: an unknown name.
    """
    if name == "auto":
        logger.warning("device auto: reference (NumPy; correct but slow, the only device in this version)")
        name = "reference"
    if name in ("reference", "reference-fp64"):
        import numpy as np

        from anthesis.devices.reference import ReferenceDevice

        return ReferenceDevice(np.float32 if name == "reference" else np.float64, threads or 1)
    if name == "cpu":
        from anthesis.devices.cpu import CpuDevice

        return CpuDevice(threads)
    if name in _COMING:
        raise UnsupportedError(f"{_COMING[name]} ({name}) is not in this version; --device reference is")
    raise RequestError(
        f"unknown device {name!r}; known are: auto, reference, reference-fp64 (and data sheets, for `anthesis plan`)"
    )
