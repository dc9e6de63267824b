"""Puts the shards of a data set together, in the order of the rows, and makes sure that each row is there once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anthesis.dataset.holder import read_claim, storage_time
from anthesis.dataset.identity import computer_of
from anthesis.dataset.output import OutputFile, count_line, not_written
from anthesis.dataset.shard import Shard
from anthesis.dataset.shard_set import FinishedShard, ShardSet, ShardState, SharedRequest
from anthesis.dataset.summary import Counts, Summary, Written, read_summary, summary_path
from anthesis.errors import AnthesisError, RequestError, few

logger = logging.getLogger("anthesis")

_MEMORY_BYTES = 64 << 20
"""For pieces of all shards together, which are read in turn: more files than may be open at once can be merged."""

_PIECE_BYTES = range(1 << 12, 1 << 20)
"""Of one shard."""

_MOST_NAMED = 8


@dataclass(frozen=True)
class Merged:
    """What came of it.

    Attributes:
        summary: as it stands beside the output.
        num_shards: that were put together.
        was_there: the output was merged before, and is as it was.
    """

    summary: Summary
    num_shards: int
    was_there: bool


def merge(output: Path) -> Merged:
    """Writes the rows of all shards into the output, with a summary beside it as that of a run without shards.

    Args:
        output: as it was named to `complete`.

    Raises:
        RequestError: shards are missing, not finished or not of one request, or the output is there and differs.
        AnthesisError: the rows of a shard are not those that were written, or the output can't be (a full disk).
    """
    shards = ShardSet(output)
    shared = shards.read()
    if shared is None:
        raise RequestError(
            f"there is no {shards.path} with shards to merge; name the file that was -o of `complete --num-shards`"
        )
    done = _all_finished(shards, shared)
    summaries = [_summary_of(shards, shared, shard) for shard in done]
    if output.exists():
        written = _check(shards, done, None)
        if _written_in(output) != written:
            raise RequestError(
                f"{output} is there already and does not hold the rows of {shards.path}; move it away to merge them"
            )
        summary = _whole(shared, summaries, done, written)
        if _differs(output, summary):
            _write(summary, output)
        return Merged(summary, len(done), was_there=True)
    # written beside the output, where a symbolic link leads
    target = output.resolve()
    unfinished = target.with_name(f".{target.name}.unfinished")
    with OutputFile(unfinished) as file:
        try:
            file.empty()
            written = _check(shards, done, file)
            file.sync()
            summary = _whole(shared, summaries, done, written)
            # Rows without a summary are nobody's, a summary without rows is written anew.
            _write(summary, output)
            unfinished.replace(target)
        except OSError as error:
            if isinstance(error, AnthesisError):
                raise
            raise not_written(output, error) from error
        finally:
            unfinished.unlink(missing_ok=True)
    _warn_of_several_computers(summaries)
    return Merged(summary, len(done), was_there=False)


def _all_finished(shards: ShardSet, shared: SharedRequest) -> list[FinishedShard]:
    states = shards.states(shared.num_shards)
    missing = [state for state in states if not state.is_finished]
    if missing:
        now_s = storage_time(shards.path)
        named = few([f"{state.shard} ({_why(shards, state, now_s)})" for state in missing[:_MOST_NAMED]], _MOST_NAMED)
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise RequestError(
            f"{len(missing)} of the {len(states)} shards in {shards.path} are not finished: {named}{more}; start a "
            "worker again, by the command that they were begun with, or wait for those that are at it"
        )
    return [shards.finished(state.shard) for state in states]


def _why(shards: ShardSet, state: ShardState, now_s: float) -> str:
    seen = read_claim(shards.claim_path(state.shard, state.last_claim)) if state.last_claim else None
    if seen is None:
        return "nobody has begun it"
    if seen.is_over(now_s):
        return f"{seen.name} began it, and has ended"
    return f"{seen.name} is at it"


def _summary_of(shards: ShardSet, shared: SharedRequest, done: FinishedShard) -> Summary:
    """The summary of a shard's rows, if it agrees with what was noted when they were finished."""
    path = summary_path(shards.output_path(done.shard, done.generation))
    otherwise = f"remove {shards.names_of(done.shard)} and start a worker again to have its rows done again"
    try:
        summary = read_summary(path)
    except RequestError as error:
        raise RequestError(f"{error}; {otherwise}") from error
    if summary.request != shared.request or (summary.counts, summary.written) != (done.counts, done.written):
        raise RequestError(f"{path} does not belong to the shards in {shards.path}; {otherwise}")
    return summary


def _check(shards: ShardSet, done: list[FinishedShard], file: OutputFile | None) -> Written:
    """Reads all rows in order, checks them, and writes them to the file if there is one."""
    total = sum(shard.counts.rows for shard in done)
    for shard in done:
        share = Shard(shard.shard, len(done)).rows_of(total)
        if shard.counts.rows != share:
            raise RequestError(
                f"shard {shard.shard} in {shards.path} has {shard.counts.rows:,} rows; of the {total:,} in all shards "
                f"it must have {share:,}, so rows are missing or too many. Remove {shards.names_of(shard.shard)} and "
                "start a worker again to have them done again"
            )
    readers = [_ShardReader(shards, shard, len(done)) for shard in done]
    digest, nbytes = hashlib.sha256(), 0
    for row in range(total):
        line, counts = readers[row % len(done)].next_row(row)
        digest.update(line)
        nbytes += len(line)
        if file is not None:
            file.append(line, counts)
    for reader in readers:
        reader.check_end()
    return Written(nbytes=nbytes, sha256=digest.hexdigest())


class _ShardReader:
    """The rows of a shard one after the other, from a file that is open only while a piece of it is read."""

    def __init__(self, shards: ShardSet, done: FinishedShard, num_shards: int) -> None:
        self._shards, self._done = shards, done
        self._path = shards.output_path(done.shard, done.generation)
        self._piece_bytes = max(_PIECE_BYTES.start, min(_PIECE_BYTES.stop, _MEMORY_BYTES // num_shards))
        self._digest, self._nbytes, self._counts = hashlib.sha256(), 0, Counts()
        self._lines = self._read_lines()

    def next_row(self, row: int) -> tuple[bytes, Counts]:
        line = next(self._lines, b"")
        counts = count_line(line, row)
        if counts is None:
            raise self._damaged(f"where row {row} should be, there is {'the end' if not line else 'another line'}")
        self._counts += counts
        return line, counts

    def check_end(self) -> None:
        """Makes sure that the bytes are those that were written, and no more."""
        if next(self._lines, b""):
            raise self._damaged("there is more than its rows")
        if Written(nbytes=self._nbytes, sha256=self._digest.hexdigest()) != self._done.written:
            raise self._damaged("its bytes are not those that were written (SHA-256)")
        if self._counts != self._done.counts:
            raise self._damaged("its rows do not add up to the counts that were noted")

    def _read_lines(self) -> Iterator[bytes]:
        rest = b""
        while piece := self._read():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    def _read(self) -> bytes:
        if not self._done.written.nbytes:
            return b""  # of a shard without rows there is no file
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(self._nbytes)
                piece = file.read(self._piece_bytes)
        except OSError as error:
            raise self._damaged(f"it can't be read: {error.strerror or error}") from error
        self._nbytes += len(piece)
        self._digest.update(piece)
        return piece

    def _damaged(self, what: str) -> AnthesisError:
        names = self._shards.names_of(self._done.shard)
        return AnthesisError(
            f"{self._path}: {what}; nothing was merged. Remove {names} and start a worker again to have its rows done "
            "again"
        )


def _whole(shared: SharedRequest, summaries: list[Summary], done: list[FinishedShard], written: Written) -> Summary:
    """The summary of all rows: the sessions of all shards in the order of their beginnings."""
    commands = {summary.command for summary in summaries}
    last = max(summaries, key=lambda summary: summary.sessions[-1].started_at)
    return Summary(
        request=shared.request,
        limit=shared.limit,
        finished=True,
        counts=sum((shard.counts for shard in done), Counts()),
        written=written,
        sessions=tuple(
            sorted(
                (session for summary in summaries for session in summary.sessions),
                key=lambda session: (session.started_at, session.shard or 0),
            )
        ),
        model=last.model,
        device=last.device,
        machine=last.machine,
        versions=last.versions,
        commit=last.commit,
        command=last.command if len(commands) == 1 else None,
    )


def _written_in(output: Path) -> Written:
    """What a file holds."""
    digest, nbytes = hashlib.sha256(), 0
    try:
        with output.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                nbytes += len(piece)
    except OSError as error:
        raise RequestError(f"{output} can't be read: {error.strerror or error}; move it away to merge") from error
    return Written(nbytes=nbytes, sha256=digest.hexdigest())


def _differs(output: Path, summary: Summary) -> bool:
    try:
        return read_summary(summary_path(output)) != summary
    except RequestError:
        return True


def _write(summary: Summary, output: Path) -> None:
    path = summary_path(output)
    try:
        summary.write(path)
    except OSError as error:
        raise not_written(path, error) from error


def _warn_of_several_computers(summaries: list[Summary]) -> None:
    computers = sorted({computer_of(summary) for summary in summaries})
    if len(computers) > 1:
        logger.warning(
            "the shards were computed on %s: on one of them alone some rows might differ", few(computers, _MOST_NAMED)
        )
