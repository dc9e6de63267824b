"""Data sets in files of lines: JSON lines, CSV, plain text. A row that is broken is a row with an error.

JSON lines: a row for each line that is not blank. CSV (RFC 4180; commas, semicolons, tabs or bars): a header, then a
row for each record. Plain text: a row for each line.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from anthesis.dataset.csv_records import CsvRecords, Record
from anthesis.dataset.lines import TOO_LONG, LineFile
from anthesis.dataset.read import MAX_COLUMNS, Row, choose_column, no_rows, row_of_bytes, wrong_type
from anthesis.dataset.source import SourceFile
from anthesis.errors import DataSetError, RequestError
from anthesis.json_text import parse_json, type_name
from anthesis.units import counted

LOOKED_AT_ROWS = 100
"""Rows in which the columns are looked for."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = b",;\t|"
_QUOTED = re.compile(rb'(?<![^,;\t|\n])"[^"]*(?:""[^"]*)*"?')
_NUMBER = re.compile(rb"[-+]?[\d.,]*(?:[eE][-+]?\d+)?%?")


class _LinesDataSet(ABC):
    """What the formats share: see `DataSet`.

    Args:
        path: a regular file.
        column: as asked for, or None.

    Raises:
        RequestError: no such column, or no rows.
        DataSetError: the file can't be read, or is no text.
    """

    num_rows: int | None = None

    def __init__(self, path: Path, column: str | None) -> None:
        self._path = path
        self._source = SourceFile(path)
        self._file: LineFile | None = None
        self.description = path.name
        if self._source.beginning.startswith(_UTF16):
            raise DataSetError(f"{path} is UTF-16; convert it to UTF-8, for instance with iconv")
        self.column, self.note = self._find_column(column)
        self.identity = self._source.identity(self.column)

    def rows(self, skip: int, step: int = 1) -> Iterator[Row]:
        """See `DataSet.rows`."""
        with LineFile(self._source) as self._file:
            yield from self._parsed(self._file, skip, step)

    def check_unchanged(self) -> None:
        """See `DataSet.check_unchanged`."""
        self._source.check_unchanged()

    def share_read(self) -> float | None:
        """See `DataSet.share_read`."""
        if self._file is None or not self._source.size:
            return None
        return min(1.0, self._file.position / self._source.size)

    @abstractmethod
    def _find_column(self, column: str | None) -> tuple[str | None, str]: ...

    @abstractmethod
    def _parsed(self, lines: LineFile, skip: int, step: int) -> Iterator[Row]: ...

    def _none_readable(self, errors: list[str]) -> RequestError:
        return RequestError(
            f"{self._path}: none of the first {len(errors)} rows can be read, so no column with text was found "
            f"({errors[0]}); name one with --column, and such rows are noted as failed"
        )


class JsonFile(_LinesDataSet):
    """JSON lines: an object on each."""

    def _find_column(self, column: str | None) -> tuple[str | None, str]:
        if self._source.beginning.lstrip().startswith(b"["):
            raise RequestError(
                f"{self._path} begins a JSON array; JSON lines are needed, one object on each line: "
                "`jq -c '.[]'` makes them"
            )
        is_text: dict[str, bool] = {}
        num_rows, errors = 0, []
        with LineFile(self._source) as lines:
            for line in islice(_not_blank(lines), LOOKED_AT_ROWS):
                num_rows += 1
                found, error = _object(line, f"line {lines.number}")
                errors += [] if error is None else [error]  # told row by row
                for key, value in found.items():
                    is_text[key] = is_text.get(key, False) or isinstance(value, str)
                if len(is_text) > MAX_COLUMNS:
                    break
        if not num_rows:
            raise no_rows(str(self._path))
        if column is not None and len(errors) == num_rows:
            is_text = {column: True}  # which nothing speaks against
        elif len(errors) == num_rows:
            raise self._none_readable(errors)
        return choose_column(str(self._path), column, is_text, f"its first {LOOKED_AT_ROWS} rows")

    def _parsed(self, lines: LineFile, skip: int, step: int) -> Iterator[Row]:
        for line in islice(_not_blank(lines), skip, None, step):
            where = f"line {lines.number}"
            found, error = _object(line, where)
            if error is not None:
                yield Row(None, error)
            elif self.column not in found:
                yield Row(None, f"{where} has no {self.column!r:.100}")
            else:
                text = found[self.column]
                yield Row(text, None) if isinstance(text, str) else wrong_type(where, type_name(text), self.column)


class TextFile(_LinesDataSet):
    """Plain text: each line is a row, blank ones too."""

    def _find_column(self, column: str | None) -> tuple[str | None, str]:
        if column is not None:
            raise RequestError(f"{self._path} is plain text, which has no column {column!r:.100}; leave --column out")
        if not self._source.size:
            raise no_rows(str(self._path))
        return None, "each line of the text is a row"

    def _parsed(self, lines: LineFile, skip: int, step: int) -> Iterator[Row]:
        for line in islice(lines, skip, None, step):
            where = f"line {lines.number}"
            yield Row(None, f"{where} is {TOO_LONG}") if line is None else row_of_bytes(line, where)


class CsvFile(_LinesDataSet):
    """CSV with a header."""

    def _find_column(self, column: str | None) -> tuple[str | None, str]:
        self._delimiter = b"\t" if self._path.suffix.lower() == ".tsv" else _likely_delimiter(self._source.beginning)
        with LineFile(self._source) as lines:
            records = CsvRecords(lines, self._delimiter)
            self._names = self._column_names(next(records, Record("it", [], "is empty")))
            is_text = dict.fromkeys(self._names, False)
            num_rows, errors = 0, []
            for record in islice(records, LOOKED_AT_ROWS):
                num_rows += 1
                error = self._error(record)
                if error is not None:
                    errors.append(error)
                    continue
                for name, field in zip(self._names, record.fields, strict=True):
                    is_text[name] |= _NUMBER.fullmatch(field.strip()) is None
        if not num_rows:
            raise no_rows(str(self._path), "a header and no rows")
        if column is None and len(errors) == num_rows:
            raise self._none_readable(errors)
        return choose_column(str(self._path), column, is_text, "its header")

    def _column_names(self, header: Record) -> list[str]:
        if not any(header.fields) or header.error is not None:
            reason = f"{header.where} {header.error or 'names none'}"
            raise DataSetError(f"{self._path} has no header with the names of its columns: {reason}")
        try:
            names = [field.decode().strip() for field in header.fields]
        except UnicodeDecodeError as error:
            raise DataSetError(f"{self._path}: the header is not UTF-8; convert the file") from error
        if len(set(names)) != len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise DataSetError(f"{self._path} has two columns of one name in its header: {twice!r:.100}")
        return names

    def _error(self, record: Record) -> str | None:
        if record.error is not None:
            return f"{record.where} {record.error}"
        num_fields = len(record.fields)
        if num_fields != len(self._names):
            return f"{record.where} has {counted(num_fields, 'field')} where the header has {len(self._names)}"
        return None

    def _parsed(self, lines: LineFile, skip: int, step: int) -> Iterator[Row]:
        place = self._names.index(self.column or "")
        for record in islice(CsvRecords(lines, self._delimiter), 1 + skip, None, step):
            error = self._error(record)
            yield Row(None, error) if error is not None else row_of_bytes(record.fields[place], record.where)


def _not_blank(lines: LineFile) -> Iterator[bytes | None]:
    return (line for line in lines if line is None or line.strip())


def _object(line: bytes | None, where: str) -> tuple[dict[str, Any], str | None]:
    """The object on a line, or an empty one and what is wrong."""
    if line is None:
        return {}, f"{where} is {TOO_LONG}"
    try:
        found = parse_json(line)
    except ValueError as error:
        return {}, f"{where} is {error}"
    return (found, None) if isinstance(found, dict) else ({}, f"{where} is {type_name(found)}; an object is needed")


def _likely_delimiter(beginning: bytes) -> bytes:
    """What the header has most of outside quotes; of equals the first."""
    header = _QUOTED.sub(b"", beginning).split(b"\n", 1)[0]
    return bytes([max(_DELIMITERS, key=header.count)])
