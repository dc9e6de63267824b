"""A stage of layers as an executable: it gets its rows from the stage before, and hands its own to the next."""

from __future__ import annotations

import numpy as np

from anthesis.devices.device import Executable, InstructionTime
from anthesis.parallel.seat import Seat
from anthesis.program.ir import Array, Arrays, Program
from anthesis.program.stages import arriving_name, leaving_name


class StageExecutable:
    """One stage's part of every step.

    Each rank passes its rows to the rank with the same share in the next stage: after the last sum of a stage all its
    ranks hold the same ones.

    Args:
        executable: of the stage's program.
        program: that it runs.
        seat: of this rank, in process groups.
    """

    def __init__(self, executable: Executable, program: Program, seat: Seat) -> None:
        assert seat.groups is not None, "stages hand over their rows through process groups"
        self._executable, self._groups = executable, seat.groups
        self._arriving = arriving_name(program)
        self._leaving = leaving_name(program)
        self._width = program.config.hidden_size
        self._before, self._next = seat.rank - seat.layout.tp, seat.rank + seat.layout.tp

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step.

        Returns:
            By name what comes out of the last stage, token (L,) int32 or logits (L, V) float32; of others nothing.

        Raises:
            AnthesisError: another stage has ended, or does not answer.
        """
        if self._arriving is not None:
            rows = np.empty((len(inputs["tokens"]), self._width), np.float32)
            self._groups.receive(rows, self._before)
            inputs = {**inputs, self._arriving: rows}
        outputs = self._executable.run(inputs)
        if self._leaving is None:
            return outputs
        self._groups.send(outputs[self._leaving], self._next)
        return {}

    def measure(self, on: bool) -> list[InstructionTime]:
        """See `Executable.measure`: of this stage."""
        return self._executable.measure(on)
