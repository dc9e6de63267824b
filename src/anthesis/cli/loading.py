"""The bar on stderr while models load."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from anthesis.llm import LLM

PATIENCE_S = 0.5


def start_bar(
    *columns: ProgressColumn, completed: int = 0, total: int | None = None, drawn_alone: bool = True
) -> Progress:
    """A bar on stderr with one task, gone when it is stopped.

    Args:
        columns: that it has.
        completed, total: of its task.
        drawn_alone: by a thread, again and again; else only when it is told to.
    """
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, auto_refresh=drawn_alone
    )
    bar.add_task("", completed=completed, total=total, times="")
    bar.start()
    return bar


def load(llm: LLM) -> None:
    """Reads a model's weights, with a bar."""
    with LoadingBar() as bar:
        llm.load(bar)


class LoadingBar:
    """Shows how far loading is, on a terminal, once it takes a while; gone with the last weight, or with the context.

    Pass it as `LLM(on_weight=)`, of one model after the other.

    Args:
        after_s: seconds from a model's first weight after which to begin.
        label: what is being done.
    """

    def __init__(self, after_s: float = PATIENCE_S, label: str = "loading") -> None:
        self._label = label
        self._after_s = after_s if sys.stderr.isatty() else float("inf")
        self._begin: float | None = None
        self._progress: Progress | None = None

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def __call__(self, loaded: int, total: int) -> None:
        """Takes note of `loaded` weights out of `total`."""
        now = time.perf_counter()
        if self._begin is None:
            self._begin = now
        if now - self._begin >= self._after_s:
            self._show(loaded, total)
        if loaded == total:
            self._end()

    def _show(self, loaded: int, total: int) -> None:
        if self._progress is None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

            columns = (TextColumn(self._label), BarColumn(), MofNCompleteColumn(), TextColumn("weights"))
            self._progress = start_bar(*columns, completed=loaded, total=total)
        self._progress.update(self._progress.task_ids[0], completed=loaded, total=total)

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._begin = self._progress = None
