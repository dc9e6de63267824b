"""The directory in which many processes, on any number of machines, complete the shards of one data set.

Beside `out.jsonl` stands `out.jsonl.shards` with

- `request.json`: what all of them were asked for;
- `shard-00003.1.claim`: the first process that had shard 3, `.2.claim` the one that took over from it, and so on: each
  generation is made by one process alone;
- `shard-00003.1.jsonl` and its summary: the rows of that generation, which nobody else writes. A later one begins with
  the rows of the one before;
- `shard-00003.done.json`: which generation is whole; the first that is counts.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from anthesis.atomic import check_place, create_file, replace_file, sync
from anthesis.bench.subject import Device, Machine, Model
from anthesis.dataset.claim import Claim
from anthesis.dataset.holder import give_up, this_process
from anthesis.dataset.output import not_written
from anthesis.dataset.summary import Counts, Summary, Written, summary_path
from anthesis.errors import ClaimError, RequestError, naming
from anthesis.json_text import format_json
from anthesis.records import from_document, read_document, to_document

SCHEMA_VERSION = 1
_NAME = re.compile(r"shard-(\d{5,})\.(?:(\d{1,9})\.(claim|jsonl)|(done)\.json)")
_OURS = re.compile(r"request\.json|\.?shard-\d{5,}\..*|\.(?:request\.json|clock)\..*")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class SharedRequest:
    """What all shards of a set have in common.

    Attributes:
        num_shards: that there are.
        limit: most rows of all shards together, or None.
        request: all that the bytes of the output depend on.
        model, device, machine, versions: of the process that began.
        schema_version: of this document.
    """

    num_shards: int
    limit: int | None
    request: dict[str, Any]
    model: Model
    device: Device
    machine: Machine
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    def terms(self, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All that has to be the same for all processes.

        Args:
            request: a part of it; None: all of it.
        """
        return {"num_shards": self.num_shards, "limit": self.limit, **(self.request if request is None else request)}


@dataclass(frozen=True, kw_only=True)
class FinishedShard:
    """What the process that finished a shard left of it.

    Attributes:
        shard: its number.
        generation: whose output is whole.
        counts, written: of that output.
        schema_version: of this document.
    """

    shard: int
    generation: int
    counts: Counts
    written: Written
    schema_version: int = SCHEMA_VERSION


@dataclass
class ShardState:
    """What the names in the directory say of a shard.

    Attributes:
        shard: its number.
        is_finished: it is whole.
        claims, outputs: generations.
    """

    shard: int
    is_finished: bool = False
    claims: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    @property
    def last_claim(self) -> int:
        """The generation that holds it, or held it last; 0: none."""
        return max(self.claims, default=0)


class ShardSet:
    """The directory beside an output.

    Args:
        output: that the shards become.

    Attributes:
        output: as given.
        path: of the directory.

    Raises:
        RequestError: there is no place for it.
    """

    def __init__(self, output: Path) -> None:
        check_place(output)
        self.output, self.path = output, shards_path(output)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RequestError(f"{self.path} is no directory; move it away, or name another file with -o")
        except OSError as error:
            raise RequestError(f"-o {output} can't be written to: {error.strerror}; name another file") from error

    def read(self) -> SharedRequest | None:
        """What was asked for, or None where nobody has begun.

        Raises:
            RequestError: the directory holds something else, or its request is damaged.
        """
        path = self.path / "request.json"
        if path.exists():
            return _read(SharedRequest, path, "move the directory away, or name another file with -o")
        states = self._states() if self.path.is_dir() else {}
        if states:
            raise RequestError(
                f"{self.path} holds shards, and no request.json that says which request they belong to; move it "
                "away, or name another file with -o"
            )
        return None

    def begin(self, shared: SharedRequest) -> SharedRequest:
        """Makes the directory, or finds that another process just has.

        Returns:
            The request that stands there.

        Raises:
            RequestError: the directory can't be written to.
            AnthesisError: the disk is full.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise RequestError(f"{self.path} can't be made: {error.strerror}; name another file with -o") from error
        self._create(self.path / "request.json", shared)
        found = self.read()
        assert found is not None
        return found

    def states(self, num_shards: int) -> list[ShardState]:
        """Of all shards, in order.

        Raises:
            OSError: the directory can't be read.
        """
        found = self._states()
        return [found.get(shard) or ShardState(shard) for shard in range(num_shards)]

    def claim(self, state: ShardState, lease_s: float) -> Claim | None:
        """Makes a shard this process's, or finds that another process was quicker.

        Args:
            state: as it was seen; the new generation follows all that are there.
            lease_s: to promise.

        Raises:
            RequestError: the directory can't be written to.
            AnthesisError: the disk is full.
        """
        shard, generation = state.shard, max((*state.claims, *state.outputs), default=0) + 1
        path = self.claim_path(shard, generation)
        if not self._create(path, this_process(lease_s)):
            return None
        if self._done_path(shard).exists():  # by now
            give_up(path)
            return None
        taken_over = (
            f"shard {shard} was taken over by another process, since this one gave no sign of life; the rows that it "
            "had done by then go on there, and what it did since is left out"
        )
        ends = {self._done_path(shard): _finished(shard), self.claim_path(shard, generation + 1): taken_over}
        return Claim(shard, generation, path, ends, lease_s)

    def inherit(self, claim: Claim) -> None:
        """Lets a generation begin with what those before it have done.

        Raises:
            RequestError: the rows have no summary.
            AnthesisError: they can't be copied (a full disk).
        """
        # looked for now, as the one before may have begun after the shard was seen; each begins with all that was there
        generations = range(claim.generation - 1, 0, -1)
        paths = (self.output_path(claim.shard, generation) for generation in generations)
        source = next((path for path in paths if path.exists()), None)
        target = self.output_path(claim.shard, claim.generation)
        unfinished = target.with_name(f".{target.name}")
        try:
            if source is not None and source.stat().st_size:
                # The summary first: rows without one are nobody's. And what it takes note of was written before it, so
                # the rows that are copied after it hold all that.
                replace_file(summary_path(target), _summary_text(source))
                shutil.copyfile(source, unfinished)
                sync(unfinished)
                unfinished.replace(target)
                sync(self.path)
        except OSError as error:
            raise not_written(target, error) from error
        finally:
            unfinished.unlink(missing_ok=True)

    def drop(self, claim: Claim) -> None:
        """Takes away the rows of a generation that came to nothing."""
        path = self.output_path(claim.shard, claim.generation)
        path.unlink(missing_ok=True)
        summary_path(path).unlink(missing_ok=True)

    def finish(self, claim: Claim, summary: Summary) -> None:
        """Says that a shard is whole.

        Raises:
            ClaimError: another process has finished it meanwhile.
            AnthesisError: the disk is full.
        """
        done = FinishedShard(
            shard=claim.shard, generation=claim.generation, counts=summary.counts, written=summary.written
        )
        if not self._create(self._done_path(claim.shard), done):
            raise ClaimError(_finished(claim.shard))
        claim.is_finished = True

    def finished(self, shard: int) -> FinishedShard:
        """What was left of a shard that is finished.

        Raises:
            RequestError: it is damaged.
        """
        path = self._done_path(shard)
        done = _read(FinishedShard, path, f"remove {self.names_of(shard)} to have its rows done again")
        if done.shard != shard:
            raise RequestError(f"{path} is of shard {done.shard}; remove it to have the rows of {shard} done again")
        return done

    def remove(self) -> list[str]:
        """Takes the directory away, but for what is not its own, whose names are given.

        Raises:
            OSError: it can't be removed.
        """
        names = os.listdir(self.path)
        # what says to which request the rows belong goes last
        ours = sorted(filter(_OURS.fullmatch, names), key="request.json".__eq__)
        for name in ours:
            (self.path / name).unlink(missing_ok=True)
        foreign = sorted(set(names).difference(ours))
        if not foreign:
            self.path.rmdir()
        return foreign

    def names_of(self, shard: int) -> Path:
        """All files of a shard, as a shell's pattern."""
        return self.path / f"shard-{shard:05}.*"

    def claim_path(self, shard: int, generation: int) -> Path:
        """Of a generation's claim."""
        return self.path / f"shard-{shard:05}.{generation}.claim"

    def output_path(self, shard: int, generation: int) -> Path:
        """Of a generation's rows."""
        return self.path / f"shard-{shard:05}.{generation}.jsonl"

    def _done_path(self, shard: int) -> Path:
        return self.path / f"shard-{shard:05}.done.json"

    def _states(self) -> dict[int, ShardState]:
        states: dict[int, ShardState] = {}
        for name in os.listdir(self.path):
            if parts := _NAME.fullmatch(name):
                state = states.setdefault(int(parts[1]), ShardState(int(parts[1])))
                if parts[4]:
                    state.is_finished = True
                else:
                    (state.claims if parts[3] == "claim" else state.outputs).append(int(parts[2]))
        return states

    def _create(self, path: Path, record: Any) -> bool:
        """Whether this process made the file."""
        try:
            create_file(path, format_json(to_document(record)))
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise RequestError(
                    f"{path} can't be made: {error.strerror}; workers need a file system with hard links, by which "
                    "they agree who does what: name a file on another one with -o"
                ) from error
            raise not_written(path, error) from error
        return True


def shards_path(output: Path) -> Path:
    """Where the shards of an output stand."""
    return output.with_name(f"{output.name}.shards")


def check_no_shards(output: Path) -> None:
    """Refuses to begin, as one, what was begun in shards.

    Args:
        output: without rows.

    Raises:
        RequestError: there are shards of it.
    """
    path = shards_path(output)
    if os.path.isfile(path / "request.json"):
        raise RequestError(
            f"{path} holds the shards of {output}; go on with them by --num-shards auto, put them together by "
            f"`anthesis merge {output}`, or name another file with -o"
        )


def _read(cls: Callable[..., _T], path: Path, otherwise: str) -> _T:
    """A record in one of the files."""
    with naming(path):
        try:
            found: Any = from_document(cls, read_document(path), path.name)  # type: ignore[arg-type]
        except ValueError as error:
            raise RequestError(f"{path} is damaged: {error}; {otherwise}") from error
        if found.schema_version != SCHEMA_VERSION:
            raise RequestError(
                f"{path} has schema_version {found.schema_version}, and this version reads {SCHEMA_VERSION}; go on "
                "with the version that wrote it"
            )
    return found  # type: ignore[no-any-return]


def _finished(shard: int) -> str:
    return f"shard {shard} was finished by another process meanwhile; what this one did of it is left out"


def _summary_text(output: Path) -> str:
    """The summary beside some rows, as it stands there."""
    path = summary_path(output)
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise RequestError(f"{output} has no {path.name} beside it that says which request it belongs to") from error
