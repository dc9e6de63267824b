"""Completes a data set row by row, so that it can be killed at any moment and started again.

The rows' completions depend on nothing but the request, which the summary beside the output records. On a
batch-invariant device the output's bytes are the same however often the run was interrupted.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthesis
from anthesis.dataset.output import OutputFile
from anthesis.dataset.read import DataSet
from anthesis.dataset.request import Request
from anthesis.dataset.run import Progress, Run
from anthesis.dataset.summary import Summary, read_summary, summary_path
from anthesis.errors import RequestError
from anthesis.llm import LLM

logger = logging.getLogger("anthesis")

_MADE_BY = ("model", "device", "anthesis")
"""What of a request is known only once the model is loaded."""


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
            known = {name: value for name, value in before.request.items() if name not in _MADE_BY}
            _check_same(output, known, wanted)
            file.recover()
            if file.torn_bytes:
                logger.warning("a row that was not whole was cut off %s; it is done again", output)
            if request.limit is not None and file.counts.rows > request.limit:
                raise RequestError(
                    f"{output} holds {file.counts.rows:,} rows already, more than --limit {request.limit:,}"
                )
            if _is_whole(before, request, file):
                return before
            if file.counts.rows:
                logger.warning("going on after the %s rows that %s holds", f"{file.counts.rows:,}", output)
        with open_llm() as llm:
            wanted |= _made_by(llm)
            if before is not None:
                _check_same(output, before.request, wanted)
            return Run(request, dataset, file, summary_path(output), llm, wanted, before, threads, progress).run()


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
    rows = file.counts.rows
    return (
        before.finished
        and before.counts.rows == rows
        and (request.limit == rows or before.limit in (None, request.limit))
    )


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
