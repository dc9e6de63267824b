"""Measures every combination of a request: one row each, and a row that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import product

from anthesis.bench.machine import this_machine, versions
from anthesis.bench.measure import Progress, Request, measure
from anthesis.bench.result import CLOCKS, Measurement, Point, Report, Row
from anthesis.devices.device import Counters
from anthesis.errors import AnthesisError, RequestError
from anthesis.llm import LLM
from anthesis.parallel.variables import launched


def sweep(
    request: Request,
    progress: Progress = lambda text: None,
    on_weight: Callable[[int, int], None] = lambda loaded, total: None,
) -> Report:
    """Measures each of weights x tp x batch; a model is loaded once for all its batch sizes.

    Args:
        request: what to measure.
        progress: told what begins.
        on_weight: as in `LLM`.

    Returns:
        The report; its rows stand in the order weights, tp, batch.

    Raises:
        AnthesisError: the only point there is could not be measured.
        RequestError: several models, and the ranks of a launcher, which serve one.
    """
    if len(request.weights) * len(request.tp) > 1 and max(request.tp) * request.pp > 1 and launched() is not None:
        raise RequestError(
            "the ranks that a launcher has started serve one model; measure one kind of weights and one --tp at a time"
        )
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = this_machine()
    alone = len(request.weights) * len(request.tp) * len(request.batch) == 1
    rows: list[Row] = []
    software = versions()
    for weights, tp in product(request.weights, request.tp):
        points = [Point(batch=batch, weights=weights, tp=tp) for batch in request.batch]
        try:
            progress(f"loading, weights {weights}, tp {tp}")
            llm = _open(request, weights, tp, on_weight)
        except (AnthesisError, MemoryError) as error:
            if alone:
                raise
            rows += [_failed(point, error) for point in points]
            continue
        with llm:
            device = llm.loaded.device
            software |= device.versions()
            counted: Counters | None = None
            for point in points:
                try:
                    found = measure(llm, request, point.batch, _labelled(point, progress), counted)
                    rows.append(_measured(point, found))
                except (AnthesisError, MemoryError) as error:
                    if alone:
                        raise
                    rows.append(_failed(point, error))
                counted = device.counters()
    return Report(
        started_at=started_at,
        request=asdict(request),
        machine=machine,
        versions=software,
        clocks=dict(CLOCKS),
        rows=tuple(rows),
    )


def _open(request: Request, weights: str, tp: int, on_weight: Callable[[int, int], None]) -> LLM:
    return LLM(
        request.model,
        weights=weights,
        device=request.device,
        tp=tp,
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


def _labelled(point: Point, progress: Progress) -> Progress:
    return lambda text: progress(f"batch {point.batch}, weights {point.weights}, tp {point.tp}: {text}")


def _measured(point: Point, measurement: Measurement) -> Row:
    return Row(point=point, measurement=measurement, error=None)


def _failed(point: Point, error: Exception) -> Row:
    return Row(point=point, measurement=None, error=" ".join(str(error).split()) or type(error).__name__)
