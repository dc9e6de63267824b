"""`anthesis compare`: is one of two rows that were measured in turns faster than the other?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anthesis.cli import options
from anthesis.cli.document import print_json
from anthesis.units import duration

if TYPE_CHECKING:
    from anthesis.bench.verdict import Comparison

Results = Annotated[
    list[Path],
    typer.Argument(metavar="RESULT...", show_default=False, help="Of bench -o."),
]


def compare(results: Results, json: options.Json = False) -> None:
    """Say which of two rows is faster, where they were measured in turns: at p < 0.01, with a 99 % interval.

    `bench --against` measures in turns. Other rows are not comparable; their medians are shown side by side.

    From 8 sessions of the same two sides on, their files together give one verdict, which sees smaller differences.

    $ anthesis compare result.json
    """
    from anthesis.bench import read_report
    from anthesis.bench.verdict import compare as compared

    files = {path.resolve(): path for path in results}  # one named twice is one
    comparisons = compared([(str(path), read_report(path)) for path in files.values()])
    if json:
        print_json({"kind": "compare", "schema_version": 1, "comparisons": [one.document() for one in comparisons]})
        return
    if not comparisons:
        print("there are no two rows to compare")
    for one in comparisons:
        print_comparison(one)


def print_comparison(comparison: Comparison) -> None:
    """Prints the verdicts on two rows, or why there are none, with their medians."""
    print(f"A: {comparison.a}")
    print(f"B: {comparison.b}")
    print_verdicts(comparison)


def print_verdicts(comparison: Comparison) -> None:
    """Prints the verdicts only, a line each."""
    verdicts = {verdict.quantity: verdict.text for verdict in comparison.verdicts}
    for quantity, medians in comparison.medians.items():
        said = f": {verdicts[quantity]}" if quantity in verdicts else ""
        print(f"  {quantity:<11} {' | '.join(map(duration, medians))}{said}")
    if comparison.not_comparable is not None:
        print(f"  {comparison.not_comparable}")
