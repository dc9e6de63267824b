"""A report as one HTML file that needs nothing else: charts by Plotly, whose code is in it, and every raw result.

What stands in results is somebody else's: all of it is escaped, and the page's policy lets no script run but its own
two and no request leave it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from anthesis.errors import AnthesisError, printable
from anthesis.report.columns import EVALUATION_COLUMNS, LINE_COLUMNS, grid
from anthesis.report.contents import Contents
from anthesis.report.html.chart import Chart
from anthesis.report.html.latency import batches, latency
from anthesis.report.html.price import price
from anthesis.report.html.roofline import roofline
from anthesis.report.html.rows import data_set_table, evaluation_table, point_table
from anthesis.report.notes import general_notes, price_lines, tiles, verdict
from anthesis.report.original import TITLE, pivot, remark, seconds
from anthesis.report.published import published_sources

_HERE = Path(__file__).parent


def check_plotly() -> None:
    """Finds out whether the charts can be drawn, before any work is done.

    Raises:
        AnthesisError: the package is missing.
    """
    _plotly_code()


def page(contents: Contents) -> str:
    """The report as HTML, with a line break at its end.

    Raises:
        AnthesisError: the package that draws the charts is missing.
    """
    points = [line for line in contents.points if line.has_latency]
    drawn = [chart(points) for chart in (latency, batches, roofline, price)]
    figures = {chart.name: chart.figure for chart in drawn if chart.figure is not None}
    documents = {str(entry.line.number): entry.document for entry in contents.entries if entry.document is not None}
    documents |= {f"e{i}": file.document for i, file in enumerate(contents.evaluation_files, start=1)}
    return Template(_read("page.html")).substitute(
        policy=escape(_policy()),
        style=_read("page.css"),
        verdict=escape(verdict(contents)),
        tiles="".join(_tile(*tile) for tile in tiles(contents)),
        charts="".join(map(_chart, drawn)),
        sections="".join(_sections(contents)),
        data="".join(
            [_data("figures", figures), *(_data(f"raw-{name}", document) for name, document in documents.items())]
        ),
        plotly=_plotly_code(),
        script=_read("page.js"),
    )


def _sections(contents: Contents) -> Iterable[str]:
    if contents.points:
        yield _section("rows", "Rows", point_table(contents))
    if contents.with_published:
        yield _section("original", TITLE.capitalize(), _pivot(contents))
    if contents.data_sets:
        yield _section("data-sets", "Data sets", data_set_table(contents))
    if contents.evaluations:
        yield _section("quality", "Quality", evaluation_table(contents))
    notes = general_notes(contents)
    if price_lines(contents):
        yield _section("prices", "Prices", _list(price_lines(contents)))
    if contents.with_published:
        sources = "".join(
            f'<li><a href="{escape(source.url)}" rel="noreferrer">{escape(source.title)}</a>, {escape(source.date)}. '
            f"{escape(source.note)}</li>"
            for source in published_sources()
        )
        yield _section("sources", "Where the published figures come from", f"<ul>{sources}</ul>")
    meanings = dict(grid(contents.lines, LINE_COLUMNS).notes)
    meanings |= {f"quality: {title}": note for title, note in grid(contents.evaluations, EVALUATION_COLUMNS).notes}
    terms = "".join(f"<dt>{escape(title)}</dt><dd>{escape(note)}</dd>" for title, note in meanings.items())
    yield _section("meaning", "What the figures mean", _list(notes) + f'<dl class="facts">{terms}</dl>')


def _section(name: str, title: str, body: str) -> str:
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{body}</section>'


def _list(texts: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def _tile(title: str, value: str, about: str, number: int | None) -> str:
    body = f"<dt>{escape(title)}</dt><dd><b>{escape(value)}</b><span>{escape(about)}</span></dd>"
    return f'<a class="tile" href="#row-{number}"><dl>{body}</dl></a>' if number else f'<dl class="tile">{body}</dl>'


def _chart(chart: Chart) -> str:
    title = f'<h2 id="{chart.name}-title">{escape(chart.title)}</h2>'
    if chart.figure is None:
        return (
            f'<figure id="{chart.name}" class="chart none" aria-labelledby="{chart.name}-title"><figcaption>{title}'
            f"</figcaption><p>Not drawn: {escape(chart.missing)}</p></figure>"
        )
    return (
        f'<figure id="{chart.name}" class="chart" aria-labelledby="{chart.name}-title"><figcaption>{title}'
        f"<p>{escape(chart.caption)}</p></figcaption>"
        f'<div id="chart-{chart.name}" class="plot" role="group" aria-label="{escape(chart.summary)}"></div></figure>'
    )


def _pivot(contents: Contents) -> str:
    found = pivot(contents.lines)
    heads = "".join(f'<th scope="col">{escape(place)}</th>' for place in found.places)
    rows = []
    for model, devices, cells in found.rows:
        texts = [
            "".join(
                f'<a class="{"theirs" if line.is_published else "ours"}" href="#row-{line.number}">'
                f"<b>{seconds(line)}</b> <small>{escape(printable(remark(line)))}</small></a>"
                for line in cell
            )
            for cell in cells
        ]
        body = "".join(
            f'<td data-label="{escape(place)}"{"" if text else " class=empty"}>{text or "-"}</td>'
            for place, text in zip(found.places, texts, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(model)}</th><td data-label="devices">{devices}</td>{body}</tr>')
    return (
        "<p>Batch 1, the published prompt or another of 7 tokens. Each figure leads to its row; "
        '<span class="theirs">those of others are in grey</span>.</p>'
        f'<div class="scroll"><table class="grid pivot"><thead><tr><th scope="col">Model</th>'
        f'<th scope="col">Devices</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _data(name: str, value: Any) -> str:
    """A value for the page's script, in an element that nothing in it can end."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for, which a damaged file may hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def _policy() -> str:
    """What the page may do: run its scripts, style itself, and show images that it has made."""
    scripts = (_plotly_code(), _read("page.js"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@cache
def _plotly_code() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise AnthesisError(
            "an html report needs plotly, which draws its charts; pip install 'anthesis[report]', or choose another "
            "--format"
        ) from error
    # as the element's text, in which this would end it
    code: str = get_plotlyjs()
    return code.replace("</script", "<\\/script").replace("\r\n", "\n").replace("\r", "\n")


def _read(name: str) -> str:
    return (_HERE / name).read_text("utf-8")
