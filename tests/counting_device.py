"""The reference device, which counts as an accelerator does: captures at chosen steps, and host fallbacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from anthesis.devices import OPENERS
from anthesis.devices.device import Counters
from anthesis.devices.reference import ReferenceDevice, ReferenceExecutable
from anthesis.program.ir import Array, Arrays, Program

CAPTURE_S = 0.25


class CountingDevice(ReferenceDevice):
    """Says that it captured a graph in some of its steps, counted from 0, and that the host did work in others."""

    def __init__(self, captures: Collection[int] = (), fallbacks: Collection[int] = ()) -> None:
        super().__init__()
        self._captures, self._fallbacks = captures, fallbacks
        self.step = 0

    def compile(self, program: Program, weights: Mapping[str, Array], cache: dict[str, Array]) -> ReferenceExecutable:
        executable = super().compile(program, weights, cache)
        run = executable.run

        def counted(inputs: Arrays) -> dict[str, Array]:
            self.step += 1
            return run(inputs)

        executable.run = counted  # type: ignore[method-assign]
        return executable

    def counters(self) -> Counters:
        captures = sum(step < self.step for step in self._captures)
        return Counters(
            captures=captures,
            capture_s=captures * CAPTURE_S,
            compilations=2 * captures,
            cpu_fallbacks=sum(step < self.step for step in self._fallbacks),
            memory_bytes=1000 * self.step,
        )

    def versions(self) -> Mapping[str, str]:
        return {"counting": "1.0"}


@contextmanager
def opened_as_reference(device: Any) -> Iterator[None]:
    """Within, `--device reference` is this one."""
    with patch.dict(OPENERS, {"reference": lambda threads, seat, invariant: device}):
        yield
