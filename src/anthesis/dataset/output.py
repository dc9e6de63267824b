"""The output of a data-set run: a file that only grows, by whole rows, and that one process writes.

A row is a line of JSON. Whatever ends a run - kill -9, a full disk, a power cut - leaves the rows before it whole, and
at most one torn line at the end, which the next start cuts off. So the file is its own record of how far the run is.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from anthesis.atomic import check_place, sync
from anthesis.dataset.shard import WHOLE, Shard
from anthesis.dataset.summary import Counts, Written
from anthesis.errors import AnthesisError, RequestError

SYNC_S = 2.0
"""A power cut costs no more than the rows of this time."""

_SCAN_BYTES = 1 << 24
"""More than a line of ours has."""


def row_line(row: int, **fields: Any) -> bytes:
    """The line of one row.

    Args:
        row: its number, from 0.
        fields: the rest of the object, in order.
    """
    return json.dumps({"row": row, **fields}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


class _Rows(NamedTuple):
    """Rows that are counted: of how many bytes, and these bytes' SHA-256."""

    counts: Counts
    nbytes: int
    digest: hashlib._Hash


class OutputFile:
    """The file, locked for this process; close it.

    Args:
        path: to go on with, or to make.
        shard: whose rows these are.
        lock: whether to lock it; of a shard nobody else can have the file, and some shared storage has no locks.

    Attributes:
        shard: as given.
        torn_bytes: of a last line that was not whole, which `recover` cut off.

    Raises:
        RequestError: it can't be written to, or another process is writing it.
    """

    def __init__(self, path: Path, shard: Shard = WHOLE, *, lock: bool = True) -> None:
        self._path = path
        self.shard = shard
        self._rows = _Rows(Counts(), 0, hashlib.sha256())
        self.torn_bytes = 0
        try:
            check_place(path)
            if path.exists() and not path.is_file():
                raise RequestError(f"-o {path} is no regular file, so a run could not go on with it; name a file")
            self._is_new = not path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RequestError(f"-o {path} can't be written to: {error.strerror}; name another file") from error
        try:
            if lock:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file), path.stat()):
                raise BlockingIOError  # another process has just given it up, and taken it away
            if self._is_new:
                sync(path.resolve().parent)
        except BlockingIOError as error:
            os.close(self._file)
            raise RequestError(
                f"another process is writing {path}; wait for it, or name another file with -o"
            ) from error
        except OSError as error:
            os.close(self._file)
            raise RequestError(f"-o {path} can't be locked: {error.strerror}; name another file") from error
        self._synced = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes in the file as it stands."""
        return os.fstat(self._file).st_size

    @property
    def counts(self) -> Counts:
        """Of the rows that are counted."""
        return self._rows.counts

    @property
    def written(self) -> Written:
        """What the rows that are counted look like."""
        return Written(nbytes=self._end, sha256=self._rows.digest.hexdigest())

    @property
    def _end(self) -> int:
        return self._rows.nbytes

    @property
    def _next_row(self) -> int:
        return self.shard.row(self.counts.rows)

    def recover(self, noted: Written | None = None) -> None:
        """Counts the rows that are not counted yet, and cuts off what a run that was killed left of a row.

        Args:
            noted: what the run itself wrote, as far as it took note.

        Raises:
            RequestError: the file holds something that is not of such a run.
        """
        size = self.size
        with os.fdopen(os.dup(self._file), "rb", 1 << 20) as file:
            file.seek(self._end)
            while line := file.readline(_SCAN_BYTES):
                counted = count_line(line, self._next_row)
                if counted is None:
                    break
                reaches_note = noted is not None and self._end < noted.nbytes <= self._end + len(line)
                self._count(line, counted)
                if reaches_note and self.written != noted:
                    raise self._foreign(f"its first {self.counts.rows:,} rows are not what this run wrote")
            if noted is not None and self._end < noted.nbytes:
                raise self._foreign(f"its {self.counts.rows:,} whole rows are fewer bytes than this run wrote")
            if line and not _is_remnant(line, file, self._next_row):
                raise self._foreign(f"line {self.counts.rows + 1} is not row {self._next_row} of this run")
        self.torn_bytes = size - self._end
        if self.torn_bytes:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)

    def empty(self) -> None:
        """Cuts off all that is there.

        Raises:
            OSError: the disk failed.
        """
        os.ftruncate(self._file, 0)
        self._rows = _Rows(Counts(), 0, hashlib.sha256())

    def append(self, line: bytes, counts: Counts) -> None:
        """Adds the next row.

        Raises:
            AnthesisError: it can't be written (a full disk); the rows before it are whole.
        """
        try:
            left = memoryview(line)
            while left:
                written = os.pwrite(self._file, left, self._end + len(line) - len(left))
                left = left[written:]
            self._count(line, counts)
            if time.monotonic() - self._synced > SYNC_S:
                self.sync()
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise not_written(self._path, error) from error

    def sync(self) -> None:
        """Brings all rows to the disk.

        Raises:
            OSError: the disk failed.
        """
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Closes the file and gives up the lock; a file that was made for nothing is taken away."""
        if self._file < 0:
            return
        if self._is_new and self.size == 0:
            self._path.resolve().unlink(missing_ok=True)  # where a symbolic link leads, and not the link
        os.close(self._file)
        self._file = -1

    def _count(self, line: bytes, counts: Counts) -> None:
        digest = self._rows.digest.copy()
        digest.update(line)
        # one assignment: a signal comes before it or after
        self._rows = _Rows(self._rows.counts + counts, self._rows.nbytes + len(line), digest)

    def _foreign(self, what: str) -> RequestError:
        return RequestError(
            f"{self._path}: {what}, so somebody else wrote to it; move the file away, or name another one with -o"
        )

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def not_written(path: Path, error: OSError) -> AnthesisError:
    """What to say where a file of a run can't be written."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return AnthesisError(
        f"{path} could not be written: {error.strerror}; the rows that are there are whole. "
        f"{'Make room' if is_full else 'Mend that'}, and start the same command again: it goes on where it was"
    )


def count_line(line: bytes, row: int) -> Counts | None:
    """What a whole line of row `row` counts; None if it is not one."""
    if not line.endswith(b"}\n") or not line.startswith(_beginning(row)):
        return None
    try:
        found: Mapping[str, Any] = json.loads(line)
        prompt_tokens, completion_tokens = found["prompt_tokens"], found["completion_tokens"]
        failed = found["error"] is not None
    except (ValueError, KeyError, RecursionError):
        return None
    if any(type(count) is not int or count < 0 for count in (prompt_tokens, completion_tokens)):
        return None
    return Counts(rows=1, failed_rows=int(failed), prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def _beginning(row: int) -> bytes:
    """Of the line of row `row`, as `row_line` writes it."""
    return b'{"row": %d, "prompt": ' % row


def _is_remnant(line: bytes, rest: BinaryIO, row: int) -> bool:
    """Whether this can be what a run that ended in row `row` left of it.

    The line ends somewhere, and that is the end of the file; or, after a power cut, there are zeros: pages that never
    came to the disk, behind which nothing is known to be whole.
    """
    head, zero, _ = line.partition(b"\0")
    if not head.startswith(_beginning(row)[: len(head)]):
        return False
    return bool(zero) or (b"\n" not in line and not rest.read(1))
