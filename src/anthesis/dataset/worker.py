"""One of the processes that together complete a data set in shards; it loads the model once.

Workers share nothing but the directory of the shards. Each claims a shard that nobody has, or whose process has died,
completes it, and claims the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from anthesis.bench.loaded import device_of, model_of
from anthesis.bench.machine import this_machine, versions
from anthesis.dataset.claim import Claim
from anthesis.dataset.complete import earlier_summary
from anthesis.dataset.holder import SIGNS, Seen, lease_asked_for, read_claim, storage_time
from anthesis.dataset.identity import check_same, known_unopened, made_by, wanted_of, warn_of_another_computer
from anthesis.dataset.limit import Meter
from anthesis.dataset.output import OutputFile
from anthesis.dataset.read import DataSet
from anthesis.dataset.request import Request
from anthesis.dataset.run import Progress, Run
from anthesis.dataset.shard import Shard
from anthesis.dataset.shard_set import ShardSet, ShardState, SharedRequest
from anthesis.dataset.summary import Counts, Session, Summary, summary_path
from anthesis.errors import ClaimError, RequestError
from anthesis.llm import LLM

logger = logging.getLogger("anthesis")

LONGEST_WAIT_S = 1.0
"""Between two looks at what others do."""


@dataclass
class Work:
    """What a worker has done, and what it left to others.

    Attributes:
        shards: that it finished, in this order.
        counts: of the rows that it wrote.
        run_s: it took for them.
        floor_s: that they could have taken at least; None where that is unknown.
        held: shards that others were at when it ended, with their names.
        broken: shards whose files are damaged, with what is wrong.
    """

    shards: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    run_s: float = 0.0
    floor_s: float | None = 0.0
    held: dict[int, str] = field(default_factory=dict)
    broken: dict[int, RequestError] = field(default_factory=dict)

    def add(self, session: Session) -> None:
        """Takes in what a session did."""
        self.counts += session.counts
        self.run_s += session.run_s
        known = self.floor_s is not None and session.floor_s is not None
        self.floor_s = (self.floor_s or 0.0) + (session.floor_s or 0.0) if known else None


class Worker:
    """A model that completes shards of a data set; close it.

    Args:
        request: what to do with each row.
        dataset: the rows.
        output: what the shards become; they stand in a directory beside it.
        open_llm: opens the model, with `LLM(load=False)`.
        num_shards: into which the rows are dealt, one to each in turn.
        load: reads the model's weights, once there is something to do.
        threads: that the model was asked to use, for the summary.
        progress: told after rows were written, and now and then.
        on_shard: told which shard comes next, and how many are finished.
        command: that started it, for the summaries; or None.

    Attributes:
        llm: the model.
        shards: the directory.
        work: done so far.

    Raises:
        RequestError: the directory belongs to another request, or the model can't take the rows.
        AnthesisError: the directory can't be written to.
    """

    def __init__(
        self,
        request: Request,
        dataset: DataSet,
        output: Path,
        open_llm: Callable[[], LLM],
        *,
        num_shards: int,
        load: Callable[[LLM], None] = LLM.load,
        threads: int | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
        on_shard: Callable[[int, int], None] = lambda shard, finished: None,
        command: str | None = None,
    ) -> None:
        self._num_shards = Shard(0, num_shards).count
        self._request, self._dataset, self._threads = request, dataset, threads
        self._load, self._progress, self._on_shard, self._command = load, progress, on_shard, command
        self._lease_s = lease_asked_for()
        self.shards, self.work = ShardSet(output), Work()
        before = self.shards.read()
        if before is None and output.exists():
            raise RequestError(
                f"{output} is there already, and no {self.shards.path.name} beside it; leave --num-shards out to go on "
                "with it, or name another file with -o"
            )
        wanted = wanted_of(request, dataset, None if before is None else before.request)
        if before is not None:
            self._check_same(before, known_unopened(before.request), wanted)
        with ExitStack() as opened:  # what does not come to its end closes the model
            self.llm = opened.enter_context(open_llm())
            wanted |= made_by(self.llm)
            self._wanted = self._agree(before, wanted)
            opened.pop_all()
        self._meter: Meter | None = None  # until the weights are loaded

    def complete_all(self, first: int = 0) -> Work:
        """Completes shards until each is finished, or a process is at it that has just given a sign of life.

        Args:
            first: where to begin to look for them.

        Raises:
            RequestError: the files of a shard are damaged; told when all others are done.
            DataSetError: the data set vanished or was changed.
            AnthesisError: the shards can't be written any more.
        """
        while (claim := self._next(first)) is not None:
            try:
                self._complete(claim)
            except ClaimError as error:
                logger.warning("%s", error)
        self._tell_broken()
        return self.work

    def complete_shard(self, shard: int, *, wait: bool = False) -> Work:
        """Completes one shard, if it is not finished already.

        Args:
            shard: its number.
            wait: for a process that is at it, until it has finished or died.

        Raises:
            RequestError: another process is at it, or its files are damaged.
            ClaimError: another process took it over, since this one was stopped for a while.
            DataSetError: the data set vanished or was changed.
            AnthesisError: it can't be written any more.
        """
        Shard(shard, self._num_shards)  # which checks it
        while not (state := self.shards.states(self._num_shards)[shard]).is_finished:
            seen = self._seen(state)
            if seen is None or seen.is_over(storage_time(self.shards.path)):
                claim = self.shards.claim(state, self._lease_s)
                if claim is not None:
                    self._complete(claim)
                    self._tell_broken()
            elif wait:
                self._wait()
            else:
                raise RequestError(
                    f"{seen.name} is completing shard {shard}; wait for it, or leave --shard out to complete those "
                    f"that nobody has. It is taken for dead when it gives no sign of life for {seen.lease_s:g} s"
                )
        return self.work

    def num_finished(self) -> int:
        """How many shards are finished, whoever did them."""
        return sum(state.is_finished for state in self.shards.states(self._num_shards))

    def close(self) -> None:
        """Frees the model."""
        self.llm.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _agree(self, before: SharedRequest | None, wanted: dict[str, Any]) -> dict[str, Any]:
        """All that the rows depend on, the same for all workers."""
        llm = self.llm
        if before is None:
            mine = SharedRequest(
                num_shards=self._num_shards,
                limit=self._request.limit,
                request=wanted,
                model=model_of(llm),
                device=device_of(llm),
                machine=this_machine(),
                versions=versions(),
            )
            before = self.shards.begin(mine)  # or another worker has just begun
            wanted |= wanted_of(self._request, self._dataset, before.request)  # whose seed it is
        self._check_same(before, before.request, wanted)
        warn_of_another_computer(before, llm.device_info)
        return wanted

    def _check_same(self, before: SharedRequest, then: dict[str, Any], wanted: dict[str, Any]) -> None:
        terms = {"num_shards": self._num_shards, "limit": self._request.limit, **wanted}
        check_same(self.shards.path, before.terms(then), terms)

    def _next(self, first: int) -> Claim | None:
        """The next shard, or None if nothing is left to do."""
        signs: dict[Path, float] = {}
        while True:
            states = self.shards.states(self._num_shards)
            left = [state for state in states[first:] + states[:first] if not state.is_finished]
            left = [state for state in left if state.shard not in self.work.broken]
            held: dict[int, Seen] = {}
            now_s = storage_time(self.shards.path) if left else 0.0
            # those that nobody has are easily had; to see whether a process has died its claim is opened
            for state in sorted(left, key=lambda state: state.last_claim > 0):
                seen = self._seen(state)
                if seen is not None and not seen.is_over(now_s):
                    held[state.shard] = seen
                elif (claim := self.shards.claim(state, self._lease_s)) is not None:
                    self._on_shard(claim.shard, len(states) - sum(not state.is_finished for state in states))
                    return claim
                else:
                    held[state.shard] = Seen(holder=None, sign_s=now_s)  # another one was quicker: who, is seen next
            self.work.held = {shard: seen.name for shard, seen in held.items()}
            silent = False
            for state in left:
                seen, path = held[state.shard], self.shards.claim_path(state.shard, state.last_claim)
                silent |= not seen.is_running and signs.setdefault(path, seen.sign_s) == seen.sign_s
            if not silent:
                return None
            self._wait()

    def _seen(self, state: ShardState) -> Seen | None:
        """The claim that counts; None where there is none."""
        return read_claim(self.shards.claim_path(state.shard, state.last_claim)) if state.last_claim else None

    def _tell_broken(self) -> None:
        for broken in self.work.broken.values():
            raise broken

    def _wait(self) -> None:
        time.sleep(min(self._lease_s / SIGNS, LONGEST_WAIT_S))

    def _complete(self, claim: Claim) -> None:
        """Completes a shard that is claimed."""

        def progress(progress: Progress) -> None:
            claim.check()
            self._progress(progress)

        shard = Shard(claim.shard, self._num_shards)
        output = self.shards.output_path(claim.shard, claim.generation)
        with claim, ExitStack() as opened:
            try:
                self.shards.inherit(claim)
                file = opened.enter_context(OutputFile(output, shard, lock=False))
                before = self._recovered(output, file)
            except RequestError as error:
                self.shards.drop(claim)
                names = self.shards.names_of(claim.shard)
                self.work.broken[claim.shard] = RequestError(f"{error}; or remove {names} to have its rows done again")
                logger.warning("shard %d is left out: %s", claim.shard, error)
                return
            load_s = 0.0
            if self._meter is None:
                self._meter = Meter(self.llm)
                self._load(self.llm)
                load_s = self.llm.load_s
            run = Run(
                self._request, self._dataset, file, summary_path(output), self.llm, self._meter, self._wanted, before,
                self._threads, progress, load_s=load_s, command=self._command,
            )  # fmt: skip
            summary = run.run()
            self.shards.finish(claim, summary)
        self.work.shards.append(claim.shard)
        self.work.add(summary.sessions[-1])

    def _recovered(self, output: Path, file: OutputFile) -> Summary | None:
        """The summary of the rows that were taken on, which are checked."""
        before = earlier_summary(output, file)
        if before is not None:
            check_same(output, before.request, self._wanted)
            file.recover(before.written)
            logger.warning("shard %d goes on after the %s rows that are there", file.shard.index, file.counts.rows)
        return before
