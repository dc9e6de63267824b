"""Verdicts on rows that were measured in turns: is one faster than the other, or can no difference be seen?"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anthesis.bench.against import CHANGEABLE, SAME
from anthesis.bench.derive import decode_s
from anthesis.bench.measurement import Measurement, Run
from anthesis.bench.paired import LEAST_PAIRS, p_value, shift
from anthesis.bench.result import UNFINISHED, Report, Row
from anthesis.bench.sweep import named
from anthesis.records import to_document

SIGNIFICANCE = 0.01

BETWEEN_PROCESSES = 0.03
"""By how much two processes of one program may differ for their whole lives: where their pages lie, and the like.

Measured with `bench --against same`; docs/measuring.md has the figures. A single session can't tell such a difference
from one between programs. Several can: in each of them the processes are new.
"""

Outcome = Literal["faster", "slower", "no difference seen"]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A row, and where it stands.

    Attributes:
        source: the file.
        number: of the row in it, from 1 on.
        row: itself.
        report: that it is in.
    """

    source: str
    number: int
    row: Row
    report: Report

    @property
    def name(self) -> str:
        """For people."""
        changed = f" ({self.row.turns.changed})" if self.row.turns is not None and self.row.turns.changed else ""
        unfinished = "" if self.report.finished else f", {UNFINISHED}"
        return f"{named(self.row.point)}{changed}, row {self.number} of {self.source}{unfinished}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the pairs say of one quantity.

    Attributes:
        quantity: "in all" (by token, where the sides generate different numbers), "first token" or "per token".
        outcome: of side B, at p < 0.01.
        ratio: how many times as fast as side A side B is; above 1 it is faster.
        low, high: the 99 % interval of the ratio.
        p_value: of a difference so great where the two differ by at most `allowed`.
        allowed: part by which the sides may differ without being different.
        pairs: rounds of the session; or sessions, where there are enough of them.
    """

    quantity: str
    outcome: Outcome
    ratio: float
    low: float
    high: float
    p_value: float
    allowed: float
    pairs: int

    @property
    def text(self) -> str:
        """For people."""
        interval = f"99 % interval {self.low:.3g} to {self.high:.3g}"
        if self.outcome != "no difference seen":
            return f"B is {self.ratio:.3g} x as fast as A ({interval})"
        beyond = ""
        if self.low > 1 or self.high < 1:
            beyond = f" beyond the {self.allowed:.0%} by which two processes of one program may differ"
        missed = max(1 / self.low - 1, self.high - 1, self.allowed)
        size = f"{missed:.1%}" if missed < 1 else f"{1 + missed:.2g} x"
        return f"no difference seen{beyond} ({interval}; differences under {size} could be missed)"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two rows beside each other.

    Attributes:
        a, b: what they are.
        sessions: in which they were measured in turns; none where they were not.
        medians: of each quantity, seconds: of A and of B, for information; one entry where a row was not measured.
        verdicts: on each quantity; none where the rows are not comparable.
        not_comparable: why they are not, and what to do; or None.
    """

    a: str
    b: str
    sessions: tuple[str, ...]
    medians: dict[str, tuple[float, ...]]
    verdicts: tuple[Verdict, ...]
    not_comparable: str | None

    def document(self) -> dict[str, Any]:
        """The comparison as JSON knows it, with the texts."""
        document: dict[str, Any] = to_document(self)
        for verdict, written in zip(self.verdicts, document["verdicts"], strict=True):
            written["text"] = verdict.text
        return document


def compare(reports: Sequence[tuple[str, Report]]) -> list[Comparison]:
    """Compares the rows of result files.

    Args:
        reports: with the names of their files.

    Returns:
        First the pairs that were measured in turns; `LEAST_PAIRS` sessions or more of the same two sides are one. Then,
        of the other rows, those of the first file beside those of the second for the same point, or, of a single file,
        the others beside its first; they are not comparable.
    """
    rows = [
        Labelled(source=source, number=number, row=row, report=report)
        for source, report in reports
        for number, row in enumerate(report.rows, start=1)
    ]
    sessions: dict[str, dict[str, Labelled]] = {}
    for label in rows:
        if label.row.turns is not None:
            sessions.setdefault(label.row.turns.session, {})[label.row.turns.side] = label
    comparisons = [
        comparison for alike in _alike(sessions.values()).values() for comparison in _of_sessions(list(alike))
    ]
    alone = [label for label in rows if label.row.turns is None or len(sessions[label.row.turns.session]) == 1]
    return comparisons + [_not_in_turns(a, b) for a, b in _beside(alone)]


def _alike(sessions: Iterable[Mapping[str, Labelled]]) -> dict[Any, list[tuple[Labelled, Labelled]]]:
    """Whole sessions by what their sides are, wherever the files lie."""
    found: dict[Any, list[tuple[Labelled, Labelled]]] = {}
    for sides in sessions:
        if len(sides) == 2:
            pair = sides["A"], sides["B"]
            what = [(label.row.command, *_software(label.row)) for label in pair]
            report = pair[0].report
            where = report.machine.processor, report.machine.usable_cores, report.commit
            found.setdefault((*what, *where), []).append(pair)
    return found


def _software(row: Row) -> tuple[Any, ...]:
    """What ran it, as far as the file says."""
    turns = row.turns
    if turns is None:
        return ()
    return turns.version, turns.commit, tuple(sorted(turns.versions.items()))


def _of_sessions(pairs: list[tuple[Labelled, Labelled]]) -> list[Comparison]:
    """One comparison of all sessions if they are enough, else one of each."""
    reasons = [_why_unusable(a, b) for a, b in pairs]
    usable = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    if len(usable) < LEAST_PAIRS:
        return [
            _comparison([pair], _verdicts([pair], BETWEEN_PROCESSES) if reason is None else (), reason)
            for pair, reason in zip(pairs, reasons, strict=True)
        ]
    unusable = [(pair, reason) for pair, reason in zip(pairs, reasons, strict=True) if reason is not None]
    return [_comparison(usable, _verdicts(usable, 0.0), None), *(_comparison([p], (), why) for p, why in unusable)]


def _comparison(
    pairs: Sequence[tuple[Labelled, Labelled]], verdicts: tuple[Verdict, ...], reason: str | None
) -> Comparison:
    (a, b), *more = pairs
    others = f", and {len(more)} more sessions" if more else ""
    return Comparison(
        a=a.name,
        b=b.name + others,
        sessions=tuple(pair[0].row.turns.session for pair in pairs if pair[0].row.turns is not None),
        medians=_medians(a, b),
        verdicts=verdicts,
        not_comparable=reason,
    )


def _why_unusable(a: Labelled, b: Labelled) -> str | None:
    for side, label in (("A", a), ("B", b)):
        measured = label.row.measurement
        if measured is None:
            return f"not comparable: side {side} was not measured: {label.row.error}"
        if not all(map(_is_sound, measured.runs)):
            return f"not comparable: side {side} has a run with impossible times; the file is damaged"
        if measured.invalid:
            return f"not comparable: side {side} is invalid: {'; '.join(measured.invalid)}"
    rounds = [len(label.row.measurement.runs) for label in (a, b) if label.row.measurement is not None]
    if rounds[0] != rounds[1]:
        return f"not comparable: side A has {rounds[0]} runs and side B {rounds[1]}; the file is damaged"
    if rounds[0] < LEAST_PAIRS:
        return f"not comparable: {rounds[0]} rounds are too few, at least {LEAST_PAIRS} are needed; take more --runs"
    return None


# --- quantities -------------------------------------------------------------------------------------------------------


_Quantity = Callable[[Run], float | None]


def _quantities(a: Labelled, b: Labelled) -> dict[str, _Quantity]:
    """Seconds of a run, by what they are called."""
    rows = [label.row.measurement for label in (a, b)]
    counts = {_tokens(run) for measured in rows if measured is not None for run in measured.runs[:1]}
    # other numbers of sequences can be compared by token only
    in_all = {"in all": _total_s} if len(counts) == 1 else {"in all, by token": _total_s_by_token}
    return {**in_all, "first token": _first_s, "per token": _step_s}


def _is_sound(run: Run) -> bool:
    """Whether times can be compared; a damaged file may hold anything."""
    if not run.token_s or not all(run.token_s):
        return False
    step_s = _step_s(run)
    return min(run.total_s, _first_s(run), 1.0 if step_s is None else step_s) > 0


def _tokens(run: Run) -> int:
    return sum(map(len, run.token_s))


def _total_s(run: Run) -> float:
    return run.total_s


def _total_s_by_token(run: Run) -> float:
    return run.total_s / _tokens(run)


def _first_s(run: Run) -> float:
    return statistics.median(times[0] for times in run.token_s)


def _step_s(run: Run) -> float | None:
    steps = len(run.token_s[0]) - 1
    return decode_s(run) / steps if steps else None


def _medians(a: Labelled, b: Labelled) -> dict[str, tuple[float, ...]]:
    rows = [label.row.measurement for label in (a, b)]
    measured = [one for one in rows if one is not None and all(map(_is_sound, one.runs))]
    found = {name: [_samples(one, of) for one in measured] for name, of in _quantities(a, b).items()}
    return {name: tuple(map(statistics.median, sides)) for name, sides in found.items() if all(sides)}


def _samples(measured: Measurement, quantity: _Quantity) -> list[float]:
    return [value for value in map(quantity, measured.runs) if value is not None]


def _verdicts(pairs: Sequence[tuple[Labelled, Labelled]], allowed: float) -> tuple[Verdict, ...]:
    """On each quantity: over the rounds of one session, or over several sessions, each with its estimate."""
    verdicts = []
    for name, quantity in _quantities(*pairs[0]).items():
        logs = [_log_ratios(a.row.measurement, b.row.measurement, quantity) for a, b in pairs]
        if all(logs):
            verdicts.append(
                _verdict(name, logs[0] if len(logs) == 1 else [shift(one).estimate for one in logs], allowed)
            )
    return tuple(verdicts)


def _log_ratios(a: Measurement | None, b: Measurement | None, quantity: _Quantity) -> list[float]:
    """Of each round: the logarithm of A's seconds by B's, so that above 0 B is faster."""
    assert a is not None and b is not None
    return [math.log(x / y) for x, y in zip(_samples(a, quantity), _samples(b, quantity), strict=True)]


def _verdict(quantity: str, log_ratios: Sequence[float], allowed: float) -> Verdict:
    found, p = shift(log_ratios), p_value(log_ratios, math.log1p(allowed))
    outcome: Outcome = "no difference seen"
    if p < SIGNIFICANCE:
        outcome = "faster" if found.estimate > 0 else "slower"
    return Verdict(
        quantity=quantity,
        outcome=outcome,
        ratio=math.exp(found.estimate),
        low=math.exp(found.low),
        high=math.exp(found.high),
        p_value=p,
        allowed=allowed,
        pairs=len(log_ratios),
    )


# --- rows that were not measured in turns -----------------------------------------------------------------------------


def _beside(rows: Sequence[Labelled]) -> list[tuple[Labelled, Labelled]]:
    """Which rows of no session are shown beside which."""
    sources = list(dict.fromkeys(label.source for label in rows))
    if len(sources) == 1:
        return [(rows[0], label) for label in rows[1:]]
    sides = [[label for label in rows if label.source == source] for source in sources]
    if all(len(side) == 1 for side in sides):
        return [(sides[0][0], side[0]) for side in sides[1:]]
    return [(a, b) for side in sides[1:] for a in sides[0] for b in side if a.row.point == b.row.point]


def _not_in_turns(a: Labelled, b: Labelled) -> Comparison:
    return _comparison([(a, b)], (), f"not comparable: {_why_not(a, b)}")


def _why_not(a: Labelled, b: Labelled) -> str:
    if a.report.machine.processor != b.report.machine.processor:
        return "they were measured on two machines, which can't take turns"
    command = _command(a, b)
    return "they were not measured in turns; " + (
        f"this does: {command}" if command else "`anthesis bench ... --against ...` does that (docs/measuring.md)"
    )


def _command(a: Labelled, b: Labelled) -> str | None:
    """What measures the two in turns; None where `--against` can't say the difference, or the files don't tell it."""
    if a.row.command is None:
        return None
    was, wanted = _asked(a), _asked(b)
    changes = {name: value for name, value in wanted.items() if was.get(name) != value}
    if "speculate" in changes and changes["speculate"] is None:
        changes["speculate"] = "none"
    if any(value is None or name not in CHANGEABLE for name, value in changes.items()):
        return None
    text = ",".join(
        f"{name}={str(value).lower() if value is True or value is False else value}" for name, value in changes.items()
    )
    return f"{a.row.command} --against {shlex.quote(text or SAME)}"


def _asked(label: Labelled) -> dict[str, Any]:
    """What a row was asked for, but for how often it was run."""
    point = to_document(label.row.point)
    request = {**label.report.request, **point}
    return {k: v for k, v in request.items() if k not in ("warmup", "runs", "min_s", "operations", "against")}
