"""`anthesis merge`: the shards of a data set become one file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anthesis.cli.signals import exit_on_sigterm
from anthesis.cli.terminal import tell
from anthesis.errors import few
from anthesis.units import counted

if TYPE_CHECKING:
    from anthesis.dataset import Merged

logger = logging.getLogger("anthesis")

MergedFile = Annotated[
    Path, typer.Argument(metavar="FILE", show_default=False, help="That complete --num-shards was given as -o.")
]
RemoveShards = Annotated[
    bool, typer.Option("--remove-shards", metavar="", help="Remove FILE.shards when its rows are in FILE.")
]


def merge(file: MergedFile, remove_shards: RemoveShards = False) -> None:
    """Put the shards of a data set together, and make sure that each row is there once.

    Shards are what complete --num-shards writes, on any number of machines; FILE becomes what one would have written.

    $ anthesis merge out.jsonl
    \f
    Raises:
        RequestError: as `anthesis.dataset.merge`.
    """
    from anthesis.dataset import merge as merge_shards
    from anthesis.dataset.shard_set import ShardSet

    exit_on_sigterm()
    merged = merge_shards(file)
    tell_merged(merged, file)
    if remove_shards:
        shards = ShardSet(file)
        foreign = shards.remove()
        left = f", but for {few(foreign)}, which no worker wrote" if foreign else ""
        tell(f"{shards.path} was removed{left}")
    exit_if_none_done(merged)


def exit_if_none_done(merged: Merged) -> None:
    """Ends the command as one that failed if each row did.

    Raises:
        typer.Exit: it did.
    """
    if merged.summary.counts.rows == merged.summary.counts.failed_rows:
        raise typer.Exit(1)


def tell_merged(merged: Merged, output: Path) -> None:
    """Says what came of it."""
    from anthesis.dataset.summary import summary_path

    counts, share = merged.summary.counts, merged.summary.share_of_limit
    near = "" if share is None else f", at {share:.1%} of the limit"
    failed = f", {counts.failed_rows:,} of them with an error instead" if counts.failed_rows else ""
    were = "all there already" if merged.was_there else "each there once"
    tell(
        f"{counted(counts.rows, 'row')} of {counted(merged.num_shards, 'shard')} in {output}, {were}{failed}: "
        f"{counts.completion_tokens:,} tokens generated and counted{near}; times in {summary_path(output)}"
    )
