"""Completes a data set row by row, so that it can be killed at any moment and started again.

The rows' completions depend on nothing but the request, which the summary beside the output records. On a
batch-invariant device the output's bytes are the same however often the run was interrupted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anthesis.dataset.identity import check_same, known_unopened, made_by, wanted_of, warn_of_another_computer
from anthesis.dataset.limit import Meter
from anthesis.dataset.output import OutputFile
from anthesis.dataset.read import DataSet
from anthesis.dataset.request import Request
from anthesis.dataset.run import Progress, Run
from anthesis.dataset.shard_set import check_no_shards
from anthesis.dataset.summary import Session, Summary, read_summary, summary_path
from anthesis.errors import RequestError
from anthesis.llm import LLM

logger = logging.getLogger("anthesis")


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        summary: as it stands in its file.
        session: what this start did; None where all rows were there already.
    """

    summary: Summary
    session: Session | None


def complete(
    request: Request,
    dataset: DataSet,
    output: Path,
    open_llm: Callable[[], LLM],
    *,
    load: Callable[[LLM], None] = LLM.load,
    threads: int | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    command: str | None = None,
) -> Outcome:
    """Completes a data set into a file, or goes on with one.

    Args:
        request: what to do with each row.
        dataset: the rows.
        output: JSON lines, one for each row, in order; the summary stands beside it.
        open_llm: opens the model, with `LLM(load=False)`.
        load: reads its weights, once it is clear that there is something to do.
        threads: that the model was asked to use, for the summary.
        progress: told after rows were written, and now and then.
        command: that asks for it, for the summary; or None.

    Raises:
        RequestError: the output belongs to another request, another process is writing it, or the model can't take
            the rows.
        DataSetError: the data set vanished or was changed.
        AnthesisError: the output can't be written any more.
    """
    with OutputFile(output) as file:
        if not file.size:
            check_no_shards(output)
        before = earlier_summary(output, file)
        wanted = wanted_of(request, dataset, None if before is None else before.request)
        if before is not None:
            check_same(output, known_unopened(before.request), wanted)
            file.recover(before.written)
            if file.torn_bytes:
                logger.warning("a row that was not whole was cut off %s; it is done again", output)
            if request.limit is not None and file.counts.rows > request.limit:
                raise RequestError(
                    f"{output} holds {file.counts.rows:,} rows already, more than --limit {request.limit:,}"
                )
        with open_llm() as llm:
            wanted |= made_by(llm)
            if before is not None:
                check_same(output, before.request, wanted)
                if _is_whole(before, request, file):
                    return Outcome(before, None)
                warn_of_another_computer(before, llm.device_info)
                logger.warning("going on after the %s rows that %s holds", f"{file.counts.rows:,}", output)
            meter = Meter(llm)
            load(llm)
            run = Run(
                request, dataset, file, summary_path(output), llm, meter, wanted, before, threads, progress,
                load_s=llm.load_s, command=command,
            )  # fmt: skip
            summary = run.run()
            return Outcome(summary, summary.sessions[-1])


def earlier_summary(output: Path, file: OutputFile) -> Summary | None:
    """The summary of earlier sessions, if any of their rows are there.

    Args:
        output: the file's path.
        file: the same, open.

    Raises:
        RequestError: there are rows and no summary, or it can't be read or written to.
    """
    path = summary_path(output)
    try:
        is_there = path.exists()
    except OSError as error:
        raise RequestError(
            f"{path} can't be the summary of -o {output}: {error.strerror}; name another file"
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise RequestError(
            f"the directory of -o {output} can't be written to, and {path.name} has to stand there; name another place"
        )
    if not file.size:
        return None  # of rows that were moved away, or that never came, only the summary is left
    if not is_there:
        raise RequestError(
            f"{output} is there already, and no {path.name} beside it says which request it belongs to; "
            "move it away, or name another file with -o"
        )
    try:
        return read_summary(path)
    except RequestError as error:
        raise RequestError(
            f"{error}, so it does not say which request {output} belongs to; move both away, or name another file "
            "with -o"
        ) from error


def _is_whole(before: Summary, request: Request, file: OutputFile) -> bool:
    """Whether nothing is left to do: as many rows are there as are wanted, or as the data set has."""
    rows = file.counts.rows
    if request.limit == rows:
        return True
    # a run that ended below its limit came to the end of the data set
    return before.finished and before.counts.rows == rows and (before.limit is None or rows < before.limit)
