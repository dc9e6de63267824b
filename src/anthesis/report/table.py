"""A report for a terminal: tables that fit its width, and bars of the latencies."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anthesis.errors import printable
from anthesis.report.columns import EMPTY, EVALUATION_COLUMNS, LINE_COLUMNS, Grid, grid, remarks
from anthesis.report.contents import Contents
from anthesis.report.line import Line
from anthesis.report.notes import general_notes, price_lines, source_lines, verdict
from anthesis.report.original import TITLE, pivot, remark, seconds
from anthesis.units import duration

_UNBOUNDED = 100_000
_BAR, _BAR_EIGHTHS = 32, " ▏▎▍▌▋▊▉"
_GAP = 2


def table(contents: Contents, width: int | None, is_styled: bool) -> str:
    """The report, with a line break at its end.

    Args:
        contents: what it shows.
        width: most columns, which a terminal has; None: as wide as it must be.
        is_styled: it may be coloured.
    """
    text = io.StringIO()
    console = Console(
        file=text, width=width or _UNBOUNDED, force_terminal=is_styled, highlight=False, emoji=False,
        color_system="standard" if is_styled else None, legacy_windows=False,
    )  # fmt: skip
    console.print(Text(verdict(contents), style="bold"), soft_wrap=width is None)
    columns = [column for column in LINE_COLUMNS if not column.is_remark]
    notes: dict[str, str] = {}
    for lines in (contents.points, contents.data_sets):
        if lines:
            shown = grid(lines, columns)
            notes |= dict(shown.notes)
            published = {f"#{line.number}" for line in lines if line.is_published}
            bad = {f"#{line.number}" for line in lines if line.error or line.invalid}
            _print_grid(console, shown, lambda row: _style(row[0], published, bad))  # noqa: B023
    for remark_line in remarks(contents.lines):
        console.print(Text(remark_line), soft_wrap=width is None)
    _print_notes(console, notes)
    _print_bars(console, [line for line in contents.points if line.has_latency])
    if contents.evaluations:
        _heading(console, "quality")
        evaluated = grid(contents.evaluations, EVALUATION_COLUMNS)
        _print_grid(console, evaluated, lambda row: "")
        _print_notes(console, dict(evaluated.notes))
    if contents.with_published:
        _heading(console, TITLE)
        _print_pivot(console, contents)
    for title, texts in (
        ("", general_notes(contents)),
        ("prices", price_lines(contents)),
        ("published", source_lines(contents)),
    ):
        if texts:
            _heading(console, title)
        for text_line in texts:
            console.print(Text(text_line), soft_wrap=width is None)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _style(number: str, published: set[str], bad: set[str]) -> str:
    return "dim" if number in published else "red" if number in bad else ""


def _heading(console: Console, title: str) -> None:
    console.print()
    if title:
        console.print(Text(title, style="bold"))


def _print_grid(console: Console, shown: Grid, style: Callable[[list[str]], str]) -> None:
    console.print()
    for title, text in shown.shared:
        console.print(Text(f"{title}: {text}"), soft_wrap=True)
    for block in _blocks(shown, console.width):
        console.print()
        printed = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold", pad_edge=False)
        for i in block:
            left = shown.titles[i] in shown.left
            printed.add_column(
                Text(shown.titles[i]), justify="left" if left else "right", no_wrap=not left, overflow="fold"
            )
        rows = [row for row in shown.rows if any(row[i] != EMPTY for i in block[1:])]
        for row in rows:
            printed.add_row(*(Text(row[i]) for i in block), style=style(row))
        console.print(printed)
    console.print()


def _print_notes(console: Console, notes: Mapping[str, str]) -> None:
    console.print()
    for title, note in notes.items():
        console.print(Text(f"{title}: {note}", style="dim"), soft_wrap=console.width == _UNBOUNDED)


def _blocks(shown: Grid, width: int) -> list[list[int]]:
    """The columns, in as many tables as it takes so that none is wider than the terminal; each begins with the first.

    A column that is wider alone is folded.
    """
    widths = [max(map(len, (title, *cells))) + _GAP for title, *cells in zip(shown.titles, *shown.rows, strict=True)]
    blocks: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if sum(widths[j] for j in blocks[-1]) + widths[i] - _GAP > width and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks


def _print_bars(console: Console, lines: Sequence[Line]) -> None:
    """A bar for each line: how long a token takes."""
    if len(lines) < 2:
        return
    _heading(console, "time per token, its share of the prompt included")
    most = max(line.latency_s or 0.0 for line in lines)
    names = [printable(f"{line.name}, {line.label}", 200) for line in lines]
    figures = [duration(line.latency_s or 0.0) for line in lines]
    numbers = [f"#{line.number}" for line in lines]
    fixed = max(map(len, numbers)) + max(map(len, figures)) + _BAR + 3
    room = max(16, console.width - fixed)
    longest = min(room, max(map(len, names)))
    for line, name, figure, number in zip(lines, names, figures, numbers, strict=True):
        cut = name if len(name) <= longest else name[: longest - 1] + "…"
        bar = _bar((line.latency_s or 0.0) / most)
        text = f"{number:>{max(map(len, numbers))}} {cut:<{longest}} {figure:>{max(map(len, figures))}} "
        console.print(Text(text + bar, style="dim" if line.is_published else ""), soft_wrap=True)


def _bar(part: float) -> str:
    """A bar of so many of the most columns, to an eighth of one; never nothing."""
    eighths = max(1, round(part * _BAR * 8))
    return "█" * (eighths // 8) + (_BAR_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _print_pivot(console: Console, contents: Contents) -> None:
    found = pivot(contents.lines)
    printed = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold", pad_edge=False)
    for title in ("model", "devices", *found.places):
        printed.add_column(Text(title), justify="right" if title == "devices" else "left", overflow="fold")
    for model, devices, cells in found.rows:
        texts = ["\n".join(f"{seconds(line)} #{line.number} {remark(line)}" for line in cell) or "-" for cell in cells]
        printed.add_row(Text(model), str(devices), *map(Text, texts))
    console.print(printed)
