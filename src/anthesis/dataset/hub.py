"""Parquet files, and data sets of the Hugging Face Hub: what the extra `datasets` brings.

A data set of the Hub is downloaded once into the cache of the `datasets` library, as a file that is mapped, not read;
from then on it needs no network (HF_DATASETS_OFFLINE=1 or HF_HUB_OFFLINE=1 don't even ask). Code that comes with a data
set is never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anthesis.dataset.read import Row, choose_column
from anthesis.errors import DataSetError, RequestError, UnsupportedError
from anthesis.fingerprint import sampled_sha256
from anthesis.json_text import type_name

CHUNK_ROWS = 256
_CONVERTED = "refs/convert/parquet"
"""Where the Hub keeps its own parquet copy of a data set that comes as a program."""


def _needs_extra(error: ImportError) -> UnsupportedError:
    return UnsupportedError(
        f"parquet files and data sets of the Hub need the extra datasets ({error}): pip install 'anthesis[datasets]'"
    )


class ParquetDataSet:
    """A parquet file, read a few rows at a time: see `DataSet`.

    Args:
        path: the file.
        column: as asked for, or None.

    Raises:
        RequestError: no such column.
        DataSetError: the file is damaged.
        UnsupportedError: the extra is not installed.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
            import pyarrow.types as types
        except ImportError as error:
            raise _needs_extra(error) from error
        self._path = path
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
        try:
            self._file: Any = pyarrow.parquet.ParquetFile(path)
            schema = self._file.schema_arrow
            fingerprint = sampled_sha256(path)
        except self._errors as error:
            raise DataSetError(f"{path}: {_first_line(error)}") from error
        is_text = {field.name: types.is_string(field.type) or types.is_large_string(field.type) for field in schema}
        self.description = path.name
        chosen, self.note = choose_column(str(path), column, is_text, "its schema")
        self.column: str | None = chosen
        self.num_rows: int | None = int(self._file.metadata.num_rows)
        self.identity: dict[str, Any] = {"name": path.name, "column": chosen, "sampled_sha256": fingerprint}
        if not self.num_rows:
            raise RequestError(f"{path} has no rows; there is nothing to complete")

    def rows(self, skip: int) -> Iterator[Row]:
        """See `DataSet.rows`.

        Raises:
            DataSetError: the file can't be read any more.
        """
        number = 0
        try:
            for group in range(self._file.num_row_groups):
                in_group = self._file.metadata.row_group(group).num_rows
                if number + in_group <= skip:
                    number += in_group
                    continue
                for chunk in self._file.iter_batches(CHUNK_ROWS, row_groups=[group], columns=[self.column]):
                    for value in chunk.column(0).to_pylist():
                        if number >= skip:
                            yield _row(value, number, self.column)
                        number += 1
        except self._errors as error:
            raise DataSetError(f"{self._path}: row {number} can't be read: {_first_line(error)}") from error

    def share_read(self) -> float | None:
        """See `DataSet.share_read`; the number of rows is known."""
        return None


class HubDataSet:
    """A data set of the Hub: see `DataSet`.

    Args:
        name: `owner/name` or `name`.
        column: as asked for, or None.
        split: None: the only one, or train.
        subset: None: the only one.

    Raises:
        RequestError: no such data set, split, subset or column; or it is private.
        DataSetError: it can't be fetched or read.
        UnsupportedError: the extra is not installed.
    """

    def __init__(self, name: str, column: str | None, split: str | None, subset: str | None) -> None:
        try:
            import datasets
        except ImportError as error:
            raise _needs_extra(error) from error
        self.description = name + (f", subset {subset}" if subset else "")
        self._data: Any = _load(datasets, name, subset, split)
        is_text = {
            key: isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
            for key, feature in self._data.features.items()
        }
        chosen, note = choose_column(name, column, is_text, "its features")
        self.column: str | None = chosen
        self.note: str | None = f"split {self._data.split}; {note or f'column {chosen}'}"
        self.num_rows: int | None = len(self._data)
        if not self.num_rows:
            raise RequestError(f"{name} has no rows; there is nothing to complete")
        self.identity: dict[str, Any] = {
            "name": name,
            "subset": subset,
            "split": str(self._data.split),
            "column": chosen,
            "num_rows": self.num_rows,
            "fingerprint": str(self._data._fingerprint),
        }

    def rows(self, skip: int) -> Iterator[Row]:
        """See `DataSet.rows`.

        Raises:
            DataSetError: the cache can't be read any more.
        """
        texts = self._data.select_columns([self.column])
        for start in range(skip, len(texts), CHUNK_ROWS):
            try:
                values = texts[start : start + CHUNK_ROWS][self.column]
            except OSError as error:
                raise DataSetError(f"{self.description}: row {start} can't be read: {_first_line(error)}") from error
            for number, value in enumerate(values, start):
                yield _row(value, number, self.column)

    def share_read(self) -> float | None:
        """See `DataSet.share_read`; the number of rows is known."""
        return None


def _load(datasets: Any, name: str, subset: str | None, split: str | None) -> Any:
    """One split, mapped from the cache of the library, which fetches what it lacks."""
    try:
        try:
            found = datasets.load_dataset(name, subset)
        except RuntimeError as error:  # a program, which no version of ours would run
            if "script" not in str(error):
                raise
            found = datasets.load_dataset(name, subset, revision=_CONVERTED)
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        raise RequestError(
            f"there is no file and no data set of the Hub {name!r}, or it is private or gated: check the name; for a "
            "private one set HF_TOKEN"
        ) from error
    except (ValueError, RuntimeError) as error:  # an unknown subset; damaged files
        raise RequestError(f"{name}: {_first_line(error)}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise DataSetError(
            f"{name} is not (completely) in the cache of data sets and could not be fetched ({_first_line(error)}): "
            "check the connection, or name a file"
        ) from error
    splits = list(found)
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in found:
        raise RequestError(f"{name} has no split {split!r}; choose with --split: {', '.join(splits)}")
    return found[split]


def _row(value: Any, number: int, column: str | None) -> Row:
    if isinstance(value, str):
        return Row(value, None)
    return Row(None, f"row {number} has {type_name(value)} as {column!r}; a text is needed")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
