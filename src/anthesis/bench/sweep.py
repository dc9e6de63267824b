"""Measures every combination of a request: one row each, and a row that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from anthesis.bench.command import command_of, request_of_point
from anthesis.bench.failure import failure
from anthesis.bench.machine import commit, now, this_machine, versions
from anthesis.bench.partial import Partial
from anthesis.bench.point import Finished, LocalPoint, PointRun
from anthesis.bench.process import PointProcess
from anthesis.bench.request import Request
from anthesis.bench.result import CLOCKS, Point, Report, Row
from anthesis.errors import AnthesisError, RequestError
from anthesis.parallel.variables import launched


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far the work is.

    Attributes:
        row, rows: which row of how many is being measured, from 1 on.
        phase: of which row, and what is done with it: "batch 8, weights int4, tp 1: loading", ...
        detail: the same more exactly: "batch 8, weights int4, tp 1: loading 3 of 272 weights", ...
        share: of what this call has to measure, between 0 and 1, that is done.
    """

    row: int
    rows: int
    phase: str
    detail: str
    share: float


OnStatus = Callable[[Status], None]


def sweep(
    request: Request,
    on_status: OnStatus = lambda status: None,
    partial: Partial | None = None,
    on_resume: Callable[[Path, int, int], None] = lambda path, done, total: None,
    on_row: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measures each of weights x tp x prompt tokens x batch: a single one in this process, of several each in its own.

    Args:
        request: what to measure.
        on_status: told what begins.
        partial: where rows are kept as they come, and where those of an interrupted call are; of several points only.
        on_resume: called where rows are there already, with where, how many, and how many there are in all.
        on_row: called after each of several points, with the rows so far.

    Returns:
        The report; its rows stand in the order weights, tp, prompt tokens, batch.

    Raises:
        AnthesisError: the only point there is could not be measured, or rows not be kept.
        RequestError: several points, and the ranks of a launcher, which serve one; or rows of another sweep are there.
    """
    points = points_of(request)
    report = new_report(request)
    if len(points) == 1:
        started_at = now()
        with LocalPoint(request, points[0]) as point:
            finished = _measured(point, _telling(on_status, 1, 1, named(points[0])))
        return _with_row(report, _row(request, points[0], started_at, finished), finished)
    if max(request.tp) * request.pp > 1 and launched() is not None:
        raise RequestError("the ranks that a launcher has started serve one model; measure one point at a time")
    report = replace(report, finished=False)
    if partial is not None:
        report = partial.resume(report)
        if report.rows:
            on_resume(partial.path, len(report.rows), len(points))
    begun = len(report.rows)
    for number, point_asked in enumerate(points[begun:], start=begun):
        tell = _telling(on_status, number + 1, len(points), named(point_asked), begun)
        started_at = now()
        try:
            with PointProcess(request_of_point(request, point_asked), point_asked) as process:
                finished = _measured(process, tell)
            report = _with_row(report, _row(request, point_asked, started_at, finished), finished)
        except (AnthesisError, MemoryError) as error:
            report = _with_row(report, _row(request, point_asked, started_at, failure(error)))
        if partial is not None:
            partial.save(report)
        on_row(report)
    return replace(report, finished=True)


def points_of(request: Request) -> list[Point]:
    """All combinations of what is swept, in the order weights, tp, prompt tokens, batch."""
    prompts: tuple[int | None, ...] = request.prompt_tokens or (None,)
    return [
        Point(batch=batch, weights=weights, tp=tp, prompt_tokens=prompt_tokens)
        for weights, tp, prompt_tokens, batch in product(request.weights, request.tp, prompts, request.batch)
    ]


def new_report(request: Request) -> Report:
    """A report without a row, of this machine and now."""
    return Report(
        started_at=now(),
        request=asdict(request),
        machine=this_machine(),
        versions=versions(),
        clocks=dict(CLOCKS),
        rows=(),
        commit=commit(),
    )


def named(point: Point) -> str:
    """A point in words."""
    prompt = "" if point.prompt_tokens is None else f", prompt tokens {point.prompt_tokens}"
    return f"batch {point.batch}, weights {point.weights}, tp {point.tp}{prompt}"


_Tell = Callable[[str, str, float], None]
"""Told of a phase, what of it, and which share of the point's work is done by then."""


def _telling(on_status: OnStatus, row: int, rows: int, label: str, begun: int = 0) -> _Tell:
    def tell(phase: str, detail: str, share: float) -> None:
        done = (row - 1 - begun + share) / (rows - begun)
        exactly = f"{label}: {detail or phase}"
        on_status(Status(row=row, rows=rows, phase=f"{label}: {phase}", detail=exactly, share=done))

    return tell


def _measured(point: PointRun, tell: _Tell) -> Finished:
    point.load(lambda detail, share: tell("loading", detail, share))
    point.warm_up(lambda detail, share: tell("warming up", detail, share))
    while not point.run(lambda detail, share: tell("timed runs", detail, share)):
        pass
    return point.finish()


def _row(request: Request, point: Point, started_at: str, found: Finished | str) -> Row:
    """The row of a point that was measured, or of one that failed."""
    return Row(
        point=point,
        measurement=found.measurement if isinstance(found, Finished) else None,
        error=found if isinstance(found, str) else None,
        started_at=started_at,
        command=command_of(request, point),
    )


def _with_row(report: Report, row: Row, finished: Finished | None = None) -> Report:
    versions_found = {} if finished is None else finished.versions
    return replace(report, rows=(*report.rows, row), versions={**report.versions, **versions_found})
