"""What a data set is, and which reader its name asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anthesis.checkpoint.hub import looks_like_hub_id
from anthesis.errors import RequestError

SUFFIXES: Mapping[str, str] = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".txt": "text", ".text": "text",
    ".parquet": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row as it was read: a text, or the reason why there is none.

    Attributes:
        text: or None.
        error: or None; says where in the data set and what is wrong.
    """

    text: str | None
    error: str | None


class DataSet(Protocol):
    """Rows with a text each, read from the first to the last without holding them.

    Attributes:
        description: what people call it.
        column: where the texts stand; None in plain text, which has no columns.
        note: how the column came about, to be said aloud; None where it was chosen.
        identity: what of it the completions depend on, as plain JSON; equal for the same rows.
        num_rows: where that is known beforehand.
    """

    description: str
    column: str | None
    note: str | None
    identity: dict[str, Any]
    num_rows: int | None

    def rows(self, skip: int) -> Iterator[Row]:
        """The rows, without the first `skip`.

        Raises:
            DataSetError: the data set vanished, was changed, or can't be read any more.
        """
        ...

    def share_read(self) -> float | None:
        """How much of it has been read, 0 to 1; None where that is not known."""
        ...


def open_dataset(
    name: str, *, column: str | None = None, split: str | None = None, subset: str | None = None
) -> DataSet:
    """Finds a data set and the column with its texts; reads no more than its beginning.

    Args:
        name: a file (JSON lines, CSV, plain text, parquet), or a data set of the Hugging Face Hub.
        column: with the texts; None: the first that holds text.
        split: of a Hub data set; None: the only one, or train.
        subset: of a Hub data set that has several.

    Raises:
        RequestError: no such data set, an unknown format, or no such column.
        DataSetError: it can't be read.
        UnsupportedError: it needs an extra that is not installed.
    """
    path = Path(name).expanduser()
    kind = SUFFIXES.get(path.suffix.lower())
    if path.exists() or kind is not None or not looks_like_hub_id(name):
        if split is not None or subset is not None:
            raise RequestError(f"--split and --subset are for data sets of the Hub; {name} is a file")
        return _open_file(path, kind, column)
    from anthesis.dataset.hub import HubDataSet

    return HubDataSet(name, column, split, subset)


def _open_file(path: Path, kind: str | None, column: str | None) -> DataSet:
    if not path.exists():
        raise RequestError(f"{path}: no such data set; name a file, or a data set of the Hub as owner/name")
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no regular file, and a run that goes on must read it again"
        raise RequestError(f"{path} is {what}; name a file ({', '.join(SUFFIXES)})")
    if kind is None:
        raise RequestError(f"{path}: the format is not known by its name; known are: {', '.join(SUFFIXES)}")
    if kind == "parquet":
        from anthesis.dataset.hub import ParquetDataSet

        return ParquetDataSet(path, column)
    from anthesis.dataset.files import CsvFile, JsonFile, TextFile

    readers: dict[str, Callable[[Path, str | None], DataSet]] = {"json": JsonFile, "csv": CsvFile, "text": TextFile}
    return readers[kind](path, column)


def choose_column(
    where: str, column: str | None, is_text: Mapping[str, bool], looked_at: str
) -> tuple[str, str | None]:
    """The column with the texts, and a note that says how it was chosen.

    Args:
        where: what messages call the data set.
        column: as asked for, or None.
        is_text: for each column, in order, whether it holds text.
        looked_at: what was looked at to find that out.

    Returns:
        The column, and None if it was asked for.

    Raises:
        RequestError: no such column, or none with text.
    """
    names = _listed(is_text) or "none"
    if column is not None:
        if column not in is_text:
            raise RequestError(f"{where} has no column {column!r:.100} in {looked_at}; its columns are: {names}")
        return column, None
    texts = [name for name, text in is_text.items() if text]
    if not texts:
        raise RequestError(f"{where} has no column with text in {looked_at}; its columns are: {names}")
    others = _listed(name for name in is_text if name != texts[0])
    return texts[0], f"column {texts[0]:.100}, the first with text" + (f" (others: {others})" if others else "")


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 500 else f"{text[:497]}..."
