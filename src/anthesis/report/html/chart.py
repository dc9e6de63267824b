"""What all charts of a report share: Plotly's description of one, its colours, and the texts in it.

Colours are names of the page's own, "var(--own)": it puts in those of the light or the dark scheme. A mark carries the
number of its line as `customdata`, and what it says as `hovertext`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from anthesis.errors import printable
from anthesis.report.line import Line

Figure = dict[str, Any]

_SERIES = 8
_POWERS = range(-12, 13)  # of ten, at which axes have marks: nothing that was measured is beyond
_POWERS_ALONE = 1e3  # from this ratio on marks between them would stand too close
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, or why there is none.

    Attributes:
        name: in the page's addresses.
        title: above it.
        caption: what is shown how.
        summary: the same for those who can't see it.
        figure: `data` and `layout`, and `wide` and `narrow`, what differs of the layout; None: nothing to show.
        missing: why there is none.
    """

    name: str
    title: str
    caption: str
    summary: str = ""
    figure: Figure | None = None
    missing: str = ""


def text_of(text: str) -> str:
    """A text for Plotly, which takes some tags and references to characters in it for its own."""
    return printable(text, 300).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def drawn(chart: Chart, summary: str, figure: Figure) -> Chart:
    """The chart with a figure."""
    return replace(chart, summary=summary, figure=figure)


def colour(i: int) -> str:
    """The name of one of the page's colours for series, the same for the same number."""
    return f"var(--series-{i % _SERIES + 1})"


def time_unit(seconds: float) -> tuple[float, str]:
    """What to divide by, and the unit that this gives."""
    return (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")


def told(line: Line, figure: str) -> str:
    """What a mark says: its line, and a figure of it."""
    variant = f" ({printable(line.variant)})" if line.variant else ""
    return f"{text_of(line.title)}{text_of(variant)}<br>{text_of(figure)}"


def cut(text: str, most: int) -> str:
    """The text, or the beginning of one that is longer."""
    return text if len(text) <= most else text[: most - 1] + "…"


def log_axis(values: Iterable[float]) -> Figure:
    """A logarithmic axis over values above 0, with marks at 1, 2 and 5 times powers of ten, written out.

    Over many powers there are marks at these alone; between values that none of these is between, at more digits.
    """
    values = list(values)
    least, most = min(values), max(values)
    powers = [p for p in _POWERS if math.log10(least) - 2 < p < math.log10(most) + 2]
    digits: tuple[float, ...] = (1, 2, 5) if most / least < _POWERS_ALONE else (1,)
    if not any(least <= digit * 10.0**power <= most for power in powers for digit in digits):
        digits = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    marks = [digit * 10.0**power for power in powers for digit in digits]
    return {"type": "log", "tickvals": marks, "ticktext": [f"{mark:,.10g}" for mark in marks]}
