"""As `torch.hpu`: graphs are there in lazy mode only, which is read once, here."""

from __future__ import annotations

import os

from gaudi_card import LIMIT, card

ENVIRONMENT = dict(os.environ)
"""As it was at the import."""

CARDS = int(os.environ.get("GAUDI_STAND_IN_CARDS", "8"))
"""That the machine has."""


def is_lazy() -> bool:
    """The mode: lazy where nothing else is said, as in version 1.19."""
    return ENVIRONMENT.get("PT_HPU_LAZY_MODE", "1") != "0"


if is_lazy():
    from gaudi_card import HPUGraph, graph  # noqa: F401


class Stream:
    """A queue of operations; there is one."""


class Event:
    """A place in a queue; PyTorch's compiler asks for the class."""


_STREAM = Stream()
card.lazy_collectives = ENVIRONMENT.get("PT_HPU_ENABLE_LAZY_COLLECTIVES", "false").lower() in ("true", "1")


def default_stream() -> Stream:
    """The one."""
    return _STREAM


def is_available() -> bool:
    """Whether there is a card."""
    return CARDS > 0


def device_count() -> int:
    """Cards of the machine."""
    return CARDS


def current_device() -> int:
    """A process has one card, number 0 to it."""
    return 0


def get_device_name(device: object = None) -> str:
    """Of the card."""
    return "stand-in for GAUDI2"


def synchronize() -> None:
    """Nothing is ever under way."""


def memory_stats(device: object = None) -> dict[str, int]:
    """Bytes."""
    return {"Limit": LIMIT, "InUse": card.in_use, "MaxInUse": card.most_in_use}


def mem_get_info(device: object = None) -> tuple[int, int]:
    """Bytes free, and in all."""
    return LIMIT - card.in_use, LIMIT


def max_memory_allocated(device: object = None) -> int:
    """Bytes held at most."""
    return card.most_in_use


def reset_peak_memory_stats(device: object = None) -> None:
    """Counts the peak from now on."""
    card.most_in_use = card.in_use


def _lazy_init() -> None:
    """PyTorch calls it before the device is used first."""


def _is_in_bad_fork() -> bool:
    return False
