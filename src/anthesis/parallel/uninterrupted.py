"""Signals that wait until all ranks are through with a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted(wakeup: int) -> Iterator[None]:
    """Makes Ctrl-C, and a SIGTERM that is handled in Python, wait until the end of the block.

    A step that only some ranks have begun would leave them waiting for each other, each in another step. Handlers run
    in the main thread only; elsewhere nothing interrupts.

    Args:
        wakeup: a file descriptor to which the number of each signal is written as it comes, whatever the main thread
            waits for; somebody else may then see to it that the block ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []
    before: dict[signal.Signals, Any] = {}
    for number in SIGNALS:
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, lambda got, frame: pending.append((got, frame)))
    wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        # the stronger one of both
        for got, frame in sorted(pending, key=lambda signalled: signalled[0], reverse=True)[:1]:
            before[signal.Signals(got)](got, frame)
