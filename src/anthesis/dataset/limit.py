"""The limit of a session: the least time that its steps could have taken, by what was measured of the device."""

from __future__ import annotations

import statistics
from dataclasses import replace

from anthesis.dataset.summary import Session
from anthesis.llm import LLM
from anthesis.plan.counted import StepCosts, StepCounter
from anthesis.plan.hardware import Hardware

MEASURE_AGAIN_S = 10.0
"""A session that was shorter is not worth a second measurement: the bandwidth wanders within minutes."""


class Meter:
    """Counts what the steps of a model must read and compute, and measures how fast its device could do it.

    Args:
        llm: best before its weights are loaded: what measuring takes of the memory does then not come on top of them.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._kinds = llm.loaded.weight_kinds
        shares_memory = llm.device_info.uses_host_memory
        self._costs = StepCosts(llm.loaded.programs, llm.layout, shares_memory=shares_memory)
        self._measured = [self._measure()]

    def begin(self) -> None:
        """From now on counts for a new session."""
        self._measured = self._measured[-1:]
        self._counter = self._new_counter(self._measured[0])
        self._llm.watch(self._counter)

    def end(self, run_s: float) -> None:
        """Measures once more, if the session took long.

        Args:
            run_s: that it took.
        """
        self._llm.watch(None)
        if run_s >= MEASURE_AGAIN_S:
            self._measured.append(self._measure())

    def noted(self, session: Session) -> Session:
        """A session with what was counted and measured of it so far; its `run_s` is up to now."""
        bandwidths = tuple(found.read_bytes_per_s for found in self._measured if found.read_bytes_per_s is not None)
        peaks = tuple(peak for found in self._measured if (peak := found.flops_per_s(self._kinds)) is not None)
        floor_s = self._counter.floor_s(
            statistics.mean(bandwidths) if bandwidths else None, statistics.mean(peaks) if peaks else None
        )
        return replace(
            session,
            steps=self._counter.steps,
            memory_bound_bytes=self._counter.memory_bound_bytes,
            compute_bound_flops=self._counter.compute_bound_flops,
            read_bytes_per_s=bandwidths,
            flops_per_s=peaks,
            floor_s=floor_s,
            share_of_limit=None if floor_s is None or not session.run_s else floor_s / session.run_s,
        )

    def _new_counter(self, hardware: Hardware) -> StepCounter:
        return StepCounter(
            self._costs,
            read_bytes_per_s=hardware.read_bytes_per_s,
            flops_per_s=hardware.flops_per_s(self._kinds),
        )

    def _measure(self) -> Hardware:
        loaded = self._llm.loaded
        # over as many bytes as a step reads: what of so many stays in a processor's caches, does of a model's, too
        smallest = sum(nbytes for nbytes, _ in self._costs.of("argmax", [(0, 1)], 1))
        bandwidth = loaded.device.read_bandwidth(smallest).median
        hardware = Hardware.of_device(loaded.device.info())
        return hardware.at_speeds(bandwidth, loaded.device.multiply_add_peaks(), loaded.machines)
