"""Measures every combination of a request: one row each, and a row that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import product

from anthesis.bench.machine import this_machine, versions
from anthesis.bench.measure import Progress, measure
from anthesis.bench.measurement import Measurement
from anthesis.bench.request import Request
from anthesis.bench.result import CLOCKS, Point, Report, Row
from anthesis.errors import AnthesisError, RequestError
from anthesis.llm import LLM
from anthesis.parallel.variables import launched


def sweep(
    request: Request,
    progress: Progress = lambda text, done: None,
    on_weight: Callable[[int, int], None] = lambda loaded, total: None,
) -> Report:
    """Measures each of weights x tp x prompt tokens x batch.

    Args:
        request: what to measure.
        progress: told what begins.
        on_weight: as in `LLM`.

    Returns:
        The report; its rows stand in the order weights, tp, prompt tokens, batch.

    Raises:
        AnthesisError: the only point there is could not be measured.
        RequestError: several points, and the ranks of a launcher, which serve one.
    """
    if len(points_of(request)) > 1 and max(request.tp) * request.pp > 1 and launched() is not None:
        raise RequestError("the ranks that a launcher has started serve one model; measure one point at a time")
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = this_machine()
    points = points_of(request)
    rows: list[Row] = []
    software = versions()
    for point in points:
        try:
            progress(f"{_named(point)}: loading", 0.0)
            with _open(request, point, on_weight) as llm:
                software |= llm.loaded.device.versions()
                rows.append(_measured(point, measure(llm, request, point, _labelled(point, progress))))
        except (AnthesisError, MemoryError) as error:
            if len(points) == 1:
                raise
            rows.append(_failed(point, error))
    return Report(
        started_at=started_at,
        request=asdict(request),
        machine=machine,
        versions=software,
        clocks=dict(CLOCKS),
        rows=tuple(rows),
    )


def points_of(request: Request) -> list[Point]:
    """All combinations of what is swept, in the order weights, tp, prompt tokens, batch."""
    prompts: tuple[int | None, ...] = request.prompt_tokens or (None,)
    return [
        Point(batch=batch, weights=weights, tp=tp, prompt_tokens=prompt_tokens)
        for weights, tp, prompt_tokens, batch in product(request.weights, request.tp, prompts, request.batch)
    ]


def _open(request: Request, point: Point, on_weight: Callable[[int, int], None]) -> LLM:
    return LLM(
        request.model,
        weights=point.weights,
        device=request.device,
        tp=point.tp,
        pp=request.pp,
        threads=request.threads,
        max_context=request.max_context,
        cache=request.cache,
        cache_memory=request.cache_memory,
        prefill_chunk=request.prefill_chunk,
        invariant=request.invariant,
        seed=request.seed,
        on_weight=on_weight,
    )


def _named(point: Point) -> str:
    prompt = "" if point.prompt_tokens is None else f", prompt tokens {point.prompt_tokens}"
    return f"batch {point.batch}, weights {point.weights}, tp {point.tp}{prompt}"


def _labelled(point: Point, progress: Progress) -> Progress:
    return lambda text, done: progress(f"{_named(point)}: {text}", done)


def _measured(point: Point, measurement: Measurement) -> Row:
    return Row(point=point, measurement=measurement, error=None)


def _failed(point: Point, error: Exception) -> Row:
    return Row(point=point, measurement=None, error=" ".join(str(error).split()) or type(error).__name__)
