"""How far a data-set run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from anthesis.cli.loading import start_bar
from anthesis.cli.terminal import tell

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from anthesis.dataset.run import Progress

LINE_S = 10.0
BAR_S = 0.1


class CompletingBar:
    """Pass it as `complete(progress=)`.

    Args:
        line_s: seconds between two lines where stderr is no terminal.
    """

    def __init__(self, line_s: float = LINE_S) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._every_s = BAR_S if self._on_terminal else line_s
        self._shown_s = time.monotonic() if not self._on_terminal else 0.0
        self._bar: Bar | None = None
        self._label = ""

    def begin(self, label: str) -> None:
        """Says what the rows belong to, from now on.

        Args:
            label: such as "shard 3, 5 of 16 finished".
        """
        self._label = f"{label}: "
        if not self._on_terminal:
            tell(f"complete: {label}")

    def __enter__(self) -> CompletingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows it, if it is time to."""
        if time.monotonic() - self._shown_s < self._every_s:
            return
        self._shown_s = time.monotonic()
        if self._on_terminal:
            self._show(progress)
        else:
            tell(f"complete: {self._label}{_text(progress)}")

    def _show(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, TextColumn

            self._bar = start_bar(BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._bar.update(
            self._bar.task_ids[0],
            completed=progress.done.rows,
            total=progress.total_rows,
            description=f"{self._label}{_text(progress)}",
        )


def _text(progress: Progress) -> str:
    done, session, total = progress.done, progress.session, progress.total_rows
    whole = "" if total is None else f" of {'' if total == int(total) else 'about '}{total:,.0f}"
    parts = [f"{done.rows:,}{whole} rows"]
    if session.rows and progress.run_s:
        parts.append(f"{session.rows / progress.run_s:.2f} rows/s")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:.1f} tokens/s")
    if progress.left_s is not None:
        parts.append(f"{timedelta(seconds=round(progress.left_s))} left")
    if done.failed_rows:
        parts.append(f"{done.failed_rows:,} failed")
    return ", ".join(parts)
