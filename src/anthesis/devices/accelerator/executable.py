"""A program on an accelerator: one step of fixed shapes for each size that is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from anthesis.devices.accelerator.graphs import Graphs, Run
from anthesis.devices.accelerator.inputs import StepInputs
from anthesis.devices.accelerator.memory import saying_what_for
from anthesis.devices.accelerator.sizes import StepSize, size_of
from anthesis.devices.accelerator.step import Step
from anthesis.devices.device import InstructionTime
from anthesis.errors import UnsupportedError
from anthesis.program.ir import Array, Arrays
from anthesis.program.stages import arriving_name
from anthesis.units import counted

_REMEDY = "take a smaller --batch, --prefill-chunk or --cache-memory"


@dataclass(frozen=True)
class _Prepared:
    inputs: StepInputs
    run: Run


class AcceleratorExecutable:
    """Rounds each step up to a size, fills its inputs, runs or replays it, and brings the outputs to the host.

    Args:
        step: of the program.
        graphs: that capture it.
        blocks: how many blocks attention looks at, as in `size_of`.
        device: where it runs.
        to_host: brings tensors, by name, to the host as arrays, waiting once for all of them.
        pinned: inputs stand in memory from which a card copies by itself.
        separate: each input is a tensor of its own on the device.
    """

    def __init__(
        self,
        step: Step,
        graphs: Graphs,
        blocks: Callable[[int, int], int],
        device: torch.device,
        to_host: Callable[[Mapping[str, torch.Tensor]], dict[str, Array]],
        pinned: bool,
        separate: bool,
    ) -> None:
        self._step, self._graphs, self._blocks, self._device = step, graphs, blocks, device
        self._to_host, self._pinned, self._separate = to_host, pinned, separate
        self._prepared: dict[StepSize, _Prepared] = {}

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step; logits (L, V) come as float32.

        Raises:
            RequestError: the device has too little memory for it.
        """
        size = size_of(inputs, self._blocks)
        memory_for = saying_what_for(self._device, f"a step of {counted(size.rows, 'row')}", _REMEDY)
        with torch.inference_mode(), self._graphs.running(), memory_for:
            prepared = self._prepared.get(size)
            if prepared is None:
                prepared = self._prepared[size] = self._prepare(size)
            prepared.inputs.fill(inputs)
            outputs = prepared.run()
            found = self._to_host(outputs)
        rows = {"R": len(inputs["tokens"]), "L": len(inputs.get("logit_rows", ()))}
        values = self._step.program.values
        return {name: array[: rows[str(values[name].shape[0])]] for name, array in found.items()}

    def let_go(self) -> None:
        """Drops what was captured; the next step begins anew."""
        self._prepared.clear()

    def measure(self, on: bool) -> list[InstructionTime]:
        """There are no counters here.

        Raises:
            UnsupportedError: they were asked for.
        """
        if on:
            raise UnsupportedError(
                f"the {self._device.type} device has no counters of its operations: a captured step is one launch; "
                "torch.profiler shows its kernels"
            )
        return []

    def _prepare(self, size: StepSize) -> _Prepared:
        program = self._step.program
        name = arriving_name(program)
        arriving = None if name is None else (name, program.config.hidden_size)
        inputs = StepInputs(program, size, self._step.frequencies, arriving, self._device, self._pinned, self._separate)
        return _Prepared(inputs, self._graphs.prepare(partial(self._step.run, inputs.tensors, size), size))
