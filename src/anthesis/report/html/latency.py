"""Charts of latencies: bars with their spread, and lines against the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anthesis.errors import printable
from anthesis.report.html.chart import SYMBOLS, Chart, Figure, colour, cut, drawn, text_of, time_unit, told
from anthesis.report.line import Line
from anthesis.units import duration


def latency(lines: Sequence[Line]) -> Chart:
    """A bar for each line, by models, the fastest of each first."""
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
    scale, unit = time_unit(max(line.latency_s or 0.0 for line in ordered))
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
            {"text": text_of(cut(name, 46)), "x": 0, "xref": "paper", "xanchor": "left", "y": i, "yshift": 17,
             "showarrow": False}
            for i, name in enumerate(names)
        ],
    }  # fmt: skip
    first, last = ordered[0], max(ordered, key=lambda line: line.latency_s or 0.0)
    return drawn(
        chart,
        f"Bars of {len(ordered)} rows. First: {first.title}: {duration(first.latency_s or 0.0)} per token; slowest: "
        f"{last.title}: {duration(last.latency_s or 0.0)}.",
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
        "hovertext": [told(line, f"{duration(line.latency_s or 0.0)} per token, prompt included") for line in lines],
    }  # fmt: skip


def batches(lines: Sequence[Line]) -> Chart:
    """Time from token to token of lines that differ in their batch only."""
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
    scale, unit = time_unit(max(line.token_s or 0.0 for line in shown))
    data = []
    for i, found in enumerate(swept.values()):
        rows = sorted(found, key=lambda line: line.batch or 0)
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": _group_name(rows[0], list(swept)),
                "x": [line.batch for line in rows], "y": [(line.token_s or 0.0) / scale for line in rows],
                "error_y": {
                    "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour(i),
                    "array": [max(0.0, (line.token_p95_s or 0.0) - (line.token_s or 0.0)) / scale for line in rows],
                    "arrayminus": [0] * len(rows),
                },
                "marker": {"size": 9, "symbol": SYMBOLS[i % len(SYMBOLS)], "color": colour(i)},
                "line": {"color": colour(i), "width": 2}, "customdata": [line.number for line in rows],
                "hoverinfo": "text",
                "hovertext": [told(line, f"{duration(line.token_s or 0.0)} from token to token") for line in rows],
            }
        )  # fmt: skip
    batches = sorted({line.batch or 1 for line in shown})
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "batch: sequences at once"}, "type": "log", "tickvals": batches,
                  "ticktext": [str(batch) for batch in batches]},
        "yaxis": {"title": {"text": f"{unit} per token"}, "rangemode": "tozero"},
    }  # fmt: skip
    return drawn(
        chart,
        f"{len(swept)} lines over batches of {', '.join(map(str, batches))}.",
        {"data": data, "layout": layout, "wide": {}, "narrow": {}},
    )


def _name(line: Line) -> str:
    """A short name for an axis, its parts in the order in which lines differ."""
    model = cut(printable(line.name or "", 200), 26)
    parts = [line.weights or "", f"x{line.devices}" if (line.devices or 1) > 1 else ""]
    parts += [f"b{line.batch}" if (line.batch or 1) > 1 else "", cut(printable(line.place or ""), 20)]
    return cut(f"#{line.number} {model} " + " ".join(part for part in parts if part), 60)


def _group_name(line: Line, keys: Sequence[tuple[Any, ...]]) -> str:
    """What tells a line of the chart from the others: those parts of its key in which they differ."""
    model, weights, place, tp, pp, prompt, cache = zip(*keys, strict=True)
    parts = [cut(printable(line.name or ""), 20)] if len(set(model)) > 1 else []
    parts += [line.weights or ""] if len(set(weights)) > 1 or not parts else []
    parts += [cut(printable(line.place or ""), 16)] if len(set(place)) > 1 else []
    parts += [f"tp {line.tp}"] if len(set(tp)) > 1 else []
    parts += [f"pp {line.pp}"] if len(set(pp)) > 1 else []
    parts += [f"prompt {line.prompt_tokens}"] if len(set(prompt)) > 1 else []
    parts += [f"cache {line.cache}"] if len(set(cache)) > 1 else []
    return text_of(cut(", ".join(parts), 44))


def _per_token(line: Line, total_s: float | None) -> float | None:
    return None if total_s is None or not line.new_tokens else total_s / line.new_tokens
