"""`anthesis convert`: a model into a directory that starts without conversion."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from anthesis.cli import options
from anthesis.cli.loading import LoadingBar
from anthesis.cli.signals import exit_on_sigterm
from anthesis.cli.terminal import tell
from anthesis.units import amount, duration

Source = Annotated[
    str, typer.Argument(metavar="MODEL", show_default=False, help="Hub id, directory, .gguf or random:NAME.")
]
Target = Annotated[
    Path, typer.Argument(metavar="DIR", show_default=False, help="To be made; it may exist if it is empty.")
]
Weights = Annotated[str, typer.Option(metavar="KIND", help="fp32 bf16 fp16 int8 int4 ...")]
Adapter = Annotated[str | None, typer.Option(metavar="DIR", help="PEFT LoRA adapter, merged into the weights.")]
Seed = Annotated[int, typer.Option(metavar="N", parser=options.whole_number, help="Of random weights.")]


def convert(
    model: Source, directory: Target, weights: Weights = "native", adapter: Adapter = None, seed: Seed = 0
) -> None:
    """Write a model into a directory that starts without conversion, on any number of devices.

    It is written whole or not at all, and takes little memory whatever the size of the model.

    $ anthesis convert bigscience/bloomz-560m bloomz-int8 --weights int8
    \f
    Raises:
        RequestError: as `open_checkpoint`, and a directory that can't be made.
    """
    from anthesis.checkpoint.checkpoint import open_checkpoint
    from anthesis.checkpoint.convert import check_target, write_packed
    from anthesis.engine.loaded import matrix_kinds
    from anthesis.errors import naming
    from anthesis.tokenizer import open_tokenizer

    check_target(directory)
    begin = time.perf_counter()
    exit_on_sigterm()
    try:
        opened = open_checkpoint(model, weights=weights, seed=seed, adapter=adapter)
        with LoadingBar(label="converting") as bar, opened as checkpoint:
            with naming(checkpoint.path):
                open_tokenizer(checkpoint.tokenizer_source)  # one that can't be used is better said now
            written = write_packed(checkpoint, directory, weights, bar)
    except (KeyboardInterrupt, SystemExit):
        tell(f"anthesis: interrupted; nothing was left at {directory}")
        raise
    took_s = time.perf_counter() - begin
    size, kinds = amount(written.nbytes, "B"), "+".join(matrix_kinds(written.weights))
    tell(f"{directory}: {size} ({written.nbytes:,} bytes), weights {kinds}, in {duration(took_s)}")
    prompt = "--prompt-tokens 7" if checkpoint.tokenizer_source is None else "-p TEXT"
    tell(f"use it: anthesis generate {shlex.quote(str(directory))} {prompt}")
