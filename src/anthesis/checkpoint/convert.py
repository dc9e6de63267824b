"""Writes packed directories, a piece of a weight at a time, so that a model of any size takes little memory."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from struct import error as StructError  # noqa: N812
from typing import Any

import numpy as np

from anthesis.atomic import sync
from anthesis.checkpoint.checkpoint import Checkpoint
from anthesis.checkpoint.packed import (
    FORMAT,
    GGUF_TOKENIZER_NAME,
    MODEL_NAME,
    TOKENIZER_NAMES,
    VERSION,
    WEIGHTS_NAME,
    PackedModel,
    PackedWeight,
    Place,
    data_bytes,
    header_bytes,
    layout,
    parts,
)
from anthesis.errors import AnthesisError, CheckpointError, RequestError
from anthesis.models import trace
from anthesis.program.ir import Value
from anthesis.records import to_document

PIECE_ELEMENTS = 1 << 24
"""Elements of a weight that are in memory at once, 64 MiB of them in fp32."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        nbytes: of all files together.
        weights: of the program, in their kinds.
    """

    nbytes: int
    weights: list[Value]


def check_target(directory: Path) -> None:
    """Finds out before the work is done whether a directory can be made there.

    Raises:
        RequestError: something is there already, or there is no directory to make it in.
    """
    target = directory.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        what = "a directory with files in it" if target.is_dir() else "a file"
        raise RequestError(f"{directory} is {what}; name a directory that is empty or does not exist yet")
    if not target.parent.is_dir():
        raise RequestError(f"{directory}: there is no directory {target.parent}; make it first")


def write_packed(
    checkpoint: Checkpoint,
    directory: Path,
    weights: str,
    on_weight: Callable[[int, int], None] = lambda written, total: None,
) -> Written:
    """Writes a model into a directory that starts without any conversion; whole, or not at all.

    Args:
        checkpoint: open.
        directory: to be made; it may exist if it is empty.
        weights: the kind that the checkpoint was opened with.
        on_weight: called after each weight with (number written, number in all).

    Raises:
        RequestError: as `check_target`; also a kind that can't represent a weight, or another process writes there.
        CheckpointError: the checkpoint does not hold what the model needs.
        AnthesisError: the operating system can't write it.
    """
    check_target(directory)
    program = trace(checkpoint.config, "argmax", checkpoint.kind_of)
    values = program.of_kind("weight")
    checkpoint.check(values)
    target = directory.resolve()
    try:
        with _unfinished(target) as unfinished:
            tensors = {value.name: PackedWeight(value.dtype, value.static_shape) for value in values}
            _write_weights(unfinished / WEIGHTS_NAME, checkpoint, values, layout(tensors), on_weight)
            model = PackedModel(
                format=FORMAT,
                version=VERSION,
                model=checkpoint.description,
                family=checkpoint.family.name,
                is_random=checkpoint.is_random,
                weights=weights,
                config=to_document(checkpoint.config),
                tokenizer=_write_tokenizer(unfinished, checkpoint.tokenizer_source),
                tensors=tensors,
            )
            (unfinished / MODEL_NAME).write_text(json.dumps(to_document(model), indent=1, allow_nan=False), "utf-8")
            files = list(unfinished.iterdir())
            nbytes = sum(path.stat().st_size for path in files)
            for path in (*files, unfinished):
                sync(path)
            unfinished.rename(target)
            sync(target.parent)
    except OSError as error:
        raise AnthesisError(
            f"{directory} could not be written: {error.strerror or error}; nothing was left there"
        ) from error
    return Written(nbytes, values)


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """The directory that is to become the target, locked for this process; what a killed one left in it is gone."""
    place = target.with_name(f".{target.name}.unfinished")
    place.mkdir(exist_ok=True)
    opened = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(
                f"another process is writing {target}; wait for it, or name another directory"
            ) from error
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, place, ignore_errors=True)
            for left in place.iterdir():
                left.unlink()
            yield place
            undo.pop_all()
    finally:
        os.close(opened)


def _write_weights(
    path: Path,
    checkpoint: Checkpoint,
    values: list[Value],
    places: Mapping[str, Place],
    on_weight: Callable[[int, int], None],
) -> None:
    header = header_bytes(places)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # so that a disk that is too small is found out at once
            os.posix_fallocate(file.fileno(), 0, len(header) + data_bytes(places))
        file.write(header)
        for count, value in enumerate(values, start=1):
            for piece in _pieces(value):
                for name, array in parts(value.name, checkpoint.load(piece)):
                    place = places[name]
                    row_bytes = (place.end - place.begin) // place.shape[0]
                    file.seek(len(header) + place.begin + piece.start[0] * row_bytes)
                    file.write(np.ascontiguousarray(array).view(np.uint8).data)
            on_weight(count, len(values))


def _pieces(value: Value) -> Iterator[Value]:
    """Ranges of rows of a weight, as ranks have them."""
    shape = value.static_shape
    step = max(1, PIECE_ELEMENTS // (shape[1] if len(shape) == 2 else 1))
    for first in range(0, shape[0], step):
        rows = min(step, shape[0] - first)
        yield replace(value, shape=(rows, *shape[1:]), start=(first, 0)[: len(shape)], full_shape=shape)


def _write_tokenizer(directory: Path, source: Path | Mapping[str, Any] | None) -> tuple[str, ...]:
    """Writes the tokenizer's files; gives their names."""
    if source is None:
        return ()
    if isinstance(source, Path):
        names = tuple(name for name in TOKENIZER_NAMES if (source / name).is_file())
        for name in names:
            shutil.copyfile(source / name, directory / name)
        return names
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(None, str(source["general.architecture"]))
    for key, value in source.items():
        if key.startswith("tokenizer."):
            found = value.tolist() if isinstance(value, np.ndarray) else value
            if isinstance(found, list):
                writer.add_array(key, found)  # leaves out what is empty, which means the same
            else:
                is_wide = isinstance(found, int) and not 0 <= found < 2**32
                kinds = {bool: "BOOL", int: "INT64" if is_wide else "UINT32", float: "FLOAT64", str: "STRING"}
                writer.add_key_value(key, found, GGUFValueType[kinds[type(found)]])
    try:
        writer.write_header_to_file(directory / GGUF_TOKENIZER_NAME)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except StructError as error:
        raise CheckpointError(f"the tokenizer's metadata holds a number that no tokenizer has: {error}") from error
    finally:
        writer.close()
    return (GGUF_TOKENIZER_NAME,)
