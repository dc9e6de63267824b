"""`anthesis complete`: a whole data set, row by row, that survives being killed."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anthesis.cli import options, sharding
from anthesis.cli.completing import CompletingBar
from anthesis.cli.launched import leave_to_rank_zero
from anthesis.cli.loading import load
from anthesis.cli.prompts import check_seed
from anthesis.cli.signals import exit_on_sigterm
from anthesis.cli.terminal import tell
from anthesis.errors import RequestError
from anthesis.units import amount, counted, duration

if TYPE_CHECKING:
    from anthesis.dataset.complete import Outcome
    from anthesis.dataset.summary import Session
    from anthesis.llm import LLM

logger = logging.getLogger("anthesis")

DATA = "Data set"

ModelAndDataset = Annotated[
    list[str],
    typer.Argument(metavar="[MODEL] DATASET", show_default=False, help="A file, or one of the Hub."),
]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE", rich_help_panel=DATA, show_default=False, help="JSON lines, a row each."
    ),
]
Column = Annotated[
    str | None,
    typer.Option("--column", metavar="NAME", rich_help_panel=DATA, help="Left out: the first that holds text."),
]
Split = Annotated[str | None, typer.Option("--split", metavar="NAME", rich_help_panel=DATA, help="Of a Hub data set.")]
Subset = Annotated[
    str | None, typer.Option("--subset", metavar="NAME", rich_help_panel=DATA, help="Of a Hub data set with several.")
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", parser=options.whole_number, rich_help_panel=DATA, help="Rows at most; raise it later."),
]
RowTokens = Annotated[
    int,
    typer.Option(
        "--prompt-tokens",
        metavar="N",
        parser=options.whole_number,
        rich_help_panel=options.SAMPLING,
        help="Of a row's beginning.",
    ),
]


def complete(
    model_and_dataset: ModelAndDataset,
    output: Output,
    column: Column = None,
    split: Split = None,
    subset: Subset = None,
    limit: Limit = None,
    prompt_tokens: RowTokens = 16,
    max_new_tokens: options.MaxNewTokens = 50,
    min_new_tokens: options.MinNewTokens = 0,
    ignore_eos: options.IgnoreEos = False,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    no_repeat_ngram_size: options.NoRepeatNgramSize = None,
    bad_words: options.BadWords = None,
    forced_prefix: options.ForcedPrefix = None,
    logit_bias: options.LogitBias = None,
    stop: options.Stop = None,
    batch: options.Batch = None,
    seed: options.Seed = None,
    weights: options.Weights = "native",
    device: options.Device = "auto",
    tp: options.Tp = 1,
    pp: options.Pp = 1,
    threads: options.Threads = None,
    max_context: options.MaxContext = None,
    cache: options.Cache = "auto",
    cache_memory: options.CacheMemory = None,
    prefill_chunk: options.PrefillChunk = None,
    reuse_prefixes: options.ReusePrefixes = True,
    speculate: options.Speculate = None,
    invariant: options.Invariant = False,
    adapter: options.Adapter = None,
    num_shards: sharding.NumShards = None,
    shard: sharding.OneShard = None,
    engine: sharding.Engine = "local",
    workers: sharding.Workers = None,
) -> None:
    """Complete every row of a data set; killed and started again, go on with it.

    $ anthesis complete news.jsonl --column content -o out.jsonl --num-shards 64
    \f
    Raises:
        RequestError: flags that don't go together; and as `anthesis.dataset.complete`.
    """
    leave_to_rank_zero(tp, pp)
    if len(model_and_dataset) > 2:
        raise RequestError(f"one model and one data set at most; there are {len(model_and_dataset)} names")
    model = model_and_dataset[0] if len(model_and_dataset) == 2 else None
    sharding.check(num_shards, shard, engine, workers)
    from anthesis.dataset import Request, open_dataset
    from anthesis.dataset import complete as complete_dataset

    sampling: dict[str, Any] = {
        "ignore_eos": ignore_eos,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": options.stop_texts(stop),
        "min_new_tokens": min_new_tokens,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "bad_words": tuple(bad_words or ()),
        "forced_prefix": forced_prefix,
        "logit_bias": options.logit_biases(logit_bias),
    }
    request = Request(
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        limit=limit,
        batch=batch,
        seed=seed,
        sampling=sampling,
    )
    rows: dict[str, Any] = {"name": model_and_dataset[-1], "column": column, "split": split, "subset": subset}
    dataset = open_dataset(**rows)
    logger.warning("data set %s: %s", dataset.description, dataset.note)
    opening: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "device": device,
        "tp": tp,
        "pp": pp,
        "threads": threads,
        "max_context": max_context,
        "cache": cache,
        "cache_memory": cache_memory,
        "prefill_chunk": prefill_chunk,
        "reuse_prefixes": reuse_prefixes,
        "speculate": speculate,
        "invariant": invariant,
        "adapter": adapter,
        "seed": seed or 0,
    }

    def open_llm() -> LLM:
        from anthesis.llm import LLM

        llm = LLM(**opening, load=False)
        check_seed(llm, seed, temperature)
        return llm

    exit_on_sigterm()
    command = shlex.join(["anthesis", *sys.argv[1:]])
    if engine == "ray":
        sharding.complete_on_ray(request, rows, output, opening, num_shards, workers, command)
        return
    if num_shards is not None:
        sharding.work(request, dataset, output, open_llm, num_shards, shard, threads, tp * pp, command)
        return
    try:
        with CompletingBar() as bar:
            outcome = complete_dataset(
                request, dataset, output, open_llm, load=load, threads=threads, progress=bar, command=command
            )
    except (KeyboardInterrupt, SystemExit):
        if output.exists():
            logger.warning("interrupted; the rows in %s are whole, and the same command goes on after them", output)
        else:
            logger.warning("interrupted before a row was written; nothing was left at %s", output)
        raise
    for line in _closing_lines(outcome, output):
        tell(line)
    counts = outcome.summary.counts
    if counts.rows == counts.failed_rows:
        raise typer.Exit(1)


def _closing_lines(outcome: Outcome, output: Path) -> list[str]:
    from anthesis.dataset.summary import summary_path

    summary, session = outcome.summary, outcome.session
    counts, model = summary.counts, summary.model
    failed = f", {counts.failed_rows:,} of them with an error instead" if counts.failed_rows else ""
    lines = [
        f"{counted(counts.rows, 'row')} in {output}{failed}: {counts.completion_tokens:,} tokens generated and counted"
    ]
    if session is None:
        lines.append("all of them were there already; nothing was left to do")
    elif session.counts.rows:
        done, run_s = session.counts, session.run_s
        lines.append(
            f"this session: {counted(done.rows, 'row')} in {duration(run_s)}, {done.rows / run_s:.2f} rows/s, "
            f"{done.completion_tokens / run_s:.1f} tokens/s; loading took {duration(session.load_s)}"
        )
        if session.reused_tokens:
            lines.append(
                f"prompts: {done.prompt_tokens:,} tokens, of which {session.prefilled_tokens:,} were computed; "
                f"{session.reused_tokens:,} were there from rows that begin alike"
            )
        lines += _limit_lines(session)
    kinds = "+".join(model.weight_kinds)
    made_by = f"{model.description} · device {summary.device.name} · weights {kinds} · cache {model.cache_dtype}"
    return [*lines, f"{made_by} · times in {summary_path(output)}"]


def _limit_lines(session: Session) -> list[str]:
    """How near the session came to what the device can do, where that is known."""
    if session.floor_s is None or session.share_of_limit is None:
        return []
    rates = [f"{amount(mean(session.read_bytes_per_s), 'B/s')} read"]
    if session.flops_per_s:
        rates.append(amount(mean(session.flops_per_s), "FLOP/s"))
    floor = f"{counted(session.steps, 'step')} could have taken {duration(session.floor_s)}"
    return [f"{floor}, at {' and '.join(rates)} as measured: {session.share_of_limit:.1%} of the limit"]
