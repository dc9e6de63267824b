"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anthesis.errors import printable
from anthesis.report.columns import EVALUATION_COLUMNS, LINE_COLUMNS, Grid, grid
from anthesis.report.contents import Contents
from anthesis.report.notes import general_notes, price_lines, source_lines, verdict
from anthesis.report.original import TITLE, pivot, remark, seconds


def markdown(contents: Contents) -> str:
    """The report, with a line break at its end."""
    parts = [_escaped(verdict(contents))]
    notes: dict[str, str] = {}
    for lines in (contents.points, contents.data_sets):
        if lines:
            shown = grid(lines, LINE_COLUMNS)
            notes |= dict(shown.notes)
            parts += _grid(shown)
    parts += [_notes(notes), _list(general_notes(contents))]
    if contents.evaluations:
        evaluated = grid(contents.evaluations, EVALUATION_COLUMNS)
        parts += ["## Quality", *_grid(evaluated), _notes(dict(evaluated.notes))]
    if contents.with_published:
        parts += [f"## {TITLE.capitalize()}", _pivot(contents)]
    if price_lines(contents):
        parts += ["## Prices", _list(price_lines(contents))]
    if contents.with_published:
        parts += ["## Published figures", _list(source_lines(contents))]
    commands = [f"- #{line.number}: {_code(line.command)}" for line in contents.lines if line.command is not None] + [
        f"- {_escaped(found.source)}: {_code(found.command)}" for found in contents.evaluations
    ]
    if commands:
        parts += ["## Commands", "\n".join(commands)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _grid(shown: Grid) -> list[str]:
    rule = [":--" if title in shown.left else "--:" for title in shown.titles]
    return [
        "\n".join(f"- {title}: {_escaped(text)}" for title, text in shown.shared),
        _table(shown.titles, rule, shown.rows),
    ]


def _notes(notes: Mapping[str, str]) -> str:
    return "\n".join(f"- {title}: {note}" for title, note in notes.items())


def _pivot(contents: Contents) -> str:
    found = pivot(contents.lines)
    titles = ["model", "devices", *found.places]
    rows = []
    for model, devices, cells in found.rows:
        texts = [
            "<br>".join(f"{seconds(line)} (#{line.number}, {_escaped(remark(line))})" for line in c) for c in cells
        ]
        rows.append(f"| {' | '.join([_escaped(model), str(devices), *(text or '-' for text in texts)])} |")
    heading = _table(titles, [":--", "--:", *[":--"] * len(found.places)], [])
    return "\n".join([heading, *rows])


def _table(titles: Sequence[str], rule: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in (titles, rule, *rows))


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(text)}" for text in texts)


def _escaped(text: str) -> str:
    for character in "\\|<`*_[":
        text = text.replace(character, f"\\{character}")
    return text


def _code(command: str) -> str:
    """A command in a span that no backtick of it ends."""
    shown, fence = printable(command, 10_000), "`"
    while fence in shown:
        fence += "`"
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
