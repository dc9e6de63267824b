"""Signals that wait until all ranks are through with a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Makes Ctrl-C, and a SIGTERM that is handled in Python, wait until the end of the block.

    A step that only some ranks have begun would leave them waiting for each other, each in another step. Handlers run
    in the main thread only; elsewhere nothing interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []
    before: dict[signal.Signals, Any] = {}
    for number in _SIGNALS:
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, lambda got, frame: pending.append((got, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for got, frame in pending[:1]:
            before[signal.Signals(got)](got, frame)
