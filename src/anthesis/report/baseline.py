"""How many times as fast as a chosen line the others are, where that means something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anthesis.errors import RequestError, few, printable
from anthesis.report.line import Line


def choose(lines: Sequence[Line], wanted: str) -> Line:
    """The line that --baseline names.

    Args:
        lines: numbered.
        wanted: "#3" or "3", or words that all stand in the description of one line only.

    Raises:
        RequestError: none, several, or one without figures that may be compared.
    """
    number = wanted.strip().removeprefix("#")
    if number.isdecimal():
        found = [line for line in lines if line.number == int(number)]
    else:
        words = wanted.casefold().split()
        found = [line for line in lines if words and all(word in _described(line).casefold() for word in words)]
    if len(found) != 1:
        choices = found if len(found) > 1 else [line for line in lines if line.has_latency]
        names = few([f"#{line.number} {_described(line)}" for line in choices], 20)
        what = f"matches {len(found)} rows" if found else "matches no row"
        raise RequestError(f"--baseline {printable(wanted)!r} {what}; choose one by its number: {names or 'none'}")
    if not found[0].has_latency:
        why = found[0].error or found[0].invalid or "it is no point with a latency"
        raise RequestError(f"--baseline #{found[0].number} has no figure to compare with: {printable(why)}")
    return found[0]


def is_comparable(line: Line, other: Line) -> bool:
    """Whether a ratio of the two says something: models of one size, the same tokens asked for, the same batch."""

    def job(of: Line) -> tuple[int | None, ...]:
        return of.parameters, of.prompt_tokens, of.new_tokens, of.batch

    return line.has_latency and other.has_latency and None not in job(line) and job(line) == job(other)


def with_ratios(line: Line, baseline: Line) -> Line:
    """The line with how many times as fast as the baseline it is."""
    if not is_comparable(line, baseline):
        return line
    return replace(
        line,
        times_as_fast_token=_times(baseline.token_s, line.token_s),
        times_as_fast=_times(baseline.total_s, line.total_s),
    )


def _times(baseline_s: float | None, line_s: float | None) -> float | None:
    return baseline_s / line_s if baseline_s and line_s else None


def _described(line: Line) -> str:
    words = (line.model, line.label, line.variant)
    return printable(", ".join(word for word in words if word))
