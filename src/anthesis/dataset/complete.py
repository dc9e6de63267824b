"""Completes a data set row by row, so that it can be killed at any moment and started again.

The rows' completions depend on nothing but the request, which the summary beside the output records. On a
batch-invariant device the output's bytes are the same however often the run was interrupted.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anthesis
from anthesis.bench.machine import this_machine, versions
from anthesis.dataset.output import OutputFile
from anthesis.dataset.read import DataSet
from anthesis.dataset.request import Request
from anthesis.dataset.run import Progress, Run
from anthesis.dataset.summary import Session, Summary, read_summary, summary_path
from anthesis.devices.device import DeviceInfo
from anthesis.errors import RequestError
from anthesis.llm import LLM

logger = logging.getLogger("anthesis")

_MADE_BY = ("model", "device", "anthesis")
"""What of a request is known only once the model is open."""


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
            known = {name: value for name, value in before.request.items() if name not in _MADE_BY}
            _check_same(output, known, wanted)
            file.recover(before.written)
            if file.torn_bytes:
                logger.warning("a row that was not whole was cut off %s; it is done again", output)
            if request.limit is not None and file.counts.rows > request.limit:
                raise RequestError(
                    f"{output} holds {file.counts.rows:,} rows already, more than --limit {request.limit:,}"
                )
        with open_llm() as llm:
            if llm.tokenizer is None:
                raise RequestError(f"{llm.description} has no tokenizer, so it can't read the texts of a data set")
            wanted |= _made_by(llm)
            if before is not None:
                _check_same(output, before.request, wanted)
                if _is_whole(before, request, file):
                    return Outcome(before, None)
                _warn_of_another_computer(before, llm.device_info)
                logger.warning("going on after the %s rows that %s holds", f"{file.counts.rows:,}", output)
            load(llm)
            run = Run(request, dataset, file, summary_path(output), llm, wanted, before, threads, progress)
            summary = run.run()
            return Outcome(summary, summary.sessions[-1])


def _earlier(output: Path, file: OutputFile) -> Summary | None:
    """The summary of earlier sessions, if any of their rows are there."""
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


def _warn_of_another_computer(before: Summary, device: DeviceInfo) -> None:
    """Says that the last bits of the arithmetic may be other ones, which now and then change a token."""
    then = _computing(before.machine.processor, before.device.description)
    now = _computing(this_machine().processor, device.description)
    numpy_then, numpy_now = before.versions.get("numpy"), versions()["numpy"]
    if (then, numpy_then) != (now, numpy_now):
        logger.warning(
            "the rows that are there were computed on %s with NumPy %s, and this is %s with NumPy %s: "
            "the output may differ from a run without interruption",
            then,
            numpy_then,
            now,
            numpy_now,
        )


def _computing(processor: str, device: str) -> str:
    """The processor and what a device says of itself, but for its number of threads, which changes nothing."""
    device = re.sub(r", \d+ threads?$", "", device)
    return device if processor in device else f"{device}, {processor}"


def _wanted(request: Request, dataset: DataSet, before: Summary | None) -> dict[str, Any]:
    """What the rows depend on, as far as it is known before the model is loaded."""
    sampling = asdict(request.params)
    del sampling["seed"], sampling["logprobs"]
    seed = None
    if sampling["temperature"] > 0:  # else nothing depends on it
        seed = request.seed
        if seed is None and before is not None:
            seed = before.request.get("seed")
        if seed is None:
            seed = secrets.randbits(63)
    return {
        "data_set": dataset.identity,
        "prompt_tokens": request.prompt_tokens,
        **sampling,
        "stop": list(sampling["stop"]),
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


def _check_same(output: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to mix the rows of two requests."""
    differences = list(_differences("", then, now))
    if differences:
        raise RequestError(
            f"{output} belongs to another request: {'; '.join(differences)}. Move it away, or name another file with -o"
        )


def _differences(name: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _differences(f"{name}.{key}" if name else key, then.get(key), now.get(key))
    elif then != now:
        if name.endswith("sampled_sha256"):
            yield f"the content of its {'data set' if name.startswith('data') else 'model'} is another one now"
        else:
            yield f"{name} was {then!r} and is {now!r} now"
