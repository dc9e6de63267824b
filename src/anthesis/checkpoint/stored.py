"""The weights of a program out of a checkpoint's tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from anthesis.checkpoint.store import Rows, StoredTensor, TensorStore
from anthesis.cores import on_all_cores
from anthesis.errors import CheckpointError, RequestError, few
from anthesis.models.family import Source
from anthesis.program.ir import Value
from anthesis.quantize import WEIGHT_KINDS, Array, WeightTensor, row_chunks, weight_kind


class StoredWeights:
    """Finds each weight's tensor, takes this rank's share of it, and converts it.

    Args:
        where: what messages call the checkpoint.
        store: the tensors.
        sources: where each weight of the program stands.
        prefixes: prefixes that stored names may carry.
        ignored: regular expressions (full match, prefix taken off) of stored tensors that carry no weight.
        weights: the kind of all matrices, or "native".

    Raises:
        CheckpointError: two stored tensors have the same name once the prefix is taken off.
    """

    def __init__(
        self,
        where: str,
        store: TensorStore,
        sources: Mapping[str, Source],
        prefixes: tuple[str, ...],
        ignored: tuple[str, ...],
        weights: str,
    ) -> None:
        self._where = where
        self._store = store
        self._sources = sources
        self._ignored = ignored
        self._weights = weights
        self._stored: dict[str, StoredTensor] = {}
        for tensor in store.tensors.values():
            prefix = next((prefix for prefix in prefixes if tensor.name.startswith(prefix)), "")
            name = tensor.name[len(prefix) :]
            if name in self._stored:
                raise CheckpointError(f"{where}: both {tensor.name} and {self._stored[name].name} are stored")
            self._stored[name] = tensor
        if weights == "native":
            self._warn_of_inexact_kinds()
        else:
            self._warn_of_quantising_again()

    def kind_of(self, name: str, shape: tuple[int, ...]) -> str:
        """See `Checkpoint.kind_of`.

        Raises:
            RequestError: the kind's groups don't divide the weight's width.
        """
        stored = self._stored.get(self._sources[name].name)
        if len(shape) == 1 or stored is None or stored.kind is None:  # the latter two are for `check` to report
            return "fp32"
        kind = WEIGHT_KINDS[stored.kind if self._weights == "native" else self._weights]
        try:
            kind.check_shape(shape)
        except RequestError as error:
            raise RequestError(f"{self._where}: {name}: {error}") from error
        return kind.name

    def load(self, value: Value) -> WeightTensor:
        """See `Checkpoint.load`.

        Raises:
            RequestError: the share's columns cut a group, or the kind can't represent the elements.
            CheckpointError: elements of the share are NaN or infinite.
        """
        source, shape, kind = self._sources[value.name], value.static_shape, weight_kind(value.dtype)
        stored = self._stored[source.name]
        start = value.start or (0,) * len(shape)
        rows: Rows = slice(start[0], start[0] + shape[0])
        if source.rows is not None:
            rows = source.rows[rows]
        first, last, width = (start[1], start[1] + shape[1], value.full_shape[1]) if len(shape) == 2 else (0, 0, 0)
        kind.check_columns(first, last, width)

        step = stored.column_step
        same = stored.kind == kind.name
        if same and first % step == last % step == 0:
            found = self._read(stored, rows, slice(first, last), source.transpose, exact=False)
            chunks = [array[part] for array in _float_arrays(found) for part in row_chunks(array.shape)]
            if len(chunks) > 2:  # threads cost more than a vector is worth
                on_all_cores(lambda chunk: self._check_finite([chunk], stored), chunks)
            else:
                self._check_finite(chunks, stored)
            return found
        # A scale that belongs to the whole row is found from the whole row, so that values don't depend on the rank.
        wide = (0, width) if kind.scaled_by == "row" else (first // step * step, -(-last // step) * step)

        result = WeightTensor.empty(kind, shape)

        def convert(part: slice) -> None:
            chunk_rows = slice(start[0] + part.start, start[0] + part.stop) if isinstance(rows, slice) else rows[part]
            chunk = self._read(stored, chunk_rows, slice(*wide), source.transpose, exact=not same)
            self._check_finite(_float_arrays(chunk), stored)
            try:
                chunk = chunk.convert(kind)
            except RequestError as error:
                raise RequestError(f"{self._where}: {stored.name}: {error}") from error
            if len(shape) == 2:
                chunk = chunk.columns(first - wide[0], last - wide[0])
            result.rows(part).copy_from(chunk)

        on_all_cores(convert, row_chunks((shape[0], max(1, wide[1] - wide[0]))))
        return result

    def release(self) -> None:
        """See `Checkpoint.release`."""
        self._store.release()

    def _read(self, stored: StoredTensor, rows: Rows, columns: slice, transpose: bool, exact: bool) -> WeightTensor:
        try:
            return self._store.read(stored.name, rows, columns, transpose=transpose, exact=exact)
        except RequestError as error:
            if not (exact or stored.exact):  # it was quantised as it was read; is NaN the reason that it can't be?
                exactly = self._store.read(stored.name, rows, columns, transpose=transpose, exact=True)
                self._check_finite(_float_arrays(exactly), stored)
            raise RequestError(f"{self._where}: {stored.name}: {error}") from error

    def _check_finite(self, arrays: Iterable[Array], stored: StoredTensor) -> None:
        if not all(map(_is_finite, arrays)):
            raise CheckpointError(
                f"{self._where}: {stored.name} (stored as {stored.stored_as}) holds NaN or infinity, so the file is "
                "damaged or was badly converted; take another copy of it"
            )

    def check(self, weights: Iterable[Value]) -> None:
        """See `Checkpoint.check`.

        Raises:
            CheckpointError: naming the missing, misshapen and unexpected tensors.
        """
        missing: list[str] = []
        wrong: list[str] = []
        rows_needed: dict[str, int] = {}
        for value in weights:
            source = self._sources[value.name]
            stored = self._stored.get(source.name)
            if stored is None:
                missing.append(source.name)
                continue
            if stored.kind is None:
                wrong.append(f"{stored.name} is stored as {stored.stored_as}, which is not read")
                continue
            shape = value.full_shape or value.static_shape
            rows = shape[0] if source.rows is None else int(source.rows.max()) + 1
            found = stored.shape[::-1] if source.transpose else stored.shape
            if len(found) != len(shape) or found[1:] != shape[1:] or found[0] < rows:
                wanted = (rows, *shape[1:])
                wanted = wanted[::-1] if source.transpose else wanted
                wrong.append(f"{stored.name} has the shape {list(stored.shape)!r:.100}, not {list(wanted)}")
                continue
            rows_needed[source.name] = max(rows, rows_needed.get(source.name, 0))
        for name, rows in rows_needed.items():
            stored, axis = self._stored[name], -1 if self._is_transposed(name) else 0
            if stored.shape[axis] > rows:
                wrong.append(
                    f"{stored.name} has the shape {list(stored.shape)!r:.100}, of which only {rows} rows have a use"
                )

        named = {source.name for source in self._sources.values()}
        unexpected = [
            stored.name
            for name, stored in self._stored.items()
            if name not in named and not any(re.fullmatch(pattern, name) for pattern in self._ignored)
        ]
        problems = [
            f"{what} {few(names)}"
            for what, names in (
                ("does not hold", sorted(set(missing))),
                ("does not fit its configuration:", sorted(set(wrong))),
                ("holds tensors that the model does not have:", sorted(unexpected)),
            )
            if names
        ]
        if problems:
            raise CheckpointError(f"{self._where} {'; it '.join(problems)}")

    def _is_transposed(self, stored_name: str) -> bool:
        return any(source.transpose for source in self._sources.values() if source.name == stored_name)

    def _matrices(self) -> Iterator[StoredTensor]:
        """The stored matrices that the model uses."""
        used = {source.name for source in self._sources.values()}
        return (tensor for name, tensor in self._stored.items() if name in used and len(tensor.shape) == 2)

    def _warn_of_inexact_kinds(self) -> None:
        inexact = (tensor for tensor in self._matrices() if tensor.kind is not None and not tensor.exact)
        nearly = sorted({f"{tensor.stored_as} as {tensor.kind}" for tensor in inexact})
        if nearly:
            warnings.warn(
                f"{self._where}: held nearly, not exactly, as stored: {', '.join(nearly)}; "
                "--weights fp32 or bf16 keeps more of it",
                stacklevel=2,
            )

    def _warn_of_quantising_again(self) -> None:
        """Says it where weights of few bits get other few bits: the errors of both add up."""
        if weight_kind(self._weights).scaled_by == "none":
            return
        again = sorted(
            {
                tensor.stored_as
                for tensor in self._matrices()
                if tensor.kind not in (None, self._weights) and not (tensor.exact and _is_unscaled(tensor.kind))
            }
        )
        if again:
            warnings.warn(
                f"{self._where}: stored as {', '.join(again)} and quantised once more, to {self._weights}, which costs "
                "quality; --weights native keeps what is stored",
                stacklevel=2,
            )


_EXPONENTS: Mapping[Any, tuple[type[np.unsignedinteger[Any]], int]] = {
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, 0x7F),
}
"""The bits that are all set in NaN and infinity and nowhere else; e4m3fn has no infinity, and one NaN of each sign."""


def _float_arrays(tensor: WeightTensor) -> list[Array]:
    """Those of its arrays that may hold NaN."""
    arrays = (tensor.values, tensor.scales, tensor.minimums)
    return [array for array in arrays if array is not None and array.dtype in _EXPONENTS]


def _is_finite(array: Array) -> bool:
    bits, exponent = _EXPONENTS[array.dtype]
    return int((array.view(bits) & bits(exponent)).max(initial=0)) != exponent


def _is_unscaled(kind: str | None) -> bool:
    return kind is not None and WEIGHT_KINDS[kind].scaled_by == "none"
