"""The table that this began with: model x number of devices x device -> seconds for 100 tokens.

A line belongs in it that generated 100 tokens for one sequence, after the prompt of the published table or another one
of 7 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anthesis.errors import printable
from anthesis.report.line import Line

TITLE = "seconds for 100 tokens"
_NEW_TOKENS, _PROMPT_TOKENS = 100, 7


@dataclass(frozen=True)
class Pivot:
    """The table.

    Attributes:
        places: the columns: what is published first, then ours.
        rows: of each model and number of devices, the lines of each place.
    """

    places: list[str]
    rows: list[tuple[str, int, list[list[Line]]]]


def pivot(lines: Sequence[Line]) -> Pivot:
    """The table of those lines that belong in it."""
    fitting = sorted(filter(_belongs, lines), key=lambda line: not line.is_published)
    prompts = {line.prompt for line in fitting if line.is_published}
    fitting = [line for line in fitting if line.prompt_tokens == _PROMPT_TOKENS or line.prompt in prompts]
    places = list(dict.fromkeys(map(_place, fitting)))
    keys = list(dict.fromkeys((line.name or "", line.devices or 1) for line in fitting))
    rows = [
        (
            printable(model),
            devices,
            [
                [
                    line
                    for line in fitting
                    if (line.name or "", line.devices or 1, _place(line)) == (model, devices, place)
                ]
                for place in places
            ],
        )
        for model, devices in keys
    ]
    return Pivot(places, rows)


def seconds(line: Line) -> str:
    """As the original has them, with three digits behind the point."""
    return f"{line.total_s or 0:.3f}"


def remark(line: Line) -> str:
    """What tells several figures in one cell apart."""
    return line.variant or line.weights or ""


def _belongs(line: Line) -> bool:
    return line.has_latency and line.batch == 1 and line.new_tokens == _NEW_TOKENS


def _place(line: Line) -> str:
    return printable(line.place or "unknown")
