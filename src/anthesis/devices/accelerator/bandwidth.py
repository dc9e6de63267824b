"""How fast a card reads its own memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from anthesis.devices.bandwidth import ReadBandwidth

BUFFER_BYTES = 1 << 30
"""Twenty times the last-level cache of the largest cards, and read in less than a millisecond."""

MIN_BUFFER_BYTES = 256 << 20
"""What fits in a card's cache says nothing about its memory."""

PASSES = 20
_ROWS = 1 << 12
_MEMORY_SHARE = 4
"""The buffer may take one part in this many of the memory that is free."""

_LEAST_BYTES = 16 << 20
"""A smaller buffer is read before the launch of a second kernel would be over."""

Timed = Callable[[Callable[[], object]], float]
"""Seconds that the card takes for what a function asks of it."""


def of_card(device: torch.device, free_bytes: int, seconds_of: Timed, nbytes: int | None = None) -> ReadBandwidth:
    """Measures it: a large buffer of float32 is summed, as a whole and row by row, and the faster way counts.

    Args:
        device: the card.
        free_bytes: of its memory.
        seconds_of: times a call.
        nbytes: of the buffer, as in `Device.read_bandwidth`.
    """
    free = min(BUFFER_BYTES, free_bytes // _MEMORY_SHARE)
    if free < MIN_BUFFER_BYTES:
        return ReadBandwidth((), f"not measured: {free_bytes >> 20} MiB of free memory are too little")
    nbytes = free if nbytes is None else max(_LEAST_BYTES, min(nbytes, free))
    nbytes = nbytes // (4 * _ROWS) * (4 * _ROWS)
    with torch.inference_mode():
        buffer = torch.zeros((_ROWS, nbytes // (4 * _ROWS)), device=device)
        ways: tuple[Callable[[], object], ...] = (buffer.sum, lambda: buffer.sum(1))
        found = []
        for way in ways:
            seconds_of(way)  # whose first call sets things up
            found.append(tuple(nbytes / seconds_of(way) for _ in range(PASSES)))
    samples = max(found, key=statistics.median)
    return ReadBandwidth(samples, f"the card summing {nbytes >> 20} MiB of float32, {PASSES} passes")
