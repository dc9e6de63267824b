"""Data sets in files of lines: JSON lines, CSV, plain text. A row that is broken is a row with an error.

JSON lines: a row for each line that is not blank. CSV (RFC 4180; commas, semicolons, tabs or bars): a header, then a
row for each record. Plain text: a row for each line.
"""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from anthesis.dataset.lines import MAX_LINE_BYTES, LineFile
from anthesis.dataset.read import Row, choose_column
from anthesis.errors import DataSetError, RequestError
from anthesis.fingerprint import sampled_sha256
from anthesis.json_text import parse_json, type_name

LOOKED_AT_ROWS = 100
"""Rows in which the columns are looked for."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"[-+]?[\d.,]*(?:[eE][-+]?\d+)?%?")
_TOO_LONG = f"longer than {MAX_LINE_BYTES:,} bytes"


class _LinesDataSet(ABC):
    """What the formats share: see `DataSet`.

    Args:
        path: a regular file.
        column: as asked for, or None.

    Raises:
        RequestError: no such column.
        DataSetError: the file can't be read, or is no text.
    """

    num_rows: int | None = None

    def __init__(self, path: Path, column: str | None) -> None:
        self._path = path
        self._file: LineFile | None = None
        self.description = path.name
        try:
            with path.open("rb") as file:
                beginning = file.read(2)
            fingerprint = sampled_sha256(path)
        except OSError as error:
            raise DataSetError(f"{path}: {error.strerror or error}") from error
        if beginning in _UTF16:
            raise DataSetError(f"{path} is UTF-16; convert it to UTF-8, for instance with iconv")
        self.column, self.note = self._find_column(column)
        self.identity: dict[str, Any] = {"name": path.name, "column": self.column, "sampled_sha256": fingerprint}

    def rows(self, skip: int) -> Iterator[Row]:
        """See `DataSet.rows`."""
        with LineFile(self._path) as self._file:
            yield from self._parsed(self._file, skip)

    def share_read(self) -> float | None:
        """See `DataSet.share_read`."""
        if self._file is None or not self._file.size:
            return None
        return min(1.0, self._file.position / self._file.size)

    @abstractmethod
    def _find_column(self, column: str | None) -> tuple[str | None, str | None]: ...

    @abstractmethod
    def _parsed(self, lines: LineFile, skip: int) -> Iterator[Row]: ...


class JsonFile(_LinesDataSet):
    """JSON lines: an object on each."""

    def _find_column(self, column: str | None) -> tuple[str | None, str | None]:
        is_text: dict[str, bool] = {}
        with LineFile(self._path) as lines:
            for line in islice(_not_blank(lines), LOOKED_AT_ROWS):
                if lines.number == 1 and line is not None and line.lstrip()[:1] == b"[":
                    raise RequestError(
                        f"{self._path} begins a JSON array; JSON lines are needed, one object on each line: "
                        "`jq -c '.[]'` makes them"
                    )
                try:
                    found = None if line is None else parse_json(line)
                except ValueError:
                    continue  # told row by row
                for key, value in found.items() if isinstance(found, dict) else ():
                    is_text[key] = is_text.get(key, False) or isinstance(value, str)
        if not is_text and lines.position == 0:
            raise RequestError(f"{self._path} is empty; there is nothing to complete")
        return choose_column(str(self._path), column, is_text, f"its first {LOOKED_AT_ROWS} rows")

    def _parsed(self, lines: LineFile, skip: int) -> Iterator[Row]:
        for line in islice(_not_blank(lines), skip, None):
            if line is None:
                yield Row(None, f"line {lines.number} is {_TOO_LONG}")
                continue
            try:
                found = parse_json(line)
            except ValueError as error:
                yield Row(None, f"line {lines.number} is {error}")
                continue
            yield self._row(found, lines.number)

    def _row(self, found: Any, number: int) -> Row:
        if not isinstance(found, dict):
            return Row(None, f"line {number} is {type_name(found)}; an object is needed")
        if self.column not in found:
            return Row(None, f"line {number} has no {self.column!r}")
        text = found[self.column]
        if not isinstance(text, str):
            return Row(None, f"line {number} has {type_name(text)} as {self.column!r}; a text is needed")
        return Row(text, None)


class TextFile(_LinesDataSet):
    """Plain text: each line is a row, blank ones too."""

    def _find_column(self, column: str | None) -> tuple[str | None, str | None]:
        if column is not None:
            raise RequestError(f"{self._path} is plain text, which has no column {column!r}; leave --column out")
        if self._path.stat().st_size == 0:
            raise RequestError(f"{self._path} is empty; there is nothing to complete")
        return None, "each line of the text is a row"

    def _parsed(self, lines: LineFile, skip: int) -> Iterator[Row]:
        for line in islice(lines, skip, None):
            if line is None:
                yield Row(None, f"line {lines.number} is {_TOO_LONG}")
                continue
            try:
                yield Row(line.decode(), None)
            except UnicodeDecodeError as error:
                yield Row(None, f"line {lines.number} is not UTF-8: {error.reason} at byte {error.start}")


class CsvFile(_LinesDataSet):
    """CSV with a header."""

    def _find_column(self, column: str | None) -> tuple[str | None, str | None]:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        with LineFile(self._path) as lines:
            header = next(iter(lines), b"")
            if header is None:
                raise DataSetError(f"{self._path}: the header is {_TOO_LONG}")
            # the delimiter is what the header has most of; of equals the first
            self._delimiter = max(_DELIMITERS, key=lambda sign: header.count(sign.encode()))
        with LineFile(self._path) as lines:
            records = _Records(lines, self._delimiter)
            names, error = next(records, ([], None))
            if error is not None or not any(names):
                raise DataSetError(
                    f"{self._path} has no header with the names of its columns: {error or 'it is empty'}"
                )
            if len(set(names)) != len(names):
                twice = Counter(names).most_common(1)[0][0]
                raise DataSetError(f"{self._path} has two columns of one name in its header: {twice!r:.100}")
            if any(_surrogates(name) for name in names):
                raise DataSetError(f"{self._path}: the header is not UTF-8; convert the file")
            self._names = names
            is_text = dict.fromkeys(names, False)
            for fields, error in islice(records, LOOKED_AT_ROWS):
                if error is None and len(fields) == len(names):
                    for name, field in zip(names, fields, strict=True):
                        is_text[name] |= _NUMBER.fullmatch(field.strip()) is None
        return choose_column(str(self._path), column, is_text, "its header")

    def _parsed(self, lines: LineFile, skip: int) -> Iterator[Row]:
        place = self._names.index(self.column or "")
        records = _Records(lines, self._delimiter)
        for fields, error in islice(records, 1 + skip, None):
            where = f"line {lines.number}"
            if error is not None:
                yield Row(None, f"{where}: {error}")
            elif len(fields) != len(self._names):
                yield Row(None, f"{where}: {len(fields)} fields, and the header has {len(self._names)}")
            elif _surrogates(fields[place]):
                yield Row(None, f"{where} is not UTF-8")
            else:
                yield Row(fields[place], None)


class _Records:
    """The records of a CSV file, each with None or with what is wrong with it; blank lines are none."""

    def __init__(self, lines: LineFile, delimiter: str) -> None:
        self._lines = lines
        self._record_bytes = 0
        self._reader = csv.reader(_Texts(self), delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[tuple[list[str], str | None]]:
        return self

    def __next__(self) -> tuple[list[str], str | None]:
        while True:
            self._record_bytes = 0
            try:
                fields = next(self._reader)
            except csv.Error as error:
                return [], f"not valid CSV: {error}"
            if fields:
                return fields, None

    def line(self) -> str:
        """The next line, for the CSV reader, which goes on after an error with the line that follows."""
        line = next(self._lines)
        self._record_bytes += 0 if line is None else len(line)
        if line is None or self._record_bytes > MAX_LINE_BYTES:
            raise csv.Error(f"a record is {_TOO_LONG}; is a quote not closed?")
        return line.decode("utf-8", "surrogateescape") + "\n"  # told of the field that is asked for


class _Texts:
    """An iterator that an error does not end, as it would end a generator."""

    def __init__(self, records: _Records) -> None:
        self._records = records

    def __iter__(self) -> _Texts:
        return self

    def __next__(self) -> str:
        return self._records.line()


def _not_blank(lines: LineFile) -> Iterator[bytes | None]:
    return (line for line in lines if line is None or line.strip())


def _surrogates(text: str) -> bool:
    """Whether there are bytes in it that were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
