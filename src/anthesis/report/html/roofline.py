"""The roofline: what rows computed a second, under the roofs of their machines."""

from __future__ import annotations

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
    places = list(dict.fromkeys(mark.line.place for mark in marks))
    for place, is_prefill in product(places, (False, True)):
        shade = colour(places.index(place))
        some = [mark for mark in marks if mark.is_prefill is is_prefill and mark.line.place == place]
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
    roofs = _roofs(found, least, most)
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "operations per byte read"}, "type": "log", "dtick": 1},
        "yaxis": {"title": {"text": "operations per second"}, "type": "log", "tickformat": "~s"},
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


def _roofs(lines: Sequence[Line], least: float, most: float) -> list[Figure]:
    """The roofs of each place and each kind of inputs, at the medians of its lines."""
    places: dict[str, list[Line]] = {}
    for line in lines:
        places.setdefault(line.place or "", []).append(line)
    roofs: list[Figure] = []
    for i, (place, found) in enumerate(places.items()):
        speeds = sorted(line.read_bandwidth_bytes_per_s for line in found if line.read_bandwidth_bytes_per_s)
        if not speeds:
            continue
        speed = speeds[len(speeds) // 2]
        kinds = sorted({kind for line in found for kind in line.multiply_adds_per_s or {}})
        for kind in kinds or [""]:
            peaks = sorted(peak for line in found if (peak := (line.multiply_adds_per_s or {}).get(kind)))
            peak = 2 * peaks[len(peaks) // 2] if peaks else 0.0
            ridge = peak / speed if peak else most
            xs = [least, *([ridge] if least < ridge < most else []), max(most, ridge * 2 if peak else most)]
            ys = [min(x * speed, peak) if peak else x * speed for x in xs]
            dash = _DASHES[kinds.index(kind) % len(_DASHES)] if kind else _DASHES[0]
            told_of = f"{amount(speed, 'B/s')} read" + (f", {amount(peak, 'flop/s')} {kind}" if peak else "")
            roofs.append(
                {
                    "type": "scatter", "mode": "lines", "x": xs, "y": ys, "hoverinfo": "text",
                    "name": text_of(f"{cut(place, 24)}: {told_of}" if len(places) > 1 else told_of),
                    "hovertext": [text_of(f"{place}: {told_of}")] * len(xs),
                    "line": {"color": colour(i), "width": 1.5, "dash": dash},
                }
            )  # fmt: skip
    return roofs
