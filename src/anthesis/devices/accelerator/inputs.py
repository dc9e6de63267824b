"""What a step reads of the host: one block of bytes that is written there and copied, at once where a device can.

What attention and rotations need of positions and of the block table is worked out here, on the host, where it takes
no time: which rows of the cache are written, which blocks each tile looks at, the angles in float64. So no operation on
the device depends on the data, and a position is always a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anthesis.devices.accelerator.sizes import TILE, StepSize
from anthesis.program.ir import BLOCK_TOKENS, Array, Arrays, Program
from anthesis.program.sample import clipped

_ALIGNMENT = 16
_SAMPLING: Mapping[str, Any] = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition_penalty": np.float32,
    "seed": np.int64,
}
"""Of each row of logits; those that no token is chosen for are greedy."""

Frequencies = Mapping[str, NDArray[np.float64]]
"""Radians per position of each pair of a head, (D / 2,), by the name under which the step finds the angles."""


class StepInputs:
    """The inputs of steps of one size, on the host and on the device.

    Args:
        program: that reads them.
        size: of the steps.
        frequencies: of its rotations.
        arriving: name and width E of the rows that come from the stage before, or None.
        device: where the step runs.
        pinned: the host's copy stands in memory from which a card copies by itself.
        separate: each input is a tensor of its own on the device, not a part of one block of bytes, for devices that
            may not look at bytes as at other numbers.

    Attributes:
        tensors: by name: tokens, positions, key_rows (R,) int32: the cache's row of each row's key; tile_first,
            tile_position (T,) and tile_blocks (T, blocks) int32: the first row of each tile, its position, and the
            blocks of its sequence; tile_count (T,) and row_places (R,) int32: rows of each tile, and where in the tiles
            each row is; angles (R, D) float32: cosines, then sines; logit_rows, top_k (L,) int32; temperature, top_p,
            min_p, repetition_penalty (L,) float32; seed (L,) int64; seen (L, bytes) uint8.
    """

    def __init__(
        self,
        program: Program,
        size: StepSize,
        frequencies: Frequencies,
        arriving: tuple[str, int] | None,
        device: torch.device,
        pinned: bool,
        separate: bool = False,
    ) -> None:
        self._size, self._frequencies, self._pinned = size, frequencies, pinned
        self._arriving = None if arriving is None else arriving[0]
        rows, logit_rows, tiles = size.rows, size.logit_rows, size.num_tiles
        names = {value.name for value in program.of_kind("input")}
        fields: dict[str, tuple[Any, tuple[int, ...]]] = dict.fromkeys(
            ("tokens", "positions", "key_rows"), (np.int32, (rows,))
        )
        fields["tile_first"] = fields["tile_position"] = (np.int32, (tiles,))
        fields["tile_blocks"] = (np.int32, (tiles, size.blocks))
        if size.tiles:
            fields["tile_count"], fields["row_places"] = (np.int32, (tiles,)), (np.int32, (rows,))
        fields.update((name, (np.float32, (rows, 2 * len(one)))) for name, one in frequencies.items())
        if arriving is not None:
            fields[arriving[0]] = (np.float32, (rows, arriving[1]))
        if logit_rows:
            fields["logit_rows"] = (np.int32, (logit_rows,))
        if "temperature" in names:
            fields.update((name, (dtype, (logit_rows,))) for name, dtype in _SAMPLING.items())
            if size.penalises:
                fields["seen"] = (np.uint8, (logit_rows, -(-program.config.vocab_size // 8)))
        places, at = {}, 0
        for name, (dtype, shape) in fields.items():
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            places[name] = (at, at + nbytes)
            at += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self._on_host = torch.zeros(at, dtype=torch.uint8, pin_memory=pinned)
        block = None if separate else torch.empty(at, dtype=torch.uint8, device=device)
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = [] if block is None else [(block, self._on_host)]
        host = self._on_host.numpy()
        self._arrays: dict[str, Array] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        for name, (dtype, shape) in fields.items():
            begin, end = places[name]
            self._arrays[name] = host[begin:end].view(dtype).reshape(shape)
            on_host = torch.from_numpy(self._arrays[name])
            if block is None:
                self.tensors[name] = torch.empty(shape, dtype=on_host.dtype, device=device)
                self._copies.append((self.tensors[name], on_host))
            else:
                self.tensors[name] = block[begin:end].view(on_host.dtype).view(shape)

    def fill(self, inputs: Arrays) -> None:
        """Writes the inputs of a step, and has them copied to the device.

        Args:
            inputs: as `Executable.run` takes them, of this size.
        """
        to = self._arrays
        positions, table = inputs["positions"], inputs["block_table"]
        rows = len(positions)
        self._set("tokens", inputs["tokens"])
        self._set("positions", positions)
        blocks = table[inputs["slots"], positions // BLOCK_TOKENS]
        self._set("key_rows", blocks * (2 * BLOCK_TOKENS) + positions % BLOCK_TOKENS)
        if self._size.tiles:
            self._fill_tiles(inputs)
        else:
            to["tile_first"][:] = np.arange(self._size.rows)
            self._set("tile_position", positions)
            self._set("tile_blocks", table[inputs["slots"], : self._size.blocks])
        for name, frequencies in self._frequencies.items():
            angles = positions[:, None] * frequencies
            half = len(frequencies)
            to[name][:rows, :half] = np.cos(angles)
            to[name][:rows, half:] = np.sin(angles)
        if self._arriving is not None:
            self._set(self._arriving, inputs[self._arriving])
        if "logit_rows" in to:
            self._set("logit_rows", inputs["logit_rows"])
        if "temperature" in to:
            for name in _SAMPLING:
                array = inputs[name]
                self._set(name, array.view(np.int64) if name == "seed" else array)
            # what rounding made 0 or infinite is divided by all the same; a temperature of 0 means something else
            for name, given in (("temperature", to["temperature"] > 0), ("repetition_penalty", slice(None))):
                to[name][given] = [clipped(number) for number in to[name][given]]
            if self._size.penalises:
                self._set("seen", inputs["seen"])
        for on_device, on_host in self._copies:
            on_device.copy_(on_host, non_blocking=self._pinned)

    def _set(self, name: str, array: Array) -> None:
        """Rows that fill up the size get zeros: they write to the scratch block, and are greedy."""
        into = self._arrays[name]
        into[: len(array)] = array
        into[len(array) :] = 0

    def _fill_tiles(self, inputs: Arrays) -> None:
        table, slots = inputs["block_table"], inputs["slots"]
        first: list[int] = []
        count: list[int] = []
        position: list[int] = []
        places = self._arrays["row_places"]
        for row, rows, at in inputs["segments"].tolist():
            for done in range(0, rows, TILE):
                size = min(TILE, rows - done)
                places[row + done : row + done + size] = range(len(first) * TILE, len(first) * TILE + size)
                first.append(row + done)
                count.append(size)
                position.append(at + done)
        places[len(slots) :] = 0
        self._set("tile_first", np.array(first, np.int32))
        self._set("tile_count", np.array(count, np.int32))
        self._set("tile_position", np.array(position, np.int32))
        self._set("tile_blocks", table[slots[first], : self._size.blocks])
