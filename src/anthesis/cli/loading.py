"""The bar on stderr while a model loads."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_S = 0.5


class LoadingBar:
    """Shows how far loading is, on a terminal, once it takes a while; gone when the context is left.

    Pass it as `LLM(on_weight=)`.

    Args:
        after_s: seconds after which to begin.
    """

    def __init__(self, after_s: float = PATIENCE_S) -> None:
        self._show_at = time.perf_counter() + after_s if sys.stderr.isatty() else float("inf")
        self._progress: Progress | None = None

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, loaded: int, total: int) -> None:
        """Takes note of `loaded` weights out of `total`."""
        if self._progress is None:
            if time.perf_counter() < self._show_at:
                return
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("loading"), BarColumn(), MofNCompleteColumn(), TextColumn("weights"))
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._progress.add_task("loading", total=total, completed=loaded)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=loaded, total=total)
