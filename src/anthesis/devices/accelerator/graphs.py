"""How a step of one size is run again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

from anthesis.devices.accelerator.sizes import StepSize

Run = Callable[[], Mapping[str, torch.Tensor]]
"""One step over inputs that stand at a fixed place; gives outputs by name."""


@dataclass
class Captures:
    """What capturing took.

    Attributes:
        count: graphs that were captured, or functions that were compiled.
        seconds: that it took.
        steps_without: steps that ran call by call, though the device captures steps: those of a new size.
    """

    count: int = 0
    seconds: float = 0.0
    steps_without: int = 0


class Graphs(Protocol):
    """A device's way of capturing steps.

    Attributes:
        captures: so far.
    """

    captures: Captures

    def prepare(self, run: Run, size: StepSize) -> Run:
        """The same step, of a size, to be run many times: captured at once, later, or never."""

    def running(self) -> AbstractContextManager[object]:
        """Within it steps are run, their inputs copied and their outputs waited for."""


class NoGraphs:
    """Every step is run call by call."""

    def __init__(self) -> None:
        self.captures = Captures()

    def prepare(self, run: Run, size: StepSize) -> Run:
        """The step itself."""
        return run

    def running(self) -> AbstractContextManager[object]:
        """Nothing has to be set up."""
        return nullcontext()
