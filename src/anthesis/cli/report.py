"""`anthesis report`: result files, and what others have published, as one report."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from anthesis.cli import options
from anthesis.cli.document import check_output, write_text
from anthesis.cli.terminal import is_styled
from anthesis.errors import RequestError

COMPARE = "Beside them"

Results = Annotated[
    list[Path],
    typer.Argument(metavar="RESULT...", show_default=False, help="Of bench -o, complete, or evaluate -o."),
]
Published = Annotated[
    bool,
    typer.Option("--published", metavar="", rich_help_panel=COMPARE, help="Gaudi, Gaudi2 and A100, as published."),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="ROW",
        rich_help_panel=COMPARE,
        help="Ratios to this row: its number, or words that only it has.",
    ),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="NAME=USD",
        rich_help_panel=COMPARE,
        help="Per hour of one device; or a csv file of prices. Repeatable.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        rich_help_panel=options.OUTPUT,
        show_default=False,
        help="table md csv json html; left out: what FILE ends in, or table.",
    ),
]
TextFile = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", rich_help_panel=options.OUTPUT, help="Write to FILE instead."),
]


def report(
    results: Results,
    published: Published = False,
    baseline: Baseline = None,
    price: Prices = None,
    form: Format = None,
    output: TextFile = None,
) -> None:
    """Show results of bench, complete and evaluate as one report.

    html is one file with charts; csv and json hold every figure, in SI units; table and md are for people.
    A csv file of prices has the columns device, usd_per_hour, source, date.

    $ anthesis report results/*.json --published -o report.html
    """
    from anthesis.report import check_format, compose, read_prices, read_results, render

    form = form or _format_of(output)
    check_format(form)  # better said before files are read
    _check_terminal(form, output)
    if output is not None:
        check_output(output)
    prices = read_prices(price or ())
    contents = compose(read_results(results), published=published, prices=prices, baseline=baseline)
    if output is not None:
        write_text(render(contents, form), output)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    sys.stdout.write(render(contents, form, width=width, is_styled=is_styled(sys.stdout)))


def _format_of(output: Path | None) -> str:
    """What the file's name ends in, or a table."""
    from anthesis.report import FORMATS

    ending = "" if output is None else output.suffix.removeprefix(".")
    return ending if ending in FORMATS else "table"


def _check_terminal(form: str, output: Path | None) -> None:
    if form == "html" and output is None and sys.stdout.isatty():
        raise RequestError("html is megabytes for a browser, not for a terminal; name a file with -o report.html")
