"""`anthesis evaluate`: how well a model predicts a text, and what its kind of weights costs of that."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from anthesis.cli import options
from anthesis.cli.document import check_output, print_json, write_json
from anthesis.cli.launched import leave_to_rank_zero
from anthesis.cli.loading import load, start_bar
from anthesis.cli.terminal import tell
from anthesis.units import counted, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from anthesis.bench.subject import Model
    from anthesis.evaluate import Evaluation
    from anthesis.evaluate.result import Against, Quality

TEXT = "Text"
LINE_S = 10.0

TextFile = Annotated[
    str,
    typer.Option("--text", metavar="FILE", rich_help_panel=TEXT, show_default=False, help="UTF-8, to be predicted."),
]
Window = Annotated[
    int | None,
    typer.Option(
        metavar="N", parser=options.whole_number, rich_help_panel=TEXT, help="Of so many tokens; left out: 512 at most."
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(metavar="N", parser=options.whole_number, rich_help_panel=TEXT, help="Of its beginning; else all."),
]
AgainstKind = Annotated[
    str | None,
    typer.Option("--against", metavar="KIND", rich_help_panel=options.MODEL, help="Other weights to compare with."),
]
WeightSeed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", parser=options.whole_number, rich_help_panel=options.MODEL, help="Of random weights."
    ),
]


def evaluate(
    text: TextFile,
    model: options.Model = None,
    window: Window = None,
    tokens: Tokens = None,
    weights: options.Weights = "native",
    against: AgainstKind = None,
    device: options.Device = "auto",
    tp: options.Tp = 1,
    pp: options.Pp = 1,
    threads: options.Threads = None,
    cache: options.Cache = "auto",
    cache_memory: options.CacheMemory = None,
    prefill_chunk: options.PrefillChunk = None,
    invariant: options.Invariant = False,
    adapter: options.Adapter = None,
    seed: WeightSeed = None,
    json: options.Json = False,
    output: options.OutputFile = None,
) -> None:
    """Say how well a model predicts a text: perplexity, and what a kind of weights costs of it.

    $ anthesis evaluate --text news.txt --weights int4 --against bf16
    \f
    Raises:
        RequestError: as `anthesis.evaluate.evaluate`.
    """
    leave_to_rank_zero(tp, pp)
    from anthesis.evaluate import Request
    from anthesis.evaluate import evaluate as evaluate_model

    request = Request(
        text=text,
        model=model,
        weights=weights,
        against=against,
        window=window,
        tokens=tokens,
        device=device,
        tp=tp,
        pp=pp,
        threads=threads,
        cache=cache,
        cache_memory=cache_memory,
        prefill_chunk=prefill_chunk,
        invariant=invariant,
        adapter=adapter,
        seed=seed or 0,
    )
    if output is not None:
        check_output(output)
    with WindowsBar() as bar:
        found = evaluate_model(request, progress=bar, load=load)
    if json:
        print_json(found.document())
    else:
        print("\n".join(result_lines(found)))
    if output is not None:
        write_json(found.document(), output)


def result_lines(found: Evaluation) -> list[str]:
    """What was found, for people."""
    text, kinds = found.text, "+".join(found.model.weight_kinds)
    lines = [f"{found.model.description}, device {found.device.name}", _quality_line(found.model, found.quality)]
    if found.against is not None:
        lines += _against_lines(found.against, kinds)
    left_out = f"; {text.left_out_tokens:,} at its end left out" if text.left_out_tokens else ""
    predicted = f"{counted(text.scored_tokens, 'token')} predicted in {counted(text.windows, 'window')}"
    lines.append(f"{text.name} (sha256 {text.sha256[:12]}): {predicted} of up to {text.window_tokens}{left_out}")
    if text.windows == 1:
        lines.append("a single window does not tell how sure this is; take a longer text, or a shorter --window")
    return [*lines, f"took {duration(found.took_s)}, after loading"]


def _against_lines(against: Against, kinds: str) -> list[str]:
    other = "+".join(against.model.weight_kinds)
    log_error, kl_error = against.log_ratio_standard_error, against.kl_standard_error
    # the error of e^x is e^x times that of x
    error = "" if log_error is None else f" ± {100 * against.perplexity_ratio * log_error:.2f}"
    kl = f"{against.mean_kl:.3g}" + ("" if kl_error is None else f" ± {kl_error:.2g}")
    agreement = f"the same best token in {100 * against.greedy_agreement:.1f} % of places"
    return [
        _quality_line(against.model, against.quality),
        f"{kinds} costs {100 * (against.perplexity_ratio - 1):+.2f}{error} % of perplexity against {other}",
        f"KL {kl} nats a token, {against.max_kl:.3g} at most; {agreement}",
    ]


def _quality_line(model: Model, quality: Quality) -> str:
    error = quality.nll_standard_error
    sure = "" if error is None else f" ± {quality.perplexity * error:,.3f}"
    return f"  {'+'.join(model.weight_kinds)}, cache {model.cache_dtype}: perplexity {quality.perplexity:,.3f}{sure}"


class WindowsBar:
    """How far an evaluation is: a bar on a terminal, a line now and then elsewhere. Pass it as `evaluate(progress=)`.

    Args:
        line_s: seconds between two lines where stderr is no terminal.
    """

    def __init__(self, line_s: float = LINE_S) -> None:
        self._line_s = line_s
        self._begin_s = self._shown_s = 0.0
        self._bar: Bar | None = None

    def __enter__(self) -> WindowsBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Takes note of `done` windows out of `total`."""
        now = time.monotonic()
        if not done:
            self._begin_s = self._shown_s = now
        left_s = (now - self._begin_s) * (total - done) / done if done else None
        left = "" if left_s is None else f", {timedelta(seconds=round(left_s))} left"
        said = f"{done:,} of {counted(total, 'window')}{left}"
        if sys.stderr.isatty():
            self._show(done, total, said)
        elif done < total and now - self._shown_s >= self._line_s:
            self._shown_s = now
            tell(f"evaluate: {said}")

    def _show(self, done: int, total: int, said: str) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, TextColumn

            self._bar = start_bar(BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=said)
