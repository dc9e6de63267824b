"""Steps as graphs of Gaudi's own (lazy mode), or compiled by PyTorch with Gaudi's backend (eager mode).

Both are made when a step of a size runs for the first time. To run it without a graph first would gain nothing: each
shape is compiled either way, which takes far longer than the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from types import FunctionType
from typing import Any

import torch

from anthesis.devices.accelerator.graphs import Captures, Run
from anthesis.devices.accelerator.sizes import StepSize


class LazyGraphs:
    """Captures each step in an HPUGraph, and replays it from then on.

    The inputs stand at a fixed place; the outputs do as well, and the next replay overwrites them.

    Attributes:
        captures: so far.
    """

    def __init__(self) -> None:
        self._hpu: Any = torch.hpu
        self._mark_step = import_module("habana_frameworks.torch.core").mark_step
        self.captures = Captures()

    def prepare(self, run: Run, size: StepSize) -> Run:
        """The step, captured in its first run."""
        return _Captured(self, run)

    def running(self) -> AbstractContextManager[object]:
        """Nothing has to be set up."""
        return nullcontext()

    def capture(self, run: Run) -> tuple[Any, Mapping[str, torch.Tensor]]:
        """The graph of a step, and its outputs: (L,) int32, (L, V) float32, ..., which a replay fills."""
        begin = time.perf_counter()
        self._mark_step()  # what was asked for before is no part of the graph
        graph = self._hpu.HPUGraph()
        # on the stream on which inputs are copied, so that a replay waits for them
        with self._hpu.graph(graph, stream=self._hpu.default_stream()):
            outputs = run()
        self._hpu.synchronize()
        self.captures.count += 1
        self.captures.seconds += time.perf_counter() - begin
        return graph, outputs


class _Captured:
    def __init__(self, graphs: LazyGraphs, run: Run) -> None:
        self._graphs, self._run = graphs, run
        self._graph: Any = None
        self._outputs: Mapping[str, torch.Tensor] = {}

    def __call__(self) -> Mapping[str, torch.Tensor]:
        if self._graph is None:
            self._graph, self._outputs = self._graphs.capture(self._run)
        self._graph.replay()
        return self._outputs


class EagerGraphs:
    """Has PyTorch compile each step for Gaudi, as one graph: where it would have to be cut, PyTorch raises.

    Attributes:
        captures: steps that were compiled so far.
    """

    def __init__(self) -> None:
        self.captures = Captures()

    def running(self) -> AbstractContextManager[object]:
        """Nothing has to be set up."""
        return nullcontext()

    def prepare(self, run: Run, size: StepSize) -> Run:
        """The step, compiled in its first run."""
        compiled = torch.compile(
            _with_code_of_its_own(run),
            backend="hpu_backend",
            fullgraph=True,
            dynamic=False,
            options={"force_static_compile": True, "keep_input_mutations": True},
        )
        return _Compiled(self, compiled)


class _Compiled:
    def __init__(self, graphs: EagerGraphs, run: Run) -> None:
        self._graphs, self._run = graphs, run
        self._was_run = False

    def __call__(self) -> Mapping[str, torch.Tensor]:
        if self._was_run:
            return self._run()
        begin = time.perf_counter()
        outputs = self._run()
        self._was_run = True
        self._graphs.captures.count += 1
        self._graphs.captures.seconds += time.perf_counter() - begin
        return outputs


def _with_code_of_its_own(run: Run) -> Run:
    """A function whose compiled forms are kept apart from those of other steps.

    PyTorch keeps them with a function's code: steps that shared it would be tried one after the other at each call, and
    beyond some number of them no more would be compiled.
    """

    def step() -> Mapping[str, torch.Tensor]:
        return run()

    return FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)
