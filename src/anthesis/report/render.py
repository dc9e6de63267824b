"""The formats of a report. csv and json hold every column in SI units; table and md are for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from anthesis.columns import aligned
from anthesis.errors import RequestError, printable
from anthesis.json_text import format_json
from anthesis.report.line import Line
from anthesis.units import amount, duration, rate

SCHEMA_VERSION = 1
FORMATS = ("table", "md", "csv", "json")
EMPTY = "-"


@dataclass(frozen=True)
class _Column:
    """A column that people see: its title, and what it shows of a line; None for nothing to show."""

    title: str
    value: Callable[[Line], str | None]
    left: bool = False

    def cell(self, line: Line) -> str | None:
        """One line of text: names in a result file are somebody else's, and go to a terminal."""
        value = self.value(line)
        return None if value is None else printable(value, 1000)


def _of(name: str, shown: Callable[[Any], str] = str) -> Callable[[Line], str | None]:
    def cell(line: Line) -> str | None:
        value = getattr(line, name)
        return None if value is None else shown(value)

    return cell


def _count(number: int) -> str:
    return f"{number:,}"


def _tokens(line: Line) -> str | None:
    return None if line.prompt_tokens is None else f"{line.prompt_tokens}+{line.new_tokens}"


def _rows(line: Line) -> str | None:
    return None if line.rows is None else f"{line.rows:,}" + ("" if line.finished else " so far")


_COLUMNS = (
    _Column("kind", _of("kind"), left=True),
    _Column("model", _of("model"), left=True),
    _Column("processor", _of("processor"), left=True),
    _Column("device", _of("device"), left=True),
    _Column("weights", _of("weights"), left=True),
    _Column("cache", _of("cache"), left=True),
    _Column("tp", _of("tp")),
    _Column("batch", _of("batch")),
    _Column("tokens", _tokens),
    _Column("first", _of("first_token_s", duration)),
    _Column("token", _of("token_s", duration)),
    _Column("p95", _of("token_p95_s", duration)),
    _Column("prompt", _of("prefill_tokens_per_s", rate)),
    _Column("decode", _of("decode_tokens_per_s", rate)),
    _Column("in all", _of("total_s", duration)),
    _Column("tokens/s", _of("tokens_per_s", rate)),
    _Column("share", _of("share_of_bandwidth", "{:.1%}".format)),
    _Column("rows", _rows),
    _Column("failed", _of("failed_rows", _count)),
    _Column("rows/s", _of("rows_per_s", "{:.2f}/s".format)),
    _Column("memory", _of("peak_memory_bytes", lambda value: amount(value, "B"))),
    _Column("source", _of("source"), left=True),
    _Column("error", _of("error"), left=True),
    _Column("invalid", _of("invalid"), left=True),
)
_SHARED = ("kind", "model", "processor", "device", "weights", "cache", "tp", "source")
"""Columns that are said once where they are the same in every line."""

_NOTES = {
    "tokens": "of the prompt + asked for, for each sequence",
    "first": "until the first token",
    "token": "from one to the next, median; p95: 95 % stay below",
    "prompt": "prompt tokens/s until the last sequence had its first token; decode: generated tokens/s from then on",
    "in all": "one call of generate, median; a data set: all sessions without loading, to a killed one's last note",
    "share": "of the read bandwidth that was measured in the same run",
    "memory": "the most that the process ever held",
    "invalid": "why this line's figures must not be used",
}


def render(lines: Sequence[Line], form: str) -> str:
    """A report as text, with a line break at its end.

    Args:
        lines: in their order.
        form: one of `FORMATS`.

    Raises:
        RequestError: another format.
    """
    if form not in FORMATS:
        raise RequestError(f"unknown format {form!r}; known are: {', '.join(FORMATS)}")
    return {"table": _table, "md": _markdown, "csv": _csv, "json": _json}[form](lines)


def _visible(lines: Sequence[Line]) -> tuple[list[tuple[str, str]], list[_Column], list[list[str]]]:
    """What is the same in all lines, as (title, text); the other columns that hold anything; and their cells."""
    shared: list[tuple[str, str]] = []
    columns: list[_Column] = []
    for column in _COLUMNS:
        cells = [column.cell(line) for line in lines]
        if column.title in _SHARED and len(set(cells)) == 1 and cells[0] is not None:
            if (column.title, cells[0]) != ("tp", "1"):
                shared.append((column.title, cells[0]))
        elif any(cell is not None for cell in cells):
            columns.append(column)
    rows = [[column.cell(line) or EMPTY for column in columns] for line in lines]
    return shared, columns, rows


def _table(lines: Sequence[Line]) -> str:
    shared, columns, rows = _visible(lines)
    titles = [column.title for column in columns]
    heading = [f"{title}: {text}" for title, text in shared]
    table = aligned(titles, rows, [column.title for column in columns if column.left])
    notes = [f"{title}: {note}" for title, note in _NOTES.items() if title in titles]
    return "\n".join([*heading, *table, *notes, *_random(lines)]) + "\n"


def _markdown(lines: Sequence[Line]) -> str:
    shared, columns, rows = _visible(lines)
    titles = [column.title for column in columns]
    heading = [f"- {title}: {_escaped(text)}" for title, text in shared]
    rule = [":--" if column.left else "--:" for column in columns]
    table = [f"| {' | '.join(map(_escaped, cells))} |" for cells in (titles, rule, *rows)]
    notes = [f"- {title}: {note}" for title, note in _NOTES.items() if title in titles]
    notes += [f"- {text}" for text in _random(lines)]
    return "\n\n".join("\n".join(part) for part in (heading, table, notes) if part) + "\n"


def _random(lines: Sequence[Line]) -> list[str]:
    return ["random weights: the texts mean nothing, the times do"] if any(line.is_random for line in lines) else []


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _csv(lines: Sequence[Line]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Line)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    return text.getvalue()


def _json(lines: Sequence[Line]) -> str:
    document = {"kind": "report", "schema_version": SCHEMA_VERSION, "lines": [asdict(line) for line in lines]}
    return format_json(document)
