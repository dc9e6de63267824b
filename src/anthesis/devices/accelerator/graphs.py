"""How a step of one size is run again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Run = Callable[[], Mapping[str, torch.Tensor]]
"""One step over inputs that stand at a fixed place; gives outputs by name."""


@dataclass
class Captures:
    """What capturing took.

    Attributes:
        count: graphs that were captured, or functions that were compiled.
        seconds: that it took.
    """

    count: int = 0
    seconds: float = 0.0


class Graphs(Protocol):
    """A device's way of capturing steps.

    Attributes:
        captures: so far.
    """

    captures: Captures

    def prepare(self, run: Run) -> Run:
        """The same step, to be run many times: captured at once, later, or never."""


class NoGraphs:
    """Every step is run call by call."""

    def __init__(self) -> None:
        self.captures = Captures()

    def prepare(self, run: Run) -> Run:
        """The step itself."""
        return run
