"""How far `anthesis bench` is, on stderr: a bar on a terminal, else a line as something begins.

Nothing is drawn within a timed run: only when one begins, and never by a thread of its own.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from anthesis.cli.loading import start_bar
from anthesis.cli.terminal import tell

if TYPE_CHECKING:
    from rich.progress import Progress

    from anthesis.bench.sweep import Status

_REDRAW_S = 0.1
_TIMES_WIDTH = len("12:34, 12:34 left")
_TELLING_SHARE = 0.02
"""Of the work, before which its time says little of what is left."""


class BenchBar:
    """Shows what is going on, rows done and in all, time passed and left; gone with the context."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._begin = time.monotonic()
        self._bar: Progress | None = None
        self._phase = ""
        self._drawn = 0.0

    def __enter__(self) -> BenchBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, status: Status) -> None:
        """Takes note of what is done now."""
        is_new, self._phase = status.phase != self._phase, status.phase
        if not self._is_terminal:
            if is_new:
                tell(f"bench: {f'{status.row} of {status.rows}: ' if status.rows > 1 else ''}{status.phase}")
        elif is_new or time.monotonic() - self._drawn >= _REDRAW_S:
            self._draw(status)
            self._drawn = time.monotonic()

    def _draw(self, status: Status) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, TextColumn
            from rich.table import Column

            doing = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
            times = TextColumn("{task.fields[times]}", table_column=Column(no_wrap=True, min_width=_TIMES_WIDTH))
            self._bar = start_bar(doing, BarColumn(10), times, total=1, drawn_alone=False)
        rows = f"{status.row}/{status.rows} " if status.rows > 1 else ""
        self._bar.update(
            self._bar.task_ids[0],
            description=f"{rows}{status.detail}",
            completed=status.share,
            times=self._times(status.share),
        )
        self._bar.refresh()

    def _times(self, share: float) -> str:
        passed = time.monotonic() - self._begin
        if share < _TELLING_SHARE:
            return _clock(passed)
        return f"{_clock(passed)}, {_clock(passed * (1 - share) / share)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
