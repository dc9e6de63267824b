"""The formats of a report. csv and json hold every column in SI units; html, table and md are for people."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields
from typing import Any

from anthesis.errors import RequestError
from anthesis.json_text import format_json
from anthesis.report.contents import Contents
from anthesis.report.line import Line

SCHEMA_VERSION = 1
FORMATS = ("table", "md", "csv", "json", "html")


def check_format(form: str) -> None:
    """Refuses what is no format.

    Raises:
        RequestError: another format, or html without the package that draws its charts.
    """
    if form not in FORMATS:
        raise RequestError(f"unknown format {form!r}; known are: {', '.join(FORMATS)}")
    if form == "html":
        from anthesis.report.html import check_plotly

        check_plotly()


def render(contents: Contents, form: str, *, width: int | None = None, is_styled: bool = False) -> str:
    """A report as text, with a line break at its end.

    Args:
        contents: what it shows.
        form: one of `FORMATS`.
        width: most columns of a table, which a terminal has; None: as wide as it must be.
        is_styled: a table may be coloured.

    Raises:
        RequestError: another format, or html without the package that draws its charts.
    """
    check_format(form)
    if form == "html":
        from anthesis.report.html import page

        return page(contents)
    if form == "md":
        from anthesis.report.markdown import markdown

        return markdown(contents)
    if form == "table":
        from anthesis.report.table import table

        return table(contents, width, is_styled)
    return _csv(contents) if form == "csv" else _json(contents)


def _csv(contents: Contents) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Line)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in asdict(line).items()} for line in contents.lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def _json(contents: Contents) -> str:
    document = {
        "kind": "report",
        "schema_version": SCHEMA_VERSION,
        "lines": [asdict(line) for line in contents.lines],
        "evaluations": [asdict(found) for found in contents.evaluations],
        "prices": [asdict(price) for price in contents.prices],
        "baseline": None if contents.baseline is None else contents.baseline.number,
    }
    return format_json(document)
