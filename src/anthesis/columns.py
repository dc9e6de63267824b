"""Text in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> list[str]:
    """The lines of a table, never cut.

    Args:
        titles: of the columns.
        rows: their cells.
        left: titles of the columns that stand at the left of their width; the others stand at the right.
    """
    padded = []
    for column in zip(titles, *rows, strict=True):
        width = max(map(len, column))
        padded.append([cell.ljust(width) if column[0] in left else cell.rjust(width) for cell in column])
    return [" ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
