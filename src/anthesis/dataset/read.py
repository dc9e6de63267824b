"""What a data set is, and which reader its name asks for."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anthesis.checkpoint.hub import looks_like_hub_id
from anthesis.errors import RequestError, few

SUFFIXES: Mapping[str, str] = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".txt": "text", ".text": "text",
    ".parquet": "parquet",
}  # fmt: skip
COMPRESSED: Mapping[str, str] = {
    ".gz": "gunzip -k", ".zst": "zstd -d", ".xz": "unxz -k", ".bz2": "bunzip2 -k", ".zip": "unzip",
}  # fmt: skip
"""By suffix, what decompresses such a file."""

MAX_TEXT_BYTES = 8 << 20
"""Several times the longest prompt. A longer line or record is not read; a longer text in a typed column is cut."""

MAX_COLUMNS = 1 << 16
MOST_NAMES = 20
"""In a message."""


@dataclass(frozen=True)
class Row:
    """A row as it was read: a text, or the reason why there is none.

    Attributes:
        text: or None; at most `MAX_TEXT_BYTES` of UTF-8.
        error: or None; says where in the data set and what is wrong.
    """

    text: str | None
    error: str | None


class DataSet(Protocol):
    """Rows with a text each, read from the first to the last without holding them.

    Attributes:
        description: what people call it.
        column: where the texts stand; None in plain text, which has no columns.
        note: which column it is and how it came about, to be said aloud.
        identity: what of it the completions depend on, as plain JSON; equal for the same rows.
        num_rows: where that is known beforehand.
    """

    description: str
    column: str | None
    note: str
    identity: dict[str, Any]
    num_rows: int | None

    def rows(self, skip: int, step: int = 1) -> Iterator[Row]:
        """The rows skip, skip + step, skip + 2 step and so on.

        Raises:
            DataSetError: the data set vanished, was changed, or can't be read any more.
        """
        ...

    def check_unchanged(self) -> None:
        """Makes sure that the rows that were read are those of `identity`, without waiting for the last one.

        Raises:
            DataSetError: the data set vanished or was changed.
        """
        ...

    def share_read(self) -> float | None:
        """How much of it has been read, 0 to 1; None where that is not known."""
        ...


def open_dataset(
    name: str, *, column: str | None = None, split: str | None = None, subset: str | None = None
) -> DataSet:
    """Finds a data set and the column with its texts; reads no more than its beginning, and its fingerprint.

    Args:
        name: a file (JSON lines, CSV, plain text, parquet), or a data set of the Hugging Face Hub.
        column: with the texts; None: the first that holds text.
        split: of a Hub data set; None: the only one, or train.
        subset: of a Hub data set that has several.

    Raises:
        RequestError: no such data set, an unknown format, no such column, or no rows.
        DataSetError: it can't be read.
        UnsupportedError: it needs an extra that is not installed.
    """
    path = Path(name).expanduser()
    if path.exists() or _looks_like_file(path) or not looks_like_hub_id(name):
        if split is not None or subset is not None:
            raise RequestError(f"--split and --subset are for data sets of the Hub; {name} is a file")
        return _open_file(path, column)
    from anthesis.dataset.hub import HubDataSet

    return HubDataSet(name, column, split, subset)


def _looks_like_file(path: Path) -> bool:
    """Whether it ends as a data file does, compressed or not."""
    uncompressed = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return uncompressed.suffix.lower() in SUFFIXES


def _open_file(path: Path, column: str | None) -> DataSet:
    suffix = path.suffix.lower()
    if not path.exists():
        hint = "check the path" if _looks_like_file(path) else "name a file, or a data set of the Hub as owner/name"
        raise RequestError(f"{path}: no such data set: there is no such file; {hint}")
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no regular file, and a run that goes on must read it again"
        raise RequestError(f"{path} is {what}; name a file ({', '.join(SUFFIXES)})")
    if suffix in COMPRESSED:
        raise RequestError(f"{path} is compressed; decompress it first, for instance with `{COMPRESSED[suffix]}`")
    if suffix not in SUFFIXES:
        raise RequestError(f"{path}: the format is not known by its name; known are: {', '.join(SUFFIXES)}")
    if SUFFIXES[suffix] == "parquet":
        from anthesis.dataset.parquet import ParquetDataSet

        return ParquetDataSet(path, column)
    from anthesis.dataset.files import CsvFile, JsonFile, TextFile

    readers: dict[str, Callable[[Path, str | None], DataSet]] = {"json": JsonFile, "csv": CsvFile, "text": TextFile}
    return readers[SUFFIXES[suffix]](path, column)


def choose_column(where: str, column: str | None, is_text: Mapping[str, bool], looked_at: str) -> tuple[str, str]:
    """The column with the texts, and a note that says how it was chosen.

    Args:
        where: what messages call the data set.
        column: as asked for, or None.
        is_text: for each column, in order, whether it holds text.
        looked_at: what was looked at to find that out.

    Raises:
        RequestError: no such column, or none with text.
    """
    names = quoted(is_text) or "none"
    if column is not None:
        if column not in is_text:
            raise RequestError(f"{where} has no column {column!r:.100} in {looked_at}; its columns are: {names}")
        return column, f"column {column!r:.100}"
    texts = [name for name, text in is_text.items() if text]
    if not texts:
        raise RequestError(f"{where} has no column with text in {looked_at}; its columns are: {names}")
    others = quoted(name for name in is_text if name != texts[0])
    return texts[0], f"column {texts[0]!r:.100}, the first with text" + (f" (others: {others})" if others else "")


def quoted(names: Iterable[str]) -> str:
    """The first of some names that somebody else chose, each as Python writes a string: control characters escaped."""
    return few([f"{name!r:.60}" for name in names], MOST_NAMES)


def no_rows(where: str, has: str = "no rows") -> RequestError:
    """The error of a data set without rows."""
    return RequestError(f"{where} has {has}; there is nothing to complete")


def row_of_bytes(data: Any, where: str) -> Row:
    """The row of a text in UTF-8, of which no more than `MAX_TEXT_BYTES` are looked at.

    Args:
        data: bytes, or another buffer of them.
        where: in the data set it stands.
    """
    view = memoryview(data)
    try:
        # of a text that is cut, the last character may be cut too, which is then left out
        text, _ = codecs.utf_8_decode(view[:MAX_TEXT_BYTES], "strict", len(view) <= MAX_TEXT_BYTES)
    except UnicodeDecodeError as error:
        return Row(None, f"{where} is not UTF-8: {error.reason} at byte {error.start}")
    return Row(text, None)


def wrong_type(where: str, seen: str, column: str | None) -> Row:
    """The row of a value that is no text."""
    return Row(None, f"{where} has {seen} as {column!r:.100}; a text is needed")
