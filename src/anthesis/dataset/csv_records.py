"""The records of a CSV file (RFC 4180). One that is broken costs its first line; reading goes on in the next one.

So a quote that nobody closed costs one row and not all that follow. The lines behind it are then read once more, as
records of their own. What was found out about them is kept, or a file full of such quotes would be read as often as it
has lines: a line between two quotes means the same to every quote that was opened before it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from anthesis.dataset.lines import TOO_LONG, LineFile
from anthesis.dataset.read import MAX_COLUMNS, MAX_TEXT_BYTES

MAX_RECORD_LINES = 1 << 17
"""So that lines of two bytes don't take much more memory than they have bytes."""

_QUOTES = re.compile(rb'"+')
_TOO_MANY = f"there are more than {MAX_COLUMNS:,} fields"
_OPEN = "a quote is not closed"
_END = b"\n"  # which no line holds


class Record(NamedTuple):
    """A record.

    Attributes:
        where: the lines it stands in.
        fields: as bytes.
        error: or None; goes on behind `where`.
    """

    where: str
    fields: list[bytes]
    error: str | None


class CsvRecords:
    """An iterator over the records, the header too; blank lines are none.

    Args:
        lines: the file's, from its beginning.
        delimiter: a byte.
    """

    def __init__(self, lines: LineFile, delimiter: bytes) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._number = 0
        """Of the line that was taken last."""
        self._ahead: deque[bytes | None] = deque()
        """The lines after it that were looked at."""
        self._ahead_bytes = 0
        self._open_to = 0
        """A quote that is open at the beginning of a line in `_ahead` is open at the end of this one too."""
        self._reopened = 0
        """The last of those lines in which one field was closed and another one opened."""
        self._fault: str | None = None
        """Why a quote that is open at the end of `_open_to` is never closed as it should be; None: not known yet."""

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        """The next record.

        Raises:
            DataSetError: the file can't be read, or was changed meanwhile.
        """
        line = self._take()
        while line is not None and not line:
            line = self._take()
        where = f"line {self._number}"
        if line is None:
            return Record(where, [], f"is {TOO_LONG}")
        fields, error = self._parsed(line)
        if error == _OPEN:
            return self._continued(line)
        return Record(where, fields, error and f"is not valid CSV: {error}")

    def _take(self) -> bytes | None:
        if self._ahead:
            line = self._ahead.popleft()
            self._ahead_bytes -= len(line or b"")
        else:
            line = next(self._lines)
        self._number += 1
        return line

    def _continued(self, first: bytes) -> Record:
        """The record of which this is the first line, at whose end a quote is open."""
        if self._number > self._open_to:  # nothing is known of the lines that follow
            self._open_to, self._fault = self._number, None
        fault = self._fault
        while fault is None:
            if len(first) + self._ahead_bytes > MAX_TEXT_BYTES or len(self._ahead) >= MAX_RECORD_LINES:
                fault = f"within {MAX_TEXT_BYTES:,} bytes and {MAX_RECORD_LINES:,} lines"
                break  # a quote that was opened later may reach further
            line, number = next(self._lines, _END), self._open_to + 1
            if line == _END:
                fault = self._fault = "before the file ends"
                break
            if line is None:
                fault = self._fault = f"before line {number}, which is {TOO_LONG}"
            else:
                fields, error = self._parsed(b'"' + line)
                if error is None:
                    return self._joined(first, line)
                if error != _OPEN:
                    fault = self._fault = f"before line {number}, where {error}"
                else:
                    self._open_to = number
                    self._reopened = number if fields else self._reopened
            self._ahead.append(line)
            self._ahead_bytes += len(line or b"")
        opened = max(self._number, self._reopened)
        error = f"is not valid CSV: the quote opened in line {opened} is not closed {fault}"
        return Record(f"line {self._number}", [], error)

    def _joined(self, first: bytes, last: bytes) -> Record:
        """The record of two lines and those ahead, which are between them."""
        lines = [first, *(line for line in self._ahead if line is not None), last]
        where = f"the record of lines {self._number} to {self._number + len(lines) - 1}"
        self._number += len(lines) - 1
        self._ahead.clear()
        self._ahead_bytes = 0
        record = b"\n".join(lines)
        if len(record) > MAX_TEXT_BYTES:
            return Record(where, [], f"is {TOO_LONG}")
        fields, error = self._parsed(record)
        return Record(where, fields, error and f"is not valid CSV: {error}")

    def _parsed(self, record: bytes) -> tuple[list[bytes], str | None]:
        """The fields, and None or what is wrong with the one that follows them."""
        if b'"' not in record and b"\r" not in record:
            fields = record.split(self._delimiter, MAX_COLUMNS)
            return fields, _TOO_MANY if len(fields) > MAX_COLUMNS else None
        fields, at, size = [], 0, len(record)
        while len(fields) < MAX_COLUMNS:
            if record.startswith(b'"', at):
                end = _closing_quote(record, at + 1)
                if end is None:
                    return fields, _OPEN
                field = record[at + 1 : end].replace(b'""', b'"')
                end += 1
                if end < size and not record.startswith(self._delimiter, end):
                    return fields, "a quote within a text is not doubled"
            else:
                end = record.find(self._delimiter, at)
                end = size if end < 0 else end
                field = record[at:end]
                if b"\r" in field:
                    return fields, "a carriage return stands outside quotes"
            fields.append(field)
            if end == size:
                return fields, None
            at = end + 1
        return fields, _TOO_MANY


def _closing_quote(record: bytes, at: int) -> int | None:
    """Where the quoted text ends that begins here: at the last of an odd number of quotes, where two stand for one."""
    for quotes in _QUOTES.finditer(record, at):
        if (quotes.end() - quotes.start()) % 2:
            return quotes.end() - 1
    return None
