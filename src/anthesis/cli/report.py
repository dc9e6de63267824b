"""`anthesis report`: result files as one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from anthesis.cli import options
from anthesis.cli.document import check_output, write_text

Results = Annotated[
    list[Path],
    typer.Argument(metavar="RESULT...", show_default=False, help="Of bench -o, or of complete."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        rich_help_panel=options.OUTPUT,
        show_default=False,
        help="table md csv json; left out: what FILE ends in, or table.",
    ),
]
TextFile = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", rich_help_panel=options.OUTPUT, help="Write to FILE instead."),
]


def report(results: Results, form: Format = None, output: TextFile = None) -> None:
    """Show results of bench and summaries of complete as one table.

    csv and json hold every figure, in SI units; table and md are for people.

    [dim]$[/] anthesis report results/*.json --format md
    """
    from anthesis.report import FORMATS, read_lines, render

    if form is None:
        ending = "" if output is None else output.suffix.removeprefix(".")
        form = ending if ending in FORMATS else "table"
    render([], form)  # an unknown format is better said before files are read
    if output is not None:
        check_output(output)
    # a data set is named by its output, its summary, or by both
    sources = {lines[0].source: lines for lines in map(read_lines, results) if lines}
    text = render([line for lines in sources.values() for line in lines], form)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(text, output)
