"""Parquet files, and what their columns have in common with data sets of the Hub: the types of Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from anthesis.dataset.read import Row, choose_column, no_rows, row_of_bytes, wrong_type
from anthesis.dataset.source import SourceFile
from anthesis.errors import DataSetError, UnsupportedError, first_line

CHUNK_ROWS = 4096
_CHUNK_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20


def needs_extra(error: ImportError) -> UnsupportedError:
    """The error of an installation without pyarrow or `datasets`."""
    return UnsupportedError(
        f"parquet files and data sets of the Hub need the extra datasets ({error}): pip install 'anthesis[datasets]'"
    )


class ParquetDataSet:
    """A parquet file, read a few rows at a time: see `DataSet`.

    Args:
        path: the file.
        column: as asked for, or None.

    Raises:
        RequestError: no such column, or no rows.
        DataSetError: the file is damaged.
        UnsupportedError: the extra is not installed.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise needs_extra(error) from error
        self._source = SourceFile(path)
        # names that are not UTF-8 are found out by Python
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
        try:
            file = ParquetFile(path)
            is_text = {field.name: is_text_type(field.type) for field in file.schema_arrow}
            chosen, self.note = choose_column(str(path), column, is_text, "its schema")
            # a text that a million rows share is held once, as it is in the file
            shared = [chosen] if is_text[chosen] else None
            self._file: Any = ParquetFile(
                path, metadata=file.metadata, read_dictionary=shared, buffer_size=_BUFFER_BYTES
            )
        except self._errors as error:
            raise DataSetError(f"{path}: {first_line(error)}") from error
        self.description = path.name
        self.column: str | None = chosen
        self.num_rows: int | None = int(self._file.metadata.num_rows)
        self.identity = self._source.identity(chosen)
        if not self.num_rows:
            raise no_rows(str(path))

    def rows(self, skip: int, step: int = 1) -> Iterator[Row]:
        """See `DataSet.rows`.

        Raises:
            DataSetError: the file can't be read any more, or was changed.
        """
        for number, cells in self._chunks(skip):
            self._source.check_unchanged()
            behind = (number - skip) % step  # a row that is asked for
            yield from rows_of_cells(cells, number, self.column, str(self._source.path), -behind % step, step)

    def check_unchanged(self) -> None:
        """See `DataSet.check_unchanged`."""
        self._source.check_unchanged()

    def share_read(self) -> float | None:
        """See `DataSet.share_read`; the number of rows is known."""
        return None

    def _chunks(self, skip: int) -> Iterator[tuple[int, Any]]:
        """The cells of a few rows that follow each other, and the number of the first."""
        number = 0
        try:
            for group in range(self._file.num_row_groups):
                in_group = self._file.metadata.row_group(group)
                if number + in_group.num_rows <= skip:
                    number += in_group.num_rows
                    continue
                rows = _CHUNK_BYTES * in_group.num_rows // max(1, in_group.total_byte_size)
                rows = max(1, min(CHUNK_ROWS, rows))
                for chunk in self._file.iter_batches(rows, row_groups=[group], columns=[self.column]):
                    skipped = max(0, skip - number)
                    yield number + skipped, chunk.column(0)[skipped:]
                    number += chunk.num_rows
        except self._errors as error:
            raise DataSetError(f"{self._source.path}: row {number} can't be read: {first_line(error)}") from error


def is_text_type(kind: Any) -> bool:
    """Whether Arrow holds texts in a column of this type; a categorical one has the type of its values."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def rows_of_cells(
    cells: Any, first: int, column: str | None, where: str, skip: int = 0, step: int = 1
) -> Iterator[Row]:
    """The rows of an Arrow array, of which one text at a time becomes Python's, and no more of it than is looked at.

    Args:
        cells: an array or a chunked array.
        first: the number of its first row.
        column: what messages call it.
        where: what messages call the data set.
        skip, step: which of them, as `DataSet.rows`.

    Raises:
        DataSetError: a cell is damaged: a place in a dictionary that it does not have.
    """
    import pyarrow

    for number, cell in islice(enumerate(cells, first), skip, None, step):
        try:
            value = cell.value if isinstance(cell, pyarrow.DictionaryScalar) else cell
        except pyarrow.ArrowException as error:
            raise DataSetError(f"{where}: row {number} can't be read: {first_line(error)}") from error
        if value is None or not value.is_valid:
            yield wrong_type(f"row {number}", "null", column)
        elif isinstance(value, pyarrow.StringScalar):
            yield row_of_bytes(value.as_buffer(), f"row {number}")
        else:
            yield wrong_type(f"row {number}", f"a value of type {value.type!s:.100}", column)
