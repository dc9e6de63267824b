"""One session of a data-set run: rows join the engine and leave it as they finish, and are written in their order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from anthesis.bench.loaded import device_of, model_of
from anthesis.bench.machine import commit, now, this_machine, versions
from anthesis.completion import Handle
from anthesis.dataset.limit import Meter
from anthesis.dataset.output import OutputFile, not_written, row_line
from anthesis.dataset.read import DataSet, Row
from anthesis.dataset.request import Request
from anthesis.dataset.shard import WHOLE
from anthesis.dataset.summary import Counts, Session, Summary
from anthesis.errors import AnthesisError, RequestError, TokenizerError
from anthesis.llm import LLM
from anthesis.memory import process_peak_memory_bytes

logger = logging.getLogger("anthesis")

READ_AHEAD = 4
"""Rows that were read and are not written, at most, in batches: a slow row holds back those behind it."""

MIN_TEXT_CHARACTERS = 1 << 16
TEXT_CHARACTERS_PER_TOKEN = 64
NOTE_S = 2.0
"""Seconds between two notes in the summary of how far a session is."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        done: what is in the output.
        session: of that, what this session has done.
        started_rows: rows on their way, each counted by the share of its tokens that are there.
        started_tokens: generated for them so far.
        run_s: since the session's first row.
        total_rows: of the whole output; estimated from the bytes that were read, where nobody has counted the rows,
            and None before there is anything to estimate it from.
    """

    done: Counts
    session: Counts
    started_rows: float
    started_tokens: int
    run_s: float
    total_rows: float | None

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the rate of this session, or None."""
        done = self.session.rows + self.started_rows
        if self.total_rows is None or not done:
            return None
        return max(0.0, self.total_rows - self.done.rows - self.started_rows) * self.run_s / done

    @property
    def tokens_per_s(self) -> float | None:
        """Generated in this session, or None before the first."""
        tokens = self.session.completion_tokens + self.started_tokens
        return tokens / self.run_s if tokens else None


@dataclass
class _Slot:
    """A row that was read and is not written yet: on its way through the engine, or failed already."""

    row: int
    handle: Handle | None
    error: str | None

    @property
    def is_done(self) -> bool:
        return self.handle is None or self.handle.finished


class Run:
    """One session: reads rows ahead, keeps the engine full, writes what is done, in order.

    Args:
        request: what to do with each row.
        dataset: the rows.
        file: the output, recovered.
        summary_file: where the summary stands.
        llm: the model.
        meter: of the same, for the session's share of the limit.
        wanted: all that the rows depend on, for the summary.
        before: the summary of the sessions before, or None.
        threads: that the model was asked to use, for the summary.
        progress: told after rows were written, and now and then; what it raises ends the session.
        load_s: loading the model took, for the summary.
        command: that asked for it, for the summary; or None.

    Raises:
        RequestError: its cache can't hold the batch, or the model can't be asked for this at all.
    """

    def __init__(
        self,
        request: Request,
        dataset: DataSet,
        file: OutputFile,
        summary_file: Path,
        llm: LLM,
        meter: Meter,
        wanted: dict[str, Any],
        before: Summary | None,
        threads: int | None,
        progress: Callable[[Progress], None],
        *,
        load_s: float,
        command: str | None = None,
    ) -> None:
        assert llm.tokenizer is not None
        self._request, self._dataset, self._file, self._llm, self._meter = request, dataset, file, llm, meter
        self._decode = llm.tokenizer.decode
        self._summary_file, self._progress = summary_file, progress
        self._seed = wanted["seed"]
        self._batch = self._choose_batch()
        self._check_sampling()
        self._limit = None if request.limit is None else file.shard.rows_of(request.limit)
        sources = commit()  # asked of git, before the clock starts
        meter.begin()
        self._begin_s = time.perf_counter()
        self._noted_s = self._begin_s
        self._before = file.counts
        self._reused_tokens = 0
        past = () if before is None else before.sessions
        session = Session(
            started_at=now(),
            load_s=load_s,
            run_s=0.0,
            counts=Counts(),
            batch=self._batch,
            threads=threads,
            process_peak_memory_bytes=process_peak_memory_bytes(),
            ended="running",
            shard=None if file.shard == WHOLE else file.shard.index,
            ranks=llm.layout.size,
        )
        self._summary = Summary(
            request=wanted,
            limit=request.limit,
            finished=False,
            counts=file.counts,
            written=file.written,
            # a session that wrote no last note was killed
            sessions=(*past, meter.noted(session)),
            model=model_of(llm),
            device=device_of(llm),
            machine=this_machine(),
            versions=versions(),
            commit=sources,
            command=command,
        )

    def run(self) -> Summary:
        """Completes what is left, and gives the summary as it stands in its file then."""
        self._write_summary()  # before the first row: from now on it can be told whose rows they are
        ended: Any = "failed"
        try:
            self._complete_rows()
            ended = "finished"
        except (KeyboardInterrupt, SystemExit):
            ended = "interrupted"
            raise
        finally:
            if ended == "finished":
                self._note(ended)
            else:
                # a full disk has been told of already, and an older summary is there
                with suppress(OSError, AnthesisError):
                    self._file.recover()  # a signal may come between a row and its being counted
                    if self._file.size:
                        self._note(ended)
                    else:
                        self._summary_file.unlink()  # of nothing
        return self._summary

    def _choose_batch(self) -> int:
        limit = self._request.prompt_tokens + self._request.max_new_tokens
        if self._llm.max_context is not None:
            limit = min(limit, self._llm.max_context)
        fits = self._llm.max_batch(limit)
        # More would also begin and end together, where rows are equally long: until then there is none to write, and a
        # kill costs them all.
        full = self._llm.device_info.full_batch
        batch = self._request.batch or min(full, fits)
        if batch > fits:
            raise RequestError(
                f"batch is {batch}; the memory for the cache holds {fits} rows of {limit} tokens: ask for fewer, or "
                "give more --cache-memory"
            )
        told = f"more than {full} gain little on this device"
        if self._request.batch is not None:
            told = "as asked for"
        elif batch < full:
            told = "the memory for the cache holds no more"
        logger.warning("batch %d: rows of up to %d tokens at once; %s", batch, limit, told)
        return batch

    def _check_sampling(self) -> None:
        """Asks for a row and takes that back: what would fail every row is said before the first."""
        with self._llm.submit([0], max_new_tokens=self._request.max_new_tokens, **self._request.sampling):
            pass

    def _complete_rows(self) -> None:
        shard, limit = self._file.shard, self._limit
        first = shard.row(self._file.counts.rows)
        rows = zip(count(first, shard.count), self._dataset.rows(first, shard.count), strict=False)
        waiting: deque[_Slot] = deque()
        try:
            at_end = False
            while True:
                while not at_end and self._has_room(waiting):
                    if limit is not None and self._file.counts.rows + len(waiting) >= limit:
                        at_end = True
                    else:
                        number, row = next(rows, (0, None))
                        at_end = row is None
                        if row is not None:
                            waiting.append(self._start(number, row))
                while waiting and waiting[0].is_done:
                    self._write(waiting.popleft())
                if not waiting and at_end:
                    self._dataset.check_unchanged()  # which reading to the end does too, but not up to a limit
                    return
                self._llm.step()
                self._tell(waiting, at_end)
        finally:
            for slot in waiting:
                if slot.handle is not None:
                    slot.handle.close()

    def _has_room(self, waiting: deque[_Slot]) -> bool:
        if len(waiting) >= READ_AHEAD * self._batch:
            return False
        return sum(not slot.is_done for slot in waiting) < self._batch

    def _start(self, number: int, row: Row) -> _Slot:
        if row.error is not None:
            return _Slot(number, None, row.error)
        assert row.text is not None
        request = self._request
        text = row.text[: max(MIN_TEXT_CHARACTERS, TEXT_CHARACTERS_PER_TOKEN * request.prompt_tokens)]
        if not text.strip():
            return _Slot(number, None, "the text is empty")
        seed = None if self._seed is None else (self._seed + number) % 2**64
        try:
            ids = self._llm.encode(text)[: request.prompt_tokens]
            handle = self._llm.submit(ids, max_new_tokens=request.max_new_tokens, seed=seed, **request.sampling)
        except (RequestError, TokenizerError) as error:  # the library gives up on some texts, not on all
            return _Slot(number, None, str(error))
        return _Slot(number, handle, None)

    def _write(self, slot: _Slot) -> None:
        done, error = None, slot.error
        if slot.handle is not None:
            try:
                done = slot.handle.completion
            except AnthesisError as failure:  # of this row alone
                error = str(failure)
        if error is not None and not self._file.counts.failed_rows:
            logger.warning("row %d failed, the first that did: %s", slot.row, error)
        counts = Counts(
            rows=1,
            failed_rows=int(done is None),
            prompt_tokens=0 if done is None else len(done.prompt_token_ids),
            completion_tokens=0 if done is None else len(done.token_ids),
        )
        self._reused_tokens += 0 if done is None else done.reused_tokens
        line = row_line(
            slot.row,
            prompt=None if done is None else self._decode(done.prompt_token_ids),
            completion=None if done is None else done.text,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            finish_reason=None if done is None else done.finish_reason,
            error=error,
        )
        self._file.append(line, counts)

    def _tell(self, waiting: deque[_Slot], at_end: bool) -> None:
        now = time.perf_counter()
        tokens = [slot.handle.num_tokens for slot in waiting if slot.handle is not None and not slot.is_done]
        done = sum(slot.is_done for slot in waiting)
        self._progress(
            Progress(
                done=self._file.counts,
                session=self._file.counts - self._before,
                started_rows=done + sum(tokens) / self._request.max_new_tokens,
                started_tokens=sum(slot.handle.num_tokens for slot in waiting if slot.handle is not None),
                run_s=now - self._begin_s,
                total_rows=self._total_rows(self._file.counts.rows + len(waiting), at_end),
            )
        )
        if now - self._noted_s > NOTE_S:
            self._noted_s = now
            self._dataset.check_unchanged()
            self._note("running")

    def _total_rows(self, num_read: int, at_end: bool) -> float | None:
        share = self._dataset.share_read()
        known = self._dataset.num_rows
        total: float | None = num_read if at_end else None if known is None else self._file.shard.rows_of(known)
        if total is None and share:
            total = num_read / share
        return total if self._limit is None else min(self._limit, total or self._limit)

    def _note(self, ended: Any) -> None:
        session = replace(
            self._summary.sessions[-1],
            run_s=time.perf_counter() - self._begin_s,
            counts=self._file.counts - self._before,
            reused_tokens=self._reused_tokens,
            process_peak_memory_bytes=process_peak_memory_bytes(),
            ended=ended,
        )
        if ended == "finished":  # who interrupts it does not want to wait
            self._meter.end(session.run_s)
        self._summary = replace(
            self._summary,
            counts=self._file.counts,
            written=self._file.written,
            finished=ended == "finished",
            sessions=(*self._summary.sessions[:-1], self._meter.noted(session)),
        )
        self._file.sync()
        self._write_summary()

    def _write_summary(self) -> None:
        try:
            self._summary.write(self._summary_file)
        except OSError as error:
            raise not_written(self._summary_file, error) from error
