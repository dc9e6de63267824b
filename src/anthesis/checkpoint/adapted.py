"""The weights of a checkpoint with an adapter merged into them as they are loaded, one weight at a time.

What an adapter does to the rows of a weight of the program follows from where the family finds these in a Hugging Face
checkpoint, so it is the same for every format that the model is stored in.

The sum is computed in float64 and rounded to float32 once, from whole rows in products of one shape, so that a rank's
share has the bits of that part of the whole; only then it is rounded to the weight's kind.

A head that is the embedding becomes a matrix of its own where an adapter changes one of the two, as in training.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anthesis.checkpoint.adapter import Adapter, Merging
from anthesis.checkpoint.stored import StoredWeights
from anthesis.config import ModelConfig
from anthesis.cores import on_all_cores
from anthesis.errors import CheckpointError, RequestError, few
from anthesis.models import trace
from anthesis.models.family import Family, Source
from anthesis.program.ir import Value
from anthesis.quantize import WEIGHT_KINDS, WeightTensor, quantize, row_chunks, weight_kind

PIECE_ELEMENTS = 1 << 22
"""Elements of a weight that are in memory in float32 at once."""

EMBED, HEAD = "embed.weight", "head.weight"

_UNTIED: dict[str, Any] = {"tied_head": False}
"""What makes two matrices of embedding and head, in the configuration of every family."""


class AdaptedWeights:
    """The weights of a checkpoint with an adapter merged into them.

    Args:
        directory: of the adapter.
        base: the checkpoint's own weights.
        model: what messages call the checkpoint.
        family: of the model.
        config: of the model.
        weights: the kind of all matrices, or "native".

    Attributes:
        config: of the adapted model.

    Raises:
        RequestError: as `Adapter`; also a width that a kind's groups don't divide.
        CheckpointError: as `Adapter`.
    """

    def __init__(
        self, directory: Path, base: StoredWeights, model: str, family: Family, config: ModelConfig, weights: str
    ) -> None:
        self._where, self._model, self._base = f"the adapter {directory}", model, base
        untied = replace(config, **_UNTIED)
        places = family.sources(untied)
        self._adapter = adapter = Adapter(directory, {place.name for place in places.values()}, family.prefixes)
        is_tied = HEAD not in family.sources(config)
        self._unties = is_tied and any(adapter.changes(places[name].name) for name in (EMBED, HEAD))
        self.config: ModelConfig = untied if self._unties else config
        self._places = family.sources(self.config)
        replacing = {
            name: Source(adapter.replaced[place.name], place.rows, place.transpose)
            for name, place in self._places.items()
            if place.name in adapter.replaced
        }
        self._replacing = StoredWeights(str(directory), adapter.store, replacing, (), (), "fp32")
        values = trace(self.config, "argmax", self.kind_of).of_kind("weight")
        self._check_fit(values)
        self._warn(values, weights)

    def _check_fit(self, values: Iterable[Value]) -> None:
        """Checks that the adapter's tensors have the shapes that the model's weights ask for."""
        shapes: dict[str, tuple[int, ...]] = {}
        for value in values:
            place, shape = self._places[value.name], value.static_shape
            rows = shape[0] if place.rows is None else int(place.rows.max()) + 1
            shapes[place.name] = (max(rows, shapes.get(place.name, (0,))[0]), *shape[1:])
        transposed = frozenset(place.name for place in self._places.values() if place.transpose)
        wrong = self._adapter.misfits(shapes, transposed)
        if wrong:
            raise CheckpointError(f"{self._where} does not fit {self._model}, or its own configuration: {few(wrong)}")

    def _warn(self, values: Iterable[Value], weights: str) -> None:
        own, trained_on = _plain_name(self._model), _plain_name(self._adapter.trained_on)
        if trained_on and trained_on not in own and own not in trained_on:
            warnings.warn(
                f"{self._where} was trained on {self._adapter.trained_on}, and is merged into {self._model}",
                stacklevel=2,
            )
        if self._unties:
            warnings.warn(
                f"{self._where} changes the embedding or the head of {self._model}, which are one matrix: they become "
                "two, as in training (where peft's merge_and_unload keeps one, it gives another model)",
                stacklevel=2,
            )
        changed = (value for value in values if self._adapter.changes(self._places[value.name].name))
        kinds = {value.dtype for value in changed}
        quantised = sorted(kind for kind in kinds if WEIGHT_KINDS[kind].scaled_by != "none")
        if quantised and weights == "native":
            warnings.warn(
                f"{self._model} holds weights as {', '.join(quantised)}: those that the adapter changes are quantised "
                "once more, which costs quality; --weights bf16, or an unquantised model, keeps more of it",
                stacklevel=2,
            )

    def kind_of(self, name: str, shape: tuple[int, ...]) -> str:
        """See `Checkpoint.kind_of`.

        Raises:
            RequestError: the kind's groups don't divide the weight's width.
        """
        return self._base.kind_of(self._base_name(name), shape)

    def load(self, value: Value) -> WeightTensor:
        """See `Checkpoint.load`.

        Raises:
            RequestError: the share's columns cut a group, or the kind can't represent the elements.
            CheckpointError: elements of the share, or of what is merged into it, are NaN or infinite.
        """
        changed = self._places[value.name].name
        if changed not in self._adapter.additions:
            return self._load_plain(value)
        kind, shape = weight_kind(value.dtype), value.static_shape
        full = value.full_shape or shape
        start = value.start or (0,) * len(shape)
        if len(shape) == 2:
            kind.check_columns(start[1], start[1] + shape[1], full[1])
        merge = self._adapter.merging(changed)
        result = WeightTensor.empty(kind, shape)
        step = max(1, PIECE_ELEMENTS // (full[1] if len(full) == 2 else 1))
        for first in range(0, shape[0], step):
            self._merge_rows(value, slice(first, min(first + step, shape[0])), merge, result)
        return result

    def _merge_rows(self, value: Value, piece: slice, merge: Merging, result: WeightTensor) -> None:
        """Writes some rows of this rank's share of a weight."""
        full = value.full_shape or value.static_shape
        top, left = (*value.start, 0, 0)[:2]
        shape = (piece.stop - piece.start, *full[1:])
        start = (top + piece.start, 0)[: len(shape)]
        own = self._load_plain(replace(value, dtype="fp32", shape=shape, start=start, full_shape=full)).values
        place = self._places[value.name]
        numbers = np.arange(full[0]) if place.rows is None else place.rows
        numbers = numbers[start[0] : start[0] + shape[0]]

        def convert(part: slice) -> None:
            merged = merge(own[part], numbers[part])
            if not np.isfinite(merged).all():
                raise CheckpointError(
                    f"{self._where} makes NaN or infinity of elements of {place.name}, so it is damaged, or made for "
                    "another model"
                )
            try:
                chunk = quantize(merged, result.kind)
            except RequestError as error:
                raise RequestError(f"{self._model} with {self._where}: {place.name}: {error}") from error
            if len(full) == 2:
                chunk = chunk.columns(left, left + result.shape[1])
            result.rows(slice(piece.start + part.start, piece.start + part.stop)).copy_from(chunk)

        on_all_cores(convert, row_chunks(shape))

    def check(self, weights: Iterable[Value]) -> None:
        """See `Checkpoint.check`.

        Raises:
            CheckpointError: naming what the checkpoint lacks.
        """
        self._base.check(value for value in weights if value.name == self._base_name(value.name))

    def release(self) -> None:
        """See `Checkpoint.release`."""
        self._base.release()
        self._replacing.release()

    def _load_plain(self, value: Value) -> WeightTensor:
        """A weight without what is added to it: the adapter's own where it replaces it, else the checkpoint's."""
        if self._places[value.name].name in self._adapter.replaced:
            return self._replacing.load(value)
        return self._base.load(replace(value, name=self._base_name(value.name)))

    def _base_name(self, name: str) -> str:
        return EMBED if name == HEAD and self._unties else name


def _plain_name(model: str) -> str:
    """What is alike in the names of a model here and there: "SmolLM2-135M" and "HuggingFaceTB/SmolLM2-135M"."""
    return re.sub(r"[^a-z0-9]", "", model.rstrip("/").rpartition("/")[2].lower())
