"""The roofline: what rows computed a second, under the roofs of their machines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from anthesis.report.columns import share
from anthesis.report.html.chart import Chart, Figure, colour, cut, drawn, text_of, told
from anthesis.report.line import Line
from anthesis.units import amount

_DASHES = ("solid", "dash", "dot")


def roofline(lines: Sequence[Line]) -> Chart:
    """Every line with a limit, under the roofs of its device.

    Source:
        Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009.
    """
    chart = Chart(
        name="limit",
        title="Share of the limit",
        caption="What was computed a second, against what is computed for each byte read. The roofs are the read "
        "bandwidth (slanted) and the arithmetic peaks (level) measured between the runs; a mark on its roof can't "
        "be faster. Filled: a decode step; hollow: the prompts.",
        missing="No row holds the limits of its machine: results of this version have them.",
    )
    marks = [mark for line in lines for mark in _work(line)]
    if not marks:
        return chart
    found = [line for line in lines if _work(line)]
    intensities = [mark.flops / mark.nbytes for mark in marks]
    least, most = min(intensities) / 4, max(intensities) * 4
    data: list[Figure] = []
    places = list(dict.fromkeys(_place(mark.line) for mark in marks))
    for place, is_prefill in product(places, (False, True)):
        shade = colour(places.index(place))
        some = [mark for mark in marks if mark.is_prefill is is_prefill and _place(mark.line) == place]
        data.append(
            {
                "type": "scatter", "mode": "markers", "showlegend": False,
                "x": [mark.flops / mark.nbytes for mark in some], "y": [mark.flops / mark.seconds for mark in some],
                "marker": {
                    "size": 11, "color": shade, "line": {"width": 2, "color": shade},
                    "symbol": "diamond-open" if is_prefill else "circle",
                },
                "customdata": [mark.line.number for mark in some], "hoverinfo": "text",
                "hovertext": [told(mark.line, mark.told) for mark in some],
            }
        )  # fmt: skip
    roofs = _drawn_roofs(_roofs(found), least, most)
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "operations per byte read"}, "type": "log", "dtick": 1},
        "yaxis": {"title": {"text": "operations per second"}, "type": "log", "tickformat": "~s", "dtick": 1},
    }
    shares = ", ".join(
        f"#{line.number} {share(line.share_of_step_floor)}" for line in found if line.share_of_step_floor
    )
    return drawn(
        replace(chart, caption=f"{chart.caption} Decode steps came to this share of it: {shares or 'unknown'}."),
        f"Roofline of {len(found)} rows. Shares of the limit of a decode step: {shares or 'unknown'}.",
        {"data": [*roofs, *data], "layout": layout, "wide": {}, "narrow": {}},
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a line did in some time."""

    line: Line
    is_prefill: bool
    flops: float
    nbytes: float
    seconds: float

    @property
    def told(self) -> str:
        of = self.line.share_of_prefill_floor if self.is_prefill else self.line.share_of_step_floor
        by = self.line.prefill_bound if self.is_prefill else self.line.step_bound
        what = "prompts" if self.is_prefill else "decode"
        near = "limit unknown" if of is None else f"{share(of)} of the limit" + (f", bound by {by}" if by else "")
        return f"{what}: {near}; {amount(self.flops / self.seconds, 'flop/s')}"


def _work(line: Line) -> list[_Work]:
    found = []
    for is_prefill, flops, nbytes, seconds in (
        (False, line.step_flops, line.step_bytes, line.step_s),
        (True, line.prefill_flops, line.prefill_bytes, line.prefill_s),
    ):
        if flops and nbytes and seconds:
            found.append(_Work(line=line, is_prefill=is_prefill, flops=flops, nbytes=nbytes, seconds=seconds))
    return found


def _place(line: Line) -> str:
    """What has a roof of its own: a device, or several of them together."""
    several = f" x{line.devices}" if (line.devices or 1) > 1 else ""
    return f"{cut(line.place or '', 24)}{several}"


@dataclass(frozen=True, kw_only=True)
class _Roof:
    """The least time of any work at these speeds, as what it lets be computed in a second."""

    index: int
    place: str
    kind: str
    dash: str
    read_bytes_per_s: float
    flops_per_s: float | None

    def under(self, intensity: float) -> float:
        """What can be computed a second at so many operations per byte."""
        return min(intensity * self.read_bytes_per_s, self.flops_per_s or math.inf)

    @property
    def ridge(self) -> float | None:
        """Operations per byte from which on computing is what takes longer."""
        return None if self.flops_per_s is None else self.flops_per_s / self.read_bytes_per_s

    @property
    def told(self) -> str:
        computed = "" if self.flops_per_s is None else f", {amount(self.flops_per_s, 'flop/s')} {self.kind}"
        return f"{amount(self.read_bytes_per_s, 'B/s')} read{computed}"


def _roofs(lines: Sequence[Line]) -> list[_Roof]:
    """The roofs of each place and each kind of inputs, at the medians of its lines."""
    places: dict[str, list[Line]] = {}
    for line in lines:
        places.setdefault(_place(line), []).append(line)
    roofs = []
    for index, (place, found) in enumerate(places.items()):
        speeds = [line.read_bandwidth_bytes_per_s for line in found if line.read_bandwidth_bytes_per_s]
        kinds = sorted({kind for line in found for kind in line.multiply_adds_per_s or {}})
        for i, kind in enumerate(kinds or [""]):
            peaks = [peak for line in found if (peak := (line.multiply_adds_per_s or {}).get(kind))]
            if speeds:
                roofs.append(
                    _Roof(
                        index=index,
                        place=place,
                        kind=kind,
                        dash=_DASHES[i % len(_DASHES)],
                        read_bytes_per_s=statistics.median(speeds),
                        flops_per_s=2 * statistics.median(peaks) if peaks else None,
                    )
                )
    return roofs


def _drawn_roofs(roofs: Sequence[_Roof], least: float, most: float) -> list[Figure]:
    """All roofs from the same intensity to the same one, which is beyond all their ridges."""
    ridges = [roof.ridge for roof in roofs if roof.ridge is not None]
    far = max([most, *(2 * ridge for ridge in ridges)])
    figures = []
    for roof in roofs:
        xs = [least, *([roof.ridge] if roof.ridge is not None and least < roof.ridge else []), far]
        name = f"{roof.place}: {roof.told}" if len({roof.place for roof in roofs}) > 1 else roof.told
        figures.append(
            {
                "type": "scatter", "mode": "lines", "x": xs, "y": [roof.under(x) for x in xs], "hoverinfo": "text",
                "name": text_of(name), "hovertext": [text_of(f"{roof.place}: {roof.told}")] * len(xs),
                "line": {"color": colour(roof.index), "width": 1.5, "dash": roof.dash},
            }
        )  # fmt: skip
    return figures
