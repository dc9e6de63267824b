"""Sampling on the host: it needs float64 and 64-bit integers, which Gaudi does not have.

A program that ends by drawing tokens is cut before that. The card computes the logits, those of all ranks, in the
captured step; the host draws from them by the operation's own definition, so the tokens are the definition's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anthesis.devices.device import Executable, InstructionTime
from anthesis.program.collectives import AllGather, SampleOverRanks
from anthesis.program.ir import Array, Arrays, Program
from anthesis.program.sample import Sample

_GATHERED = "logits.gathered"


def without_sampling(program: Program) -> tuple[Program, Sample | None]:
    """The program up to the logits of the whole vocabulary, and the draw that is left; None: it draws nothing."""
    *ops, last = program.ops
    if isinstance(last, Sample):
        sample = last
    elif isinstance(last, SampleOverRanks):
        ops.append(AllGather(x=last.sample.logits, out=_GATHERED, widths=last.widths))
        sample = replace(last.sample, logits=_GATHERED)
    else:
        return program, None
    return replace(program, outputs=(sample.logits,)).with_ops(ops), sample


class SamplingExecutable:
    """A step on the card, and the draw on the host.

    Args:
        logits: the program that computes them.
        executable: that runs it.
        sample: what to draw.
    """

    def __init__(self, logits: Program, executable: Executable, sample: Sample) -> None:
        self._inputs = [value.name for value in logits.of_kind("input")]
        self._executable, self._sample = executable, sample

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step; token (L,) comes as int32."""
        step = {name: inputs[name] for name in self._inputs}
        with np.errstate(over="ignore", invalid="ignore"):  # a token of -1 tells of what is not finite
            drawn = self._sample.evaluate({**inputs, **self._executable.run(step)})
        return dict(zip(self._sample.writes(), drawn, strict=True))

    def measure(self, on: bool) -> list[InstructionTime]:
        """See `Executable.measure`; of the card's part."""
        return self._executable.measure(on)
