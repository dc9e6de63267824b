"""The charts of a report, as Plotly describes them.

Colours are names of the page's own, "var(--own)": it puts in those of the light or the dark scheme. A mark carries the
number of its line as `customdata`, and what it says as `hovertext`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from anthesis.errors import printable
from anthesis.report.columns import share, usd
from anthesis.report.contents import Contents
from anthesis.report.line import Line
from anthesis.units import amount, duration

Figure = dict[str, Any]

_SERIES = 8
_NAMED_MARKS = 12  # more of them would cover each other's names
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


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


def charts(contents: Contents) -> list[Chart]:
    """All charts of a report, in their order."""
    points = [line for line in contents.points if line.has_latency]
    return [_latency(points), _batches(points), _roofline(points), _prices(points)]


def _latency(lines: Sequence[Line]) -> Chart:
    chart = Chart(
        name="latency",
        title="Latency",
        caption="Seconds of a whole call by the tokens that it generates for each sequence: median of the runs; the "
        "whisker is where 90 % of them lie. Hatched: published by others.",
        missing="No row has a latency to show.",
    )
    if not lines:
        return chart
    models = list(dict.fromkeys(line.model for line in sorted(lines, key=lambda line: line.is_published)))
    ordered = sorted(lines, key=lambda line: (models.index(line.model), line.latency_s or 0.0))
    scale, unit = _time_unit(max(line.latency_s or 0.0 for line in ordered))
    most = max(max(line.latency_s or 0.0, _per_token(line, line.total_p95_s) or 0.0) for line in ordered) / scale
    data = []
    for published in (False, True):
        rows = [(i, line) for i, line in enumerate(ordered) if line.is_published is published]
        if rows:
            data.append(_bars(rows, published, scale))
    data.append(
        {
            "type": "scatter", "mode": "text", "orientation": "h", "showlegend": False, "hoverinfo": "skip",
            "cliponaxis": False,
            "x": [
                max(line.latency_s or 0.0, _per_token(line, line.total_p95_s) or 0.0) / scale for line in ordered
            ],
            "y": list(range(len(ordered))),
            "text": [f" {duration(line.latency_s or 0.0)}" for line in ordered],
            "textposition": "middle right",
        }
    )  # fmt: skip
    names = [_name(line) for line in ordered]
    layout = {
        "xaxis": {"title": {"text": f"{unit} per token"}, "rangemode": "tozero", "range": [0, most * 1.2]},
        "yaxis": {"range": [len(ordered) - 0.4, -0.6], "zeroline": False, "showgrid": False, "fixedrange": True},
        "bargap": 0.35,
    }
    wide = {
        "height": 26 * len(ordered) + 110,
        "yaxis": {
            "tickvals": list(range(len(ordered))),
            "ticktext": [text_of(name) for name in names],
            "automargin": True,
        },
    }
    narrow = {
        "height": 46 * len(ordered) + 110,
        "bargap": 0.62,
        "margin": {"l": 8},
        "yaxis": {"showticklabels": False, "range": [len(ordered) - 0.5, -0.9]},
        "annotations": [
            {"text": text_of(_cut(name, 46)), "x": 0, "xref": "paper", "xanchor": "left", "y": i, "yshift": 17,
             "showarrow": False}
            for i, name in enumerate(names)
        ],
    }  # fmt: skip
    first, last = ordered[0], max(ordered, key=lambda line: line.latency_s or 0.0)
    return _drawn(
        chart,
        f"Bars of {len(ordered)} rows. First: {_plain(first)}: {duration(first.latency_s or 0.0)} per token; slowest: "
        f"{_plain(last)}: {duration(last.latency_s or 0.0)}.",
        {"data": data, "layout": layout, "wide": wide, "narrow": narrow},
    )


def _bars(rows: Sequence[tuple[int, Line]], published: bool, scale: float) -> Figure:
    lines = [line for _, line in rows]
    latencies = [line.latency_s or 0.0 for line in lines]
    highs = [(_per_token(line, line.total_p95_s) or s) - s for line, s in zip(lines, latencies, strict=True)]
    lows = [s - (_per_token(line, line.total_p5_s) or s) for line, s in zip(lines, latencies, strict=True)]
    marker: Figure = {"color": "var(--own)"}
    if published:
        marker = {
            "color": "var(--theirs-fill)",
            "line": {"color": "var(--theirs)", "width": 1},
            "pattern": {"shape": "/", "fgcolor": "var(--theirs)", "size": 6, "solidity": 0.25},
        }
    return {
        "type": "bar", "orientation": "h", "name": "published" if published else "measured",
        "x": [s / scale for s in latencies], "y": [i for i, _ in rows],
        "error_x": {
            "type": "data", "symmetric": False, "array": [s / scale for s in highs],
            "arrayminus": [s / scale for s in lows], "color": "var(--ink)", "thickness": 1.2, "width": 3,
            "visible": not published,
        },
        "marker": marker, "customdata": [line.number for line in lines], "hoverinfo": "text", "textposition": "none",
        "hovertext": [_told(line, f"{duration(s)} per token, prompt included") for line, s in zip(lines, latencies, strict=True)],
    }  # fmt: skip


def _batches(lines: Sequence[Line]) -> Chart:
    chart = Chart(
        name="batch",
        title="Latency against batch",
        caption="From one token to the next: median, and up to where 95 % of all stay. A line for each model, kind of "
        "weights, device and prompt.",
        missing="No rows differ only in their batch: measure some with bench --batch 1,8,32.",
    )
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        if line.token_s is not None and line.batch is not None:
            key = (line.model, line.weights, line.place, line.tp, line.pp, line.prompt_tokens, line.cache)
            groups.setdefault(key, []).append(line)
    swept = {key: found for key, found in groups.items() if len({line.batch for line in found}) > 1}
    if not swept:
        return chart
    shown = [line for found in swept.values() for line in found]
    scale, unit = _time_unit(max(line.token_s or 0.0 for line in shown))
    data = []
    for i, found in enumerate(swept.values()):
        rows = sorted(found, key=lambda line: line.batch or 0)
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": _group_name(rows[0], list(swept)),
                "x": [line.batch for line in rows], "y": [(line.token_s or 0.0) / scale for line in rows],
                "error_y": {
                    "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": _colour(i),
                    "array": [max(0.0, (line.token_p95_s or 0.0) - (line.token_s or 0.0)) / scale for line in rows],
                    "arrayminus": [0] * len(rows),
                },
                "marker": {"size": 9, "symbol": _SYMBOLS[i % len(_SYMBOLS)], "color": _colour(i)},
                "line": {"color": _colour(i), "width": 2}, "customdata": [line.number for line in rows],
                "hoverinfo": "text",
                "hovertext": [_told(line, f"{duration(line.token_s or 0.0)} from token to token") for line in rows],
            }
        )  # fmt: skip
    batches = sorted({line.batch or 1 for line in shown})
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "batch: sequences at once"}, "type": "log", "tickvals": batches,
                  "ticktext": [str(batch) for batch in batches]},
        "yaxis": {"title": {"text": f"{unit} per token"}, "rangemode": "tozero"},
    }  # fmt: skip
    return _drawn(
        chart,
        f"{len(swept)} lines over batches of {', '.join(map(str, batches))}.",
        {"data": data, "layout": layout, "wide": {}, "narrow": {}},
    )


def _roofline(lines: Sequence[Line]) -> Chart:
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
        some = [mark for mark in marks if mark.is_prefill is is_prefill and mark.line.place == place]
        colour = _colour(places.index(place))
        data.append(
            {
                "type": "scatter", "mode": "markers", "showlegend": False,
                "x": [mark.flops / mark.nbytes for mark in some], "y": [mark.flops / mark.seconds for mark in some],
                "marker": {
                    "size": 11, "color": colour, "line": {"width": 2, "color": colour},
                    "symbol": "diamond-open" if is_prefill else "circle",
                },
                "customdata": [mark.line.number for mark in some], "hoverinfo": "text",
                "hovertext": [_told(mark.line, mark.told) for mark in some],
            }
        )  # fmt: skip
    roofs = _roofs(found, least, most)
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "operations per byte read"}, "type": "log", "dtick": 1},
        "yaxis": {"title": {"text": "operations per second"}, "type": "log", "dtick": 1, "tickformat": "~s"},
    }
    shares = ", ".join(
        f"#{line.number} {share(line.share_of_step_floor)}" for line in found if line.share_of_step_floor
    )
    return _drawn(
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
            told = f"{amount(speed, 'B/s')} read" + (f", {amount(peak, 'flop/s')} {kind}" if peak else "")
            roofs.append(
                {
                    "type": "scatter", "mode": "lines", "x": xs, "y": ys, "hoverinfo": "text",
                    "name": text_of(f"{_cut(place, 24)}: {told}" if len(places) > 1 else told),
                    "hovertext": [text_of(f"{place}: {told}")] * len(xs),
                    "line": {"color": _colour(i), "width": 1.5, "dash": ("solid", "dash", "dot")[kinds.index(kind) % 3 if kind else 0]},
                }
            )  # fmt: skip
    return roofs


def _prices(lines: Sequence[Line]) -> Chart:
    chart = Chart(
        name="price",
        title="Price against latency",
        caption="What a million generated tokens cost against how long each takes; down and to the left is better. "
        "Both axes are logarithmic. Hollow: published by others.",
        missing="No row has a price: give one with --price NAME=USD an hour, such as --price 'h100=2.50', or a file.",
    )
    priced = [line for line in lines if line.usd_per_million_tokens]
    if not priced:
        return chart
    scale, unit = _time_unit(max(line.latency_s or 0.0 for line in priced))
    data = []
    for published in (False, True):
        rows = [line for line in priced if line.is_published is published]
        if rows:
            colour = "var(--theirs)" if published else "var(--own)"
            data.append(
                {
                    "type": "scatter", "mode": "markers+text" if len(priced) <= _NAMED_MARKS else "markers",
                    "name": "published" if published else "measured",
                    "x": [(line.latency_s or 0.0) / scale for line in rows],
                    "y": [line.usd_per_million_tokens for line in rows],
                    "text": [f"#{line.number}" for line in rows], "textposition": "top center",
                    "marker": {"size": 11, "color": colour, "symbol": "circle-open" if published else "circle",
                               "line": {"width": 2, "color": colour}},
                    "customdata": [line.number for line in rows], "hoverinfo": "text",
                    "hovertext": [
                        _told(line, f"{usd(line.usd_per_million_tokens or 0.0)} USD per million tokens at "
                                    f"{usd(line.usd_per_hour or 0.0)} USD an hour")
                        for line in rows
                    ],
                }
            )  # fmt: skip
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": f"{unit} per token"}, "type": "log"},
        "yaxis": {"title": {"text": "USD per million tokens"}, "type": "log"},
    }
    cheapest = min(priced, key=lambda line: line.usd_per_million_tokens or 0.0)
    return _drawn(
        chart,
        f"{len(priced)} rows; cheapest: {_plain(cheapest)}: {usd(cheapest.usd_per_million_tokens or 0.0)} USD per "
        "million tokens.",
        {"data": data, "layout": layout, "wide": {}, "narrow": {}},
    )


def text_of(text: str) -> str:
    """A text for Plotly, which takes some tags and references to characters in it for its own."""
    return printable(text, 300).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _drawn(chart: Chart, summary: str, figure: Figure) -> Chart:
    return replace(chart, summary=summary, figure=figure)


def _colour(i: int) -> str:
    return f"var(--series-{i % _SERIES + 1})"


def _time_unit(seconds: float) -> tuple[float, str]:
    """What to divide by, and the unit that this gives."""
    return (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")


def _per_token(line: Line, total_s: float | None) -> float | None:
    return None if total_s is None or not line.new_tokens else total_s / line.new_tokens


def _plain(line: Line) -> str:
    return f"#{line.number} {printable(line.model or '', 60)}, {printable(line.label, 100)}"


def _told(line: Line, figure: str) -> str:
    variant = f" ({printable(line.variant)})" if line.variant else ""
    return f"{text_of(_plain(line))}{text_of(variant)}<br>{text_of(figure)}"


def _name(line: Line) -> str:
    """A short name for an axis, its parts in the order in which lines differ."""
    model = _cut(printable(line.model or "", 200), 26)
    parts = [line.weights or "", f"x{line.devices}" if (line.devices or 1) > 1 else ""]
    parts += [f"b{line.batch}" if (line.batch or 1) > 1 else "", _cut(printable(line.place or ""), 20)]
    return f"#{line.number} {model} " + " ".join(part for part in parts if part)


def _group_name(line: Line, keys: Sequence[tuple[Any, ...]]) -> str:
    """What tells a line of the chart from the others: those parts of its key in which they differ."""
    model, weights, place, tp, pp, prompt, cache = zip(*keys, strict=True)
    parts = [_cut(printable(line.model or ""), 20)] if len(set(model)) > 1 else []
    parts += [line.weights or ""] if len(set(weights)) > 1 or not parts else []
    parts += [_cut(printable(line.place or ""), 16)] if len(set(place)) > 1 else []
    parts += [f"tp {line.tp}"] if len(set(tp)) > 1 else []
    parts += [f"pp {line.pp}"] if len(set(pp)) > 1 else []
    parts += [f"prompt {line.prompt_tokens}"] if len(set(prompt)) > 1 else []
    parts += [f"cache {line.cache}"] if len(set(cache)) > 1 else []
    return text_of(_cut(", ".join(parts), 44))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
