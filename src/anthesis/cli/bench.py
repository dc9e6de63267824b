"""`anthesis bench`: how fast a model generates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anthesis.cli import options
from anthesis.cli.bench_bar import BenchBar
from anthesis.cli.bench_table import invalid, print_table
from anthesis.cli.document import check_output, is_replaceable, print_json, write_json
from anthesis.cli.launched import leave_to_rank_zero
from anthesis.cli.prompts import check_made_up, check_text
from anthesis.cli.terminal import tell
from anthesis.errors import RequestError
from anthesis.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anthesis.bench import Report, Request
    from anthesis.bench.partial import Partial

SWEEP = "Sweep"
RUNS = "Runs"

BenchPrompt = Annotated[
    str | None,
    typer.Option(
        "-p",
        "--prompt",
        metavar="TEXT",
        rich_help_panel=options.PROMPT,
        help="Left out: one of some 7 tokens.",
    ),
]
BenchNew = Annotated[
    int,
    typer.Option(
        "-n", "--max-new-tokens", metavar="N", rich_help_panel=options.PROMPT, help="Tokens to generate, exactly."
    ),
]
PromptLengths = Annotated[
    str | None,
    typer.Option("--prompt-tokens", metavar="7,512", rich_help_panel=SWEEP, help="Made-up prompts of so many tokens."),
]
Batches = Annotated[str, typer.Option("--batch", metavar="1,8", rich_help_panel=SWEEP, help="Sequences at once.")]
WeightKinds = Annotated[
    str, typer.Option("--weights", metavar="KIND", rich_help_panel=SWEEP, help="fp32 bf16 fp16 int8 int4 ...")
]
Tps = Annotated[str, typer.Option("--tp", metavar="1,2", rich_help_panel=SWEEP, help="Devices that share the model.")]
MaxWarmup = Annotated[
    int, typer.Option("--warmup", metavar="N", rich_help_panel=RUNS, help="Most runs before those that count.")
]
NumRuns = Annotated[int, typer.Option("--runs", metavar="N", rich_help_panel=RUNS, help="Runs that count, at least.")]
MinSeconds = Annotated[
    float, typer.Option("--seconds", metavar="S", rich_help_panel=RUNS, help="That these take together, at least.")
]

BenchSeed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", parser=options.whole_number, rich_help_panel=options.MODEL, help="Of random weights."
    ),
]
Operations = Annotated[
    bool,
    typer.Option("--ops", metavar="", rich_help_panel=RUNS, help="Count where the time of a decode step goes."),
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=X", rich_help_panel=RUNS, show_default=False, help="Compare in turns: weights=int4, or same."
    ),
]


def bench(
    model: options.Model = None,
    prompt: BenchPrompt = None,
    prompt_tokens: PromptLengths = None,
    max_new_tokens: BenchNew = 100,
    batch: Batches = "1",
    weights: WeightKinds = "native",
    tp: Tps = "1",
    pp: options.Pp = 1,
    warmup: MaxWarmup = 10,
    runs: NumRuns = 10,
    seconds: MinSeconds = 10.0,
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_context: options.MaxContext = None,
    cache: options.Cache = "auto",
    cache_memory: options.CacheMemory = None,
    prefill_chunk: options.PrefillChunk = None,
    speculate: options.Speculate = None,
    invariant: options.Invariant = False,
    adapter: options.Adapter = None,
    seed: BenchSeed = None,
    ops: Operations = False,
    against: Against = None,
    json: options.Json = False,
    output: options.OutputFile = None,
) -> None:
    """Measure how fast a model generates: greedy, past any end of text, exactly -n tokens per sequence.

    Comma lists are combined: a row and a process each; with -o, an interrupted sweep goes on.

    $ anthesis bench --batch 1,8 -o result.json
    """
    from anthesis.bench import Request
    from anthesis.bench.partial import Partial
    from anthesis.bench.sweep import points_of

    leave_to_rank_zero(max(_integers("--tp", tp)), pp)
    if prompt is not None:
        check_text(prompt)
    lengths = None if prompt_tokens is None else _integers("--prompt-tokens", prompt_tokens)
    for length in lengths or ():
        check_made_up(length)
    request = Request(
        model=model,
        prompt=prompt,
        prompt_tokens=lengths,
        max_new_tokens=max_new_tokens,
        batch=_integers("--batch", batch),
        weights=_list("--weights", weights),
        tp=_integers("--tp", tp),
        pp=pp,
        device=device,
        threads=threads,
        max_context=max_context,
        cache=cache,
        cache_memory=cache_memory,
        prefill_chunk=prefill_chunk,
        speculate=speculate,
        invariant=invariant,
        adapter=adapter,
        seed=seed or 0,
        warmup=warmup,
        runs=runs,
        min_s=seconds,
        operations=ops,
    )
    partial = None
    if output is not None:
        check_output(output)
        if against is None and len(points_of(request)) > 1 and is_replaceable(output):
            partial = Partial(output.with_name(f"{output.name}.partial"))
            check_output(partial.path)

    def show(report: Report) -> None:
        if json:
            print_json(report.document())
        else:
            print_table(report)

    report = _measured(request, against, partial, show)
    show(report)
    if against is not None and not json:
        _print_verdict(report)
    if output is not None:
        write_json(report.document(), output)
    if partial is not None:
        partial.remove()
    if any(row.error is not None or invalid(row) for row in report.rows):
        raise typer.Exit(1)


def _measured(request: Request, against: str | None, partial: Partial | None, show: Callable[[Report], None]) -> Report:
    """The report; where measuring is interrupted, rows that no file keeps are shown."""
    from anthesis.bench.against import measure_in_turns
    from anthesis.bench.sweep import points_of, sweep

    so_far: list[Report] = []
    try:
        with BenchBar() as bar:
            if against is not None:
                return measure_in_turns(request, against, bar)
            return sweep(request, bar, partial, _say_resumed, so_far.append)
    except KeyboardInterrupt:
        total = len(points_of(request))
        if partial is not None and partial.path.exists():
            tell(f"bench: interrupted; the rows so far are in {partial.path}, and the same command goes on from there")
        elif so_far:
            show(so_far[-1])
            done = f"after {len(so_far[-1].rows)} of {counted(total, 'row')}"
            tell(f"bench: interrupted {done}; with -o FILE it could go on later")
        elif total > 1:
            how = "with -o FILE it could go on later" if partial is None else "the same command begins anew"
            tell(f"bench: interrupted before a row was kept; {how}")
        raise


def _print_verdict(report: Report) -> None:
    from anthesis.bench.verdict import compare
    from anthesis.cli.compare import print_verdicts

    turns = report.rows[1].turns
    assert turns is not None, "rows of --against are in turns"
    print(f"A, the first row, and B, the second ({turns.changed or 'the same'}):")
    for comparison in compare([("this result", report)]):
        print_verdicts(comparison)


def _say_resumed(path: Path, done: int, total: int) -> None:
    tell(f"bench: {path} has {done} of {counted(total, 'row')}; going on with the others")


def _list(flag: str, text: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise RequestError(f"{flag} {text!r} has an empty entry; write a comma list such as 1,8")
    return items


def _integers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in _list(flag, text))
    except ValueError:
        raise RequestError(f"{flag} {text!r} is not a comma list of numbers; write one such as 1,8") from None
