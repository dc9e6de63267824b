"""Steps captured as CUDA graphs: one launch for all kernels of a step."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from anthesis.devices.accelerator.graphs import Captures, Run


class CudaGraphs:
    """Captures each step when it runs for the second time.

    The first run is launched call by call: it compiles the kernels that are missing, lets the libraries set up what
    they need, and gives a result at once, so that a step of a size that comes only once costs no capture. All graphs
    share one pool of memory, since only one of them runs at a time.

    Attributes:
        captures: so far; the compilation of kernels is not in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self.captures = Captures()

    def prepare(self, run: Run) -> Run:
        """The step, captured from its second run on."""
        return _Captured(self, run)

    def capture(self, run: Run) -> tuple[torch.cuda.CUDAGraph, Mapping[str, torch.Tensor]]:
        """Records a step without running it; its outputs, (L,) int32 or (L, V) float32, hold what a replay gives."""
        begin = time.perf_counter()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # errors of other threads' calls, such as a watchdog's queries, are no fault of this capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = run()
        torch.cuda.synchronize(self._device)
        self.captures.count += 1
        self.captures.seconds += time.perf_counter() - begin
        return graph, outputs


class _Captured:
    def __init__(self, graphs: CudaGraphs, run: Run) -> None:
        self._graphs, self._run = graphs, run
        self._was_run = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: Mapping[str, torch.Tensor] = {}

    def __call__(self) -> Mapping[str, torch.Tensor]:
        if not self._was_run:
            outputs = self._run()
            self._was_run = True
            return outputs
        if self._graph is None:
            self._graph, self._outputs = self._graphs.capture(self._run)
        self._graph.replay()
        return self._outputs
