"""Price against latency."""

from __future__ import annotations

from collections.abc import Sequence

from anthesis.report.columns import usd
from anthesis.report.html.chart import Chart, drawn, log_axis, time_unit, told
from anthesis.report.line import Line

_NAMED_MARKS = 12  # more of them would cover each other's names


def price(lines: Sequence[Line]) -> Chart:
    """What tokens cost, and how long they take."""
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
    scale, unit = time_unit(max(line.latency_s or 0.0 for line in priced))
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
                        told(line, f"{usd(line.usd_per_million_tokens or 0.0)} USD per million tokens at "
                                    f"{usd(line.usd_per_hour or 0.0)} USD an hour")
                        for line in rows
                    ],
                }
            )  # fmt: skip
    layout = {
        "height": 420,
        "xaxis": {
            "title": {"text": f"{unit} per token"},
            **log_axis((line.latency_s or 0.0) / scale for line in priced),
        },
        "yaxis": {
            "title": {"text": "USD per million tokens"},
            **log_axis(line.usd_per_million_tokens for line in priced if line.usd_per_million_tokens),
        },
    }
    cheapest = min(priced, key=lambda line: line.usd_per_million_tokens or 0.0)
    return drawn(
        chart,
        f"{len(priced)} rows; cheapest: {cheapest.title}: {usd(cheapest.usd_per_million_tokens or 0.0)} USD per "
        "million tokens.",
        {"data": data, "layout": layout, "wide": {}, "narrow": {}},
    )
