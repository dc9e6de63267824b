"""`pipeline("text-generation")` with SmolLM2: the transformers model and `anthesis.hf` beneath it, in turns.

    python benchmarks/pipelines.py
    python benchmarks/pipelines.py --rounds 15 -o docs/benchmarks/transformers.md

Both have the embedded model's weights, dequantised to float32, and must give the same text; a third row is Anthesis
with the weights as they are shipped (Q4_1). One chat streams to a `TextStreamer`; eight prompts go through as a batch.
In each round every model runs once, in an order that turns around, after a pause in which others'
threads fall asleep.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TextStreamer, pipeline

from anthesis.bench.machine import now, this_machine
from anthesis.cores import usable_cores
from anthesis.hf import AnthesisForCausalLM
from smollm2 import transformers_model

CHAT = [{"role": "user", "content": "Write about the sea."}]
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n    if n < 2:",
    "Water boils at",
    "My favourite season is",
    "The best way to learn a language is",
    "1, 1, 2, 3, 5, 8,",
    "The sky is blue because",
]
STREAMED, BATCHED = 64, 32
"""Tokens of the chat's answer, and of each row of the batch; ends of sequence are kept from coming earlier."""

PAUSE_S = 0.5
THEIRS, OURS, SHIPPED = "transformers, float32", "anthesis.hf, float32", "anthesis.hf, as shipped (Q4_1)"


def streamed(pipe: Any) -> str:
    """The answer to a chat, as it was printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        pipe(CHAT, streamer=TextStreamer(pipe.tokenizer, skip_prompt=True), eos_token_id=None, **_greedy(STREAMED))
    return printed.getvalue()


def batched(pipe: Any) -> list[str]:
    """The texts of eight prompts, in one batch."""
    answers = pipe(PROMPTS, batch_size=len(PROMPTS), eos_token_id=None, **_greedy(BATCHED))
    return [answer["generated_text"] for (answer,) in answers]


def _greedy(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "do_sample": False}


JOBS: dict[str, tuple[Callable[[Any], Any], int]] = {
    f"a chat, streamed, {STREAMED} tokens": (streamed, STREAMED),
    f"a batch of {len(PROMPTS)}, {BATCHED} tokens each": (batched, BATCHED * len(PROMPTS)),
}


def main() -> None:
    """Prints a line for each job and model, and writes the page where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("-o", "--output", type=Path, help="write the page there")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    options: dict[str, Any] = {"device": "cpu", "threads": asked.threads}
    with (
        AnthesisForCausalLM.from_pretrained(weights="fp32", cache="fp32", **options) as exact,
        AnthesisForCausalLM.from_pretrained(**options) as shipped,
    ):
        models = {THEIRS: transformers_model(), OURS: exact, SHIPPED: shipped}
        pipes = {
            name: pipeline("text-generation", model=model, tokenizer=exact.tokenizer) for name, model in models.items()
        }
        tables = [_measure(job, pipes, asked.rounds) for job in JOBS]
    print("\n".join(tables))
    if asked.output:
        asked.output.write_text(_page(tables, asked))


def _measure(job: str, pipes: dict[str, Any], rounds: int) -> str:
    """The rows of one job, as Markdown."""
    run, tokens = JOBS[job]
    texts = {name: run(pipe) for name, pipe in pipes.items()}  # which warms up, too
    if texts[OURS] != texts[THEIRS]:
        raise SystemExit(f"{job}: other text than that of transformers:\n{texts[THEIRS]}\n{texts[OURS]}")
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for turn in range(rounds):
        for name in list(pipes) if turn % 2 else reversed(pipes):
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            found = run(pipes[name])
            seconds[name].append(time.perf_counter() - begin)
            assert found == texts[name], f"{name} gave another text than before"
    lines = [f"| {job} | seconds | tokens/s | times as fast | quartiles |", "| --- | --- | --- | --- | --- |"]
    for name, samples in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds[THEIRS], samples, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(samples)
        lines.append(f"| {name} | {median:.2f} | {tokens / median:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines) + "\n"


def _page(tables: list[str], asked: argparse.Namespace) -> str:
    machine = this_machine()
    software = f"transformers {transformers.__version__} and torch {torch.__version__}"
    return f"""# A pipeline of transformers, with its own model and with Anthesis

`python benchmarks/pipelines.py --rounds {asked.rounds} -o docs/benchmarks/transformers.md` measured this
on {now()[:10]}, with {software}, {asked.threads} threads each, on
{machine.processor}.

SmolLM2-135M-Instruct in `pipeline("text-generation")`, greedy. The first two rows have the same weights, those of the
GGUF file dequantised to float32, and gave the same text, letter by letter, or there would be no page; the third has the
weights as they are shipped. Medians of {asked.rounds} rounds, in which the models take turns; how many times as fast as
transformers a row is, is the median of the rounds' ratios, with its quartiles. Times are those of the whole call:
tokenizer, template and decoding to text included.

{chr(10).join(tables)}"""


if __name__ == "__main__":
    main()
