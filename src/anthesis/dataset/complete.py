"""Completes a data set row by row, so that it can be killed at any moment and started again.

The rows' completions depend on nothing but the request, which the summary beside the output records. Rows run together
in one engine, join and leave it as they come and finish, and are written in their order. On a batch-invariant device
the output's bytes are the same however often the run was interrupted.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anthesis
from anthesis.bench.loaded import device_of, model_of
from anthesis.bench.machine import process_peak_memory_bytes, this_machine, versions
from anthesis.completion import Handle
from anthesis.dataset.output import OutputFile, row_line
from anthesis.dataset.read import DataSet, Row
from anthesis.dataset.summary import Counts, Session, Summary, read_summary, summary_path
from anthesis.engine.sampling import SamplingParams
from anthesis.errors import AnthesisError, RequestError
from anthesis.llm import LLM, MAX_SEQUENCES

logger = logging.getLogger("anthesis")

BATCH = 64
"""Rows at once where memory allows more: beyond it the weights' reading is shared well enough (docs/log.md)."""

READ_AHEAD = 4
"""Rows that were read and are not written, at most, in batches: a slow row holds back those behind it."""

MIN_TEXT_CHARACTERS = 1 << 16
TEXT_CHARACTERS_PER_TOKEN = 64
NOTE_S = 10.0
"""Seconds between two notes in the summary of how far a session is."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to do with each row.

    Attributes:
        prompt_tokens: of the row's beginning that make the prompt. Only the text's first characters are looked at, 64
            for each of these tokens and at least 65,536.
        max_new_tokens: to generate at most.
        limit: most rows; None: all.
        batch: rows at once; None: chosen by the memory.
        seed: of drawn tokens; row r draws with seed + r. None: a new one, or that of the run to go on with.
        sampling: the other arguments of `LLM.generate`.

    Raises:
        RequestError: a number out of its range.
    """

    prompt_tokens: int = 16
    max_new_tokens: int = 50
    limit: int | None = None
    batch: int | None = None
    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "limit", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; it must be at least 1")
        if self.batch is not None and self.batch > MAX_SEQUENCES:
            raise RequestError(f"batch is {self.batch}; at most {MAX_SEQUENCES} sequences run at once")
        SamplingParams(max_new_tokens=self.max_new_tokens, seed=self.seed or 0, **self.sampling)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        done: what is in the output.
        session: of that, what this session has done.
        run_s: since its first row.
        total_rows: of the whole output; estimated from the bytes that were read, where nobody has counted the rows,
            and None before there is anything to estimate it from.
    """

    done: Counts
    session: Counts
    run_s: float
    total_rows: float | None

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the rate of this session, or None."""
        if self.total_rows is None or not self.session.rows:
            return None
        return max(0.0, self.total_rows - self.done.rows) * self.run_s / self.session.rows


def complete(
    request: Request,
    dataset: DataSet,
    output: Path,
    open_llm: Callable[[], LLM],
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Completes a data set into a file, or goes on with one.

    Args:
        request: what to do with each row.
        dataset: the rows.
        output: JSON lines, one for each row, in order; the summary stands beside it.
        open_llm: loads the model, once it is clear that there is something to do.
        threads: that the model was asked to use, for the summary.
        progress: told after rows were written, and now and then.

    Returns:
        The summary, as it stands in its file.

    Raises:
        RequestError: the output belongs to another request, another process is writing it, or the model can't take
            the rows.
        DataSetError: the data set vanished or was changed.
        AnthesisError: the output can't be written any more.
    """
    with OutputFile(output) as file:
        before = _earlier(output, file)
        wanted = _wanted(request, dataset, before)
        if before is not None:
            _check_same(output, before, wanted, ())
            file.recover()
            if file.torn_bytes:
                logger.warning("a row that was not whole was cut off %s; it is done again", output)
            if request.limit is not None and file.counts.rows > request.limit:
                raise RequestError(
                    f"{output} holds {file.counts.rows:,} rows already, more than --limit {request.limit:,}"
                )
            if file.counts.rows and not _is_whole(before, request, file):
                logger.warning("going on after the %s rows that %s holds", f"{file.counts.rows:,}", output)
        if before is not None and _is_whole(before, request, file):
            return before
        with open_llm() as llm:
            wanted |= _made_by(llm)
            if before is not None:
                _check_same(output, before, wanted, ("model", "device", "anthesis"))
            return _Run(request, dataset, file, summary_path(output), llm, wanted, before, threads, progress).run()


def _earlier(output: Path, file: OutputFile) -> Summary | None:
    """The summary of an earlier session."""
    path = summary_path(output)
    if not path.exists():
        if file.size:
            raise RequestError(
                f"{output} is there already, and no {path.name} beside it says which request it belongs to; "
                "move it away, or name another file with -o"
            )
        return None
    found = read_summary(path)
    # of rows that were moved away only the summary is left: a new run may take its place
    return found if file.size or not found.counts.rows else None


def _is_whole(before: Summary, request: Request, file: OutputFile) -> bool:
    """Whether nothing is left to do: all rows were there, or there are as many as are wanted."""
    if request.limit is not None and file.counts.rows == request.limit:
        return before.finished and before.counts.rows == file.counts.rows
    return before.finished and before.counts.rows == file.counts.rows and before.limit in (None, request.limit)


def _wanted(request: Request, dataset: DataSet, before: Summary | None) -> dict[str, Any]:
    """What the rows depend on, as far as it is known before the model is loaded."""
    sampling: dict[str, Any] = {**request.sampling, "stop": list(request.sampling.get("stop", ()))}
    seed = request.seed
    if seed is None and sampling.get("temperature", 0.0) > 0:
        seed = before.request.get("seed") if before is not None else None
        seed = secrets.randbits(63) if seed is None else seed
    return {
        "data_set": dataset.identity,
        "prompt_tokens": request.prompt_tokens,
        "max_new_tokens": request.max_new_tokens,
        **sampling,
        "seed": seed,
    }


def _made_by(llm: LLM) -> dict[str, Any]:
    """What else they depend on: the model, and what computes it."""
    return {
        "model": {
            "description": llm.description,
            "sampled_sha256": llm.fingerprint,
            "weights": "+".join(llm.loaded.weight_kinds),
            "cache": llm.loaded.cache_dtype,
            "max_context": llm.max_context,
        },
        "device": {"name": llm.device_info.name, "arithmetic": llm.device_info.arithmetic},
        "anthesis": anthesis.__version__,
    }


def _check_same(output: Path, before: Summary, wanted: dict[str, Any], more: tuple[str, ...]) -> None:
    """Refuses to mix rows of two requests; without `more`, what the model says of itself is not looked at yet."""
    names = more or tuple(name for name in {**before.request, **wanted} if name not in ("model", "device", "anthesis"))
    differences = [text for name in names for text in _differences(name, before.request.get(name), wanted.get(name))]
    if differences:
        raise RequestError(
            f"{output} belongs to another request: {'; '.join(differences)}. Move it away, or name another file with -o"
        )


def _differences(name: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _differences(f"{name}.{key}", then.get(key), now.get(key))
    elif then != now:
        if name.endswith("sampled_sha256"):
            yield f"the content of its {'data set' if name.startswith('data') else 'model'} is another one now"
        else:
            yield f"{name} was {then!r} and is {now!r} now"


@dataclass
class _Slot:
    """A row that was read and is not written yet: on its way through the engine, or failed already."""

    row: int
    handle: Handle | None
    error: str | None

    @property
    def is_done(self) -> bool:
        return self.handle is None or self.handle.finished


class _Run:
    """One session: reads rows ahead, keeps the engine full, writes what is done, in order."""

    def __init__(
        self,
        request: Request,
        dataset: DataSet,
        file: OutputFile,
        summary_file: Path,
        llm: LLM,
        wanted: dict[str, Any],
        before: Summary | None,
        threads: int | None,
        progress: Callable[[Progress], None],
    ) -> None:
        if llm.tokenizer is None:
            raise RequestError(f"{llm.description} has no tokenizer, so it can't read the texts of a data set")
        self._request, self._dataset, self._file, self._llm = request, dataset, file, llm
        self._decode = llm.tokenizer.decode
        self._summary_file, self._progress = summary_file, progress
        self._seed = wanted["seed"]
        self._batch = self._choose_batch()
        self._begin_s = time.perf_counter()
        self._noted_s = self._begin_s
        self._before = file.counts
        past = () if before is None else before.sessions
        self._summary = Summary(
            request=wanted,
            limit=request.limit,
            finished=False,
            counts=file.counts,
            # a session that wrote no last note was killed
            sessions=(
                *past,
                Session(
                    started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    load_s=llm.load_s,
                    run_s=0.0,
                    counts=Counts(),
                    batch=self._batch,
                    threads=threads,
                    process_peak_memory_bytes=process_peak_memory_bytes(),
                    ended="running",
                ),
            ),
            model=model_of(llm),
            device=device_of(llm),
            machine=this_machine(),
            versions=versions(),
        )

    def run(self) -> Summary:
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
                    self._note(ended)
        return self._summary

    def _choose_batch(self) -> int:
        limit = self._request.prompt_tokens + self._request.max_new_tokens
        fits = self._llm.max_batch(limit)
        batch = self._request.batch or min(BATCH, fits)
        if batch > fits:
            raise RequestError(
                f"batch is {batch}; the memory for the cache holds {fits} rows of {limit} tokens: ask for fewer, or "
                "give more --cache-memory"
            )
        told = f"the memory for the cache holds {fits}, and more than {BATCH} gain little"
        if self._request.batch is not None:
            told = "as asked for"
        elif batch < BATCH:
            told = "the memory for the cache holds no more"
        logger.warning("batch %d: rows of up to %d tokens at once; %s", batch, limit, told)
        return batch

    def _complete_rows(self) -> None:
        first, limit = self._file.counts.rows, self._request.limit
        rows = enumerate(self._dataset.rows(first), first)
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
                    return
                self._llm.step()
                self._tell(self._file.counts.rows + len(waiting))
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
        except RequestError as error:
            return _Slot(number, None, str(error))
        return _Slot(number, handle, None)

    def _write(self, slot: _Slot) -> None:
        if slot.handle is None:
            self._append(slot, Counts(rows=1, failed_rows=1), None, None, None)
            return
        done = slot.handle.completion
        counts = Counts(rows=1, prompt_tokens=len(done.prompt_token_ids), completion_tokens=len(done.token_ids))
        self._append(slot, counts, self._decode(done.prompt_token_ids), done.text, done.finish_reason)

    def _append(
        self, slot: _Slot, counts: Counts, prompt: str | None, completion: str | None, reason: str | None
    ) -> None:
        line = row_line(
            slot.row,
            prompt=prompt,
            completion=completion,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            finish_reason=reason,
            error=slot.error,
        )
        self._file.append(line, counts)

    def _tell(self, num_read: int) -> None:
        now = time.perf_counter()
        self._progress(
            Progress(
                done=self._file.counts,
                session=self._file.counts - self._before,
                run_s=now - self._begin_s,
                total_rows=self._total_rows(num_read),
            )
        )
        if now - self._noted_s > NOTE_S:
            self._noted_s = now
            self._note("running")

    def _total_rows(self, num_read: int) -> float | None:
        share = self._dataset.share_read()
        total: float | None = self._dataset.num_rows
        if total is None and share:
            total = num_read / share
        limit = self._request.limit
        return total if limit is None else min(limit, total or limit)

    def _note(self, ended: Any) -> None:
        session = replace(
            self._summary.sessions[-1],
            run_s=time.perf_counter() - self._begin_s,
            counts=self._file.counts - self._before,
            process_peak_memory_bytes=process_peak_memory_bytes(),
            ended=ended,
        )
        self._summary = replace(
            self._summary,
            counts=self._file.counts,
            finished=ended == "finished",
            sessions=(*self._summary.sessions[:-1], session),
        )
        self._file.sync()
        self._write_summary()

    def _write_summary(self) -> None:
        try:
            self._summary.write(self._summary_file)
        except OSError as error:
            raise AnthesisError(
                f"{self._summary_file} could not be written: {error.strerror}; the rows that are there are whole. "
                "Make room, and start the same command again: it goes on where it was"
            ) from error
