"""Signals that wait until all ranks are through with a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted(give_up: Callable[[], None]) -> Iterator[None]:
    """Makes Ctrl-C, and a SIGTERM that is handled in Python, wait until the end of the block.

    A step that only some ranks have begun would leave them waiting for each other, each in another step. Handlers run
    in the main thread only; elsewhere nothing interrupts.

    Args:
        give_up: called at the second signal, by somebody who does not want to wait: for a rank that hangs, it may be.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        pending.append((number, frame))
        if len(pending) == 2:
            give_up()

    before: dict[signal.Signals, Any] = {}
    for number in _SIGNALS:
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # the stronger one of both
        for got, frame in sorted(pending, key=lambda signalled: signalled[0], reverse=True)[:1]:
            before[signal.Signals(got)](got, frame)
