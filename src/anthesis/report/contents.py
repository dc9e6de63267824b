"""What a report shows, whatever its format: lines with their numbers, prices, ratios and quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anthesis.report import baseline as baselines
from anthesis.report.line import COMPLETE, Line
from anthesis.report.prices import Price, check_used, price_of, with_price
from anthesis.report.published import published_lines, published_prices
from anthesis.report.quality import Evaluated, evaluated, with_quality
from anthesis.report.result_file import Entry, ResultFile


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A report.

    Attributes:
        entries: numbered from 1 on: those of the files in their order, then what is published.
        evaluations: among the files.
        evaluation_files: that they are from, in the same order.
        prices: that some line has, each once.
        baseline: the line that ratios are to, or None.
        with_published: figures of others are among the entries.
    """

    entries: tuple[Entry, ...]
    evaluations: tuple[Evaluated, ...] = ()
    evaluation_files: tuple[ResultFile, ...] = ()
    prices: tuple[Price, ...] = ()
    baseline: Line | None = None
    with_published: bool = False

    @property
    def lines(self) -> list[Line]:
        """Those of the entries."""
        return [entry.line for entry in self.entries]

    @property
    def points(self) -> list[Line]:
        """The lines that are not data sets."""
        return [line for line in self.lines if line.kind != COMPLETE]

    @property
    def data_sets(self) -> list[Line]:
        """The lines that are data sets."""
        return [line for line in self.lines if line.kind == COMPLETE]


def compose(
    files: Sequence[ResultFile],
    *,
    published: bool = False,
    prices: Sequence[Price] = (),
    baseline: str | None = None,
) -> Contents:
    """A report of some files.

    Args:
        files: in their order.
        published: with the figures that others have published, and their prices where no other one fits.
        prices: of devices.
        baseline: which line to compare with, as `baseline.choose` takes it.

    Raises:
        RequestError: a price of the command line, or the baseline, is for no line.
    """
    pairs = [(file, file.evaluation) for file in files if file.evaluation is not None]
    entries = [entry for file in files for entry in file.entries]
    entries += [Entry(line, None) for line in published_lines()] if published else []
    check_used(prices, [entry.line for entry in entries])
    found: list[Entry] = []
    used: list[Price] = []
    for number, entry in enumerate(entries, start=1):
        line = with_quality(replace(entry.line, number=number), [evaluation for _, evaluation in pairs])
        price = price_of(line, prices) or (price_of(line, published_prices()) if line.is_published else None)
        used += [price] if price is not None and price not in used else []
        found.append(replace(entry, line=with_price(line, price)))
    chosen = None if baseline is None else baselines.choose([entry.line for entry in found], baseline)
    if chosen is not None:
        found = [replace(entry, line=baselines.with_ratios(entry.line, chosen)) for entry in found]
    return Contents(
        entries=tuple(found),
        evaluations=tuple(evaluated(file, evaluation) for file, evaluation in pairs),
        evaluation_files=tuple(file for file, _ in pairs),
        prices=tuple(used),
        baseline=chosen,
        with_published=published,
    )
