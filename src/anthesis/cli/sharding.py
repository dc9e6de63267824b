"""`anthesis complete --num-shards`: one of many workers, or a pool of them on Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anthesis.cli import options
from anthesis.cli.completing import CompletingBar
from anthesis.cli.loading import load
from anthesis.cli.merge import exit_if_none_done, tell_merged
from anthesis.cli.terminal import tell
from anthesis.errors import RequestError, check_counts, few
from anthesis.units import counted, duration

if TYPE_CHECKING:
    from anthesis.dataset import DataSet, Request, Work
    from anthesis.llm import LLM

logger = logging.getLogger("anthesis")

SHARDS = "Data set"
AUTO = "auto"
ENGINES = ("local", "ray")


def shards_or_auto(text: str) -> int | str:
    """A number of shards, or "auto".

    Raises:
        typer.BadParameter: something else.
    """
    try:
        return text if text == AUTO else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor {AUTO}") from None


NumShards = Annotated[
    Any,
    typer.Option(
        "--num-shards",
        metavar="S",
        parser=shards_or_auto,
        rich_help_panel=SHARDS,
        help="For many workers, or auto; see merge.",
    ),
]
OneShard = Annotated[
    int | None,
    typer.Option(
        "--shard",
        metavar="I",
        parser=options.whole_number,
        rich_help_panel=SHARDS,
        help="Only this one; left out: any that is free.",
    ),
]
Engine = Annotated[str, typer.Option("--engine", metavar="NAME", rich_help_panel=SHARDS, help="local, or ray: a pool.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        parser=options.whole_number,
        rich_help_panel=SHARDS,
        help="Of ray; left out: one for each machine.",
    ),
]


def check(num_shards: int | str | None, shard: int | None, engine: str, workers: int | None) -> None:
    """Refuses flags that don't go together, before anything is opened.

    Raises:
        RequestError: they don't; the message says why.
    """
    from anthesis.dataset.shard import Shard

    if engine not in ENGINES:
        raise RequestError(f"unknown engine {engine!r:.60}; known are: {', '.join(ENGINES)}")
    if engine != "ray" and workers is not None:
        raise RequestError("--workers is for --engine ray; elsewhere each start of the command is one worker")
    if engine == "ray" and shard is not None:
        raise RequestError("--shard names one shard, and --engine ray completes all of them; leave one of them out")
    if shard is not None and num_shards is None:
        raise RequestError("--shard needs --num-shards, which says into how many the rows are dealt")
    check_counts(workers=workers)
    if isinstance(num_shards, int):
        Shard(shard or 0, num_shards)


def work(
    request: Request,
    dataset: DataSet,
    output: Path,
    open_llm: Callable[[], LLM],
    num_shards: int | str,
    shard: int | None,
    threads: int | None,
    ranks: int,
    command: str,
) -> None:
    """Completes shards as one of many workers, and says what is left.

    Raises:
        RequestError: as `anthesis.dataset.Worker`, or `--num-shards auto` where nobody says how many workers there are.
    """
    from anthesis.dataset import Worker
    from anthesis.dataset.launcher import automatic_shards, launched_place
    from anthesis.dataset.shard_set import ShardSet

    # the processes that a launcher started are workers, or else all of them together are one, as ranks of its model
    place = launched_place() if ranks == 1 else None
    if num_shards == AUTO:
        begun = ShardSet(output).read()
        num_shards = automatic_shards(place) if begun is None else begun.num_shards
    assert isinstance(num_shards, int)
    check(num_shards, shard, "local", None)
    first = 0 if place is None else place.first_shard(num_shards)
    with CompletingBar() as bar:

        def on_shard(shard: int, finished: int) -> None:
            bar.begin(f"shard {shard}, {finished} of {num_shards} finished")

        worker = Worker(
            request, dataset, output, open_llm,
            num_shards=num_shards, load=load, threads=threads, progress=bar, on_shard=on_shard, command=command,
        )  # fmt: skip
        with worker:
            try:
                done = worker.complete_all(first) if shard is None else worker.complete_shard(shard)
            except (KeyboardInterrupt, SystemExit):
                logger.warning("interrupted; the rows in %s are whole, and any worker goes on", worker.shards.path)
                raise
            finished = worker.num_finished()
    for line in _closing_lines(done, worker.llm.load_s, finished, num_shards, output):
        tell(line)


def _closing_lines(done: Work, load_s: float, finished: int, num_shards: int, output: Path) -> list[str]:
    lines = ["this worker: nothing was left to do"]
    if done.shards:
        rows, run_s = done.counts.rows, done.run_s
        did = f"{counted(len(done.shards), 'shard')}, {counted(rows, 'row')} in {duration(run_s)}"
        rates = f"{rows / run_s:.2f} rows/s, {done.counts.completion_tokens / run_s:.1f} tokens/s"
        lines = [f"this worker: {did}, {rates}; loading took {duration(load_s)}"]
        if done.floor_s is not None and run_s:
            lines.append(
                f"their steps could have taken {duration(done.floor_s)}: {done.floor_s / run_s:.0%} of the limit"
            )
    if finished == num_shards:
        return [*lines, f"all {num_shards} shards are finished; put them together: anthesis merge {output}"]
    lines.append(f"{finished} of {num_shards} shards are finished")
    if done.held:
        held = [f"{shard} ({name})" for shard, name in sorted(done.held.items())]
        lines.append(f"others are at shard {few(held)}; when they have finished: anthesis merge {output}")
    return lines


def complete_on_ray(
    request: Request,
    rows: dict[str, Any],
    output: Path,
    opening: dict[str, Any],
    num_shards: int | str | None,
    workers: int | None,
    command: str,
) -> None:
    """Completes all shards by a pool of actors, and merges them.

    Raises:
        RequestError: as `anthesis.dataset.Worker`.
        UnsupportedError: the extra is not installed.
    """
    from anthesis.dataset.ray_pool import RayJob, complete_by_ray

    def on_shard(shard: int, finished: int, of: int) -> None:
        tell(f"complete: shard {shard} is finished, {finished} of {of}")

    asked = num_shards if isinstance(num_shards, int) else None
    job = RayJob(request=request, rows=rows, output=output, opening=opening, num_shards=asked, command=command)
    try:
        merged = complete_by_ray(job, workers, on_shard)
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted; the rows that are there are whole, and the same command goes on")
        raise
    tell_merged(merged, output)
    exit_if_none_done(merged)
