"""Steps captured as CUDA graphs: one launch for all kernels of a step."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

from anthesis.devices.accelerator.graphs import Captures, Run
from anthesis.devices.accelerator.sizes import StepSize

MAX_PROMPT_GRAPHS = 32
"""Sizes with rows of prompts that are captured: there are hundreds, and each graph takes memory that nobody counts."""


class CudaGraphs:
    """Captures each step when it runs for the second time.

    The first run is launched call by call: it compiles the kernels that are missing, lets the libraries set up what
    they need, and gives a result at once, so that a step of a size that comes only once costs no capture.

    Steps have a stream of their own, captured or not. A library keeps its workspace by stream: it is made in the first
    run, outside the pool of the graphs, and no other model's graphs, when they are let go of, take it along.

    Graphs that are there together share one pool of memory, since only one of them runs at a time.

    Attributes:
        captures: so far; the compilation of kernels is not in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._prompt_graphs = 0
        self.captures = Captures()

    def prepare(self, run: Run, size: StepSize) -> Run:
        """The step, captured from its second run on."""
        return _Captured(self, run, size)

    def running(self) -> AbstractContextManager[object]:
        """On the stream of the steps."""
        on_stream: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return on_stream

    def may_capture(self, size: StepSize) -> bool:
        """Whether a step of this size is worth a graph."""
        if not self._alive:
            self._prompt_graphs = 0
        return not size.tiles or self._prompt_graphs < MAX_PROMPT_GRAPHS

    def capture(self, run: Run, size: StepSize) -> tuple[torch.cuda.CUDAGraph, Mapping[str, torch.Tensor]]:
        """Records a step without running it: the graph, and its outputs, (L,) int32 and so on, that a replay fills.

        Raises:
            torch.OutOfMemoryError: there is no room for what the graph holds.
        """
        begin = time.perf_counter()
        if not self._alive:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # errors of other threads' calls, such as a watchdog's queries, are no fault of this capture
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = run()
        torch.cuda.synchronize(self._device)
        self._alive.add(graph)
        self._prompt_graphs += size.tiles > 0
        self.captures.count += 1
        self.captures.seconds += time.perf_counter() - begin
        return graph, outputs


class _Captured:
    def __init__(self, graphs: CudaGraphs, run: Run, size: StepSize) -> None:
        self._graphs, self._run, self._size = graphs, run, size
        self._was_run = self._has_no_room = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: Mapping[str, torch.Tensor] = {}

    def __call__(self) -> Mapping[str, torch.Tensor]:
        if self._graph is None and not self._captured():
            outputs = self._run()
            self._was_run = True
            self._graphs.captures.steps_without += 1
            return outputs
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _captured(self) -> bool:
        """Whether there is a graph now."""
        if not self._was_run or self._has_no_room or not self._graphs.may_capture(self._size):
            return False
        try:
            self._graph, self._outputs = self._graphs.capture(self._run, self._size)
        except torch.OutOfMemoryError:  # the step itself has run, and does so without a graph
            self._has_no_room = True
            return False
        return True
