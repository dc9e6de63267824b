"""The devices by name. A device and what it depends on are imported only when it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from anthesis.devices.device import Device
from anthesis.errors import RequestError, UnsupportedError
from anthesis.native import extension
from anthesis.parallel.seat import Seat

logger = logging.getLogger("anthesis")

NVIDIA_DRIVER = ("/dev/nvidiactl", "/dev/dxg")
"""What the driver gives to user programs: on Linux, and on Linux within Windows."""

GAUDI_CARDS = ("/dev/accel/accel[0-9]*", "/dev/hl[0-9]*")
"""What Gaudi's driver gives to user programs, in newer and in older versions of Linux."""

Opener = Callable[[int | None, Seat | None, bool], Device]
"""What opens a device, given threads, seat and invariant as `open_device` explains them."""


def open_device(name: str, threads: int | None = None, seat: Seat | None = None, *, invariant: bool = False) -> Device:
    """The device of that name.

    Args:
        name: "cpu", "cuda", "hpu", "reference", "reference-fp64", or "auto", the fastest there is (said in the log).
        threads: that it may use on the host's processor, or None for its own choice.
        seat: of this rank, where the model is split over several; None: it is not.
        invariant: a device that is not batch-invariant by itself is to be, at what that costs.

    Raises:
        UnsupportedError: a device that is not there, or can't be batch-invariant; or the extension was never built.
        RequestError: an unknown name.
    """
    check_device(name)
    if name == "auto":
        name, why = _fastest()
        logger.warning("device auto: %s (%s)", name, why)
    device = OPENERS[name](threads, seat, invariant)
    if invariant and not device.info().batch_invariant:
        raise UnsupportedError(f"the {name} device has no batch-invariant operations; leave --invariant out")
    return device


def device_of(name: str) -> str:
    """The device that a name means: for "auto" the fastest there is."""
    return _fastest()[0] if name == "auto" else name


def check_device(name: str) -> None:
    """Refuses a name before anything is done for it.

    Raises:
        RequestError: an unknown name.
    """
    if name not in (*DEVICES, "auto"):
        raise RequestError(
            f"unknown device {name!r}; known are: auto, {', '.join(DEVICES)} (and data sheets, for `anthesis plan`)"
        )


def need_torch(device: str) -> None:
    """Refuses a device that runs through PyTorch where that is not installed.

    Raises:
        UnsupportedError: it is not.
    """
    if find_spec("torch") is None:
        raise UnsupportedError(
            f"the {device} device needs PyTorch; install the build for it, then the extra: pip install "
            "'anthesis[torch]'"
        )


def need_device(name: str) -> None:
    """Refuses a device that can't be used here, as far as that shows before ranks are started for it.

    Raises:
        UnsupportedError: PyTorch, the driver, or Gaudi's software is missing.
        RequestError: an unknown name.
    """
    check_device(name)
    if name in _NEEDS:
        need_torch(name)
        _NEEDS[name]()


def _fastest() -> tuple[str, str]:
    """The name of the device that "auto" means, and why it is that one."""
    reasons = []
    for name, is_there, unusable in (
        ("hpu", _has_gaudi_card, _why_no_gaudi_card),
        ("cuda", _has_nvidia_driver, _why_no_nvidia_card),
    ):
        if not is_there():
            continue
        reason = unusable()
        if reason is None:
            return name, f"{_CARDS[name]} is there"
        reasons.append(f"{_CARDS[name]} is there, and {reason}")
    try:
        extension()
    except UnsupportedError:
        return "reference", "; ".join(("NumPy; correct but slow; the native extension was never built", *reasons))
    return "cpu", "; ".join(reasons) or "no accelerator is there"


_CARDS = {"hpu": "a Gaudi card", "cuda": "an NVIDIA driver"}


def _has_gaudi_card() -> bool:
    return any(next(Path(path).parent.glob(Path(path).name), None) for path in GAUDI_CARDS)


def _why_no_gaudi_card() -> str | None:
    return None if find_spec("habana_frameworks") is not None else "habana_frameworks is not installed"


def _has_nvidia_driver() -> bool:
    return any(Path(device).exists() for device in NVIDIA_DRIVER)


def _why_no_nvidia_card() -> str | None:
    """Why PyTorch can't use a card; asked only where the driver is, since to import PyTorch takes seconds."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    from anthesis.devices.cuda.device import why_unusable

    return why_unusable()


def _need_nvidia_driver() -> None:
    if not _has_nvidia_driver():
        raise UnsupportedError(
            f"the cuda device can't be used: no NVIDIA driver is there ({' or '.join(NVIDIA_DRIVER)}); see "
            "docs/devices.md, or take --device cpu"
        )


def _need_gaudi() -> None:
    from anthesis.parallel.gaudi import need_gaudi

    need_gaudi()


_NEEDS: dict[str, Callable[[], None]] = {"cuda": _need_nvidia_driver, "hpu": _need_gaudi}


def _cpu(threads: int | None, seat: Seat | None, invariant: bool) -> Device:
    from anthesis.devices.cpu import CpuDevice

    return CpuDevice(threads, seat)


def _cuda(threads: int | None, seat: Seat | None, invariant: bool) -> Device:
    need_device("cuda")
    from anthesis.devices.cuda import open_card

    return open_card(seat, invariant)


def _hpu(threads: int | None, seat: Seat | None, invariant: bool) -> Device:
    need_device("hpu")
    from anthesis.devices.hpu import open_card

    return open_card(seat)


def _reference(threads: int | None, seat: Seat | None, invariant: bool) -> Device:
    import numpy as np

    from anthesis.devices.reference import ReferenceDevice

    return ReferenceDevice(np.float32, threads or 1, seat)


def _reference_fp64(threads: int | None, seat: Seat | None, invariant: bool) -> Device:
    import numpy as np

    from anthesis.devices.reference import ReferenceDevice

    return ReferenceDevice(np.float64, threads or 1, seat)


OPENERS: dict[str, Opener] = {
    "cpu": _cpu, "cuda": _cuda, "hpu": _hpu, "reference": _reference, "reference-fp64": _reference_fp64
}  # fmt: skip
"""What opens the device of each name, without "auto"; a test or a benchmark may put another in its place."""

DEVICES = tuple(OPENERS)
"""All names but "auto"."""
