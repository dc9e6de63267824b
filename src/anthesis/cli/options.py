"""Options that commands share: those of `LLM` and of `LLM.generate`, each under the name it has there.

A command takes an option by naming its type: `def generate(device: Device = "auto", ...)`. `--seed` is the one flag
that sets two arguments, `LLM(seed=)` and `generate(seed=)`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anthesis.errors import RequestError

if TYPE_CHECKING:
    from anthesis.engine.beams import EarlyStopping

MODEL = "Model"
PROMPT = "Prompt"
SAMPLING = "Completion"
OUTPUT = "Output"

UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def whole_number(text: str) -> int:
    """A whole number, where typer's own message would not say what was seen instead.

    Raises:
        typer.BadParameter: something else.
    """
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """A number, as `whole_number`.

    Raises:
        typer.BadParameter: something else.
    """
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def parse_bytes(text: str) -> int:
    """A number of bytes from "1048576", "512MiB" or "4GB".

    Raises:
        typer.BadParameter: something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in UNITS:
        raise typer.BadParameter(f"{text!r} is not a size; write bytes, or a number with MiB, GiB, MB or GB behind it")
    return int(float(found[1]) * UNITS[found[2]]) if "." in found[1] else int(found[1]) * UNITS[found[2]]


def early_stopping(text: object) -> EarlyStopping:
    """When a beam search ends: true, false or never.

    Raises:
        typer.BadParameter: something else.
    """
    known: dict[str, EarlyStopping] = {"true": True, "false": False, "never": "never"}
    if (found := known.get(str(text).lower())) is None:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(known)}")
    return found


def logit_biases(given: list[str] | None) -> dict[int, float]:
    """What `LogitBias` gave a command: numbers by token id.

    Raises:
        RequestError: something that is not ID=X, or an id twice.
    """
    biases: dict[int, float] = {}
    for text in given or ():
        token, _, bias = text.partition("=")
        try:
            token_id, number = int(token), float(bias)
        except ValueError:
            raise RequestError(
                f"--logit-bias {text!r} is not a token id and a number; write ID=X, such as 50=-2.5"
            ) from None
        if token_id in biases:
            raise RequestError(f"--logit-bias has the token id {token_id} twice; give it one number")
        biases[token_id] = number
    return biases


def stop_texts(stop: list[str] | None) -> tuple[str, ...]:
    """The texts that `Stop` gave a command.

    Raises:
        RequestError: an empty one.
    """
    if not all(stop or ()):
        raise RequestError("--stop is empty, which would stop at once; give a text")
    return tuple(stop or ())


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        rich_help_panel=MODEL,
        show_default=False,
        help="Hub id, directory, .gguf, random:NAME; else SmolLM2",
    ),
]

# --- LLM -------------------------------------------------------------------------------------------------------------

Weights = Annotated[str, typer.Option(metavar="KIND", rich_help_panel=MODEL, help="fp32 bf16 fp16 int8 int4 ...")]
Device = Annotated[str, typer.Option(metavar="NAME", rich_help_panel=MODEL, help="Where to run; see doctor.")]
Tp = Annotated[
    int,
    typer.Option(metavar="W", parser=whole_number, rich_help_panel=MODEL, help="Ranks that share every layer."),
]
Pp = Annotated[
    int,
    typer.Option(metavar="S", parser=whole_number, rich_help_panel=MODEL, help="Stages of whole layers."),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=MODEL, help="Of each rank, on the processor."),
]
MaxContext = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=MODEL, help="Most tokens of prompt and completion."),
]
Cache = Annotated[str, typer.Option(metavar="DTYPE", rich_help_panel=MODEL, help="Key-value cache: fp32 or bf16.")]
CacheMemory = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE", rich_help_panel=MODEL, parser=parse_bytes, help="Most the cache may take: bytes, 512MiB, 4GB."
    ),
]
ReusePrefixes = Annotated[
    bool,
    typer.Option(
        "--reuse-prefixes/--no-reuse-prefixes",
        rich_help_panel=MODEL,
        help="Compute once what prompts begin with.",
    ),
]
Speculate = Annotated[
    str | None,
    typer.Option(metavar="lookup|MODEL", rich_help_panel=MODEL, help="Draft tokens, by look-up or a small model."),
]
PrefillChunk = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=MODEL, help="Most prompt tokens in one step."),
]
Adapter = Annotated[
    str | None,
    typer.Option(metavar="DIR", rich_help_panel=MODEL, help="PEFT LoRA adapter, merged into the weights."),
]
Invariant = Annotated[
    bool,
    typer.Option("--invariant", metavar="", rich_help_panel=MODEL, help="The same bits in any batch, on NVIDIA too."),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=MODEL, help="Of random weights and drawn tokens."),
]

# --- prompts ---------------------------------------------------------------------------------------------------------

Prompts = Annotated[
    list[str] | None,
    typer.Option("-p", "--prompt", metavar="TEXT", rich_help_panel=PROMPT, help="Repeatable. Left out: stdin's text."),
]
PromptIds = Annotated[
    list[str] | None,
    typer.Option(metavar="1,2,3", rich_help_panel=PROMPT, help="A prompt as token ids. Repeatable."),
]
PromptTokens = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=PROMPT, help="A made-up prompt of N tokens."),
]
Chat = Annotated[
    bool,
    typer.Option("--chat", metavar="", rich_help_panel=PROMPT, help="Apply the model's chat template."),
]

# --- generate --------------------------------------------------------------------------------------------------------

MaxNewTokens = Annotated[
    int,
    typer.Option(
        "-n",
        "--max-new-tokens",
        metavar="N",
        parser=whole_number,
        rich_help_panel=SAMPLING,
        help="Tokens at most.",
    ),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", metavar="", rich_help_panel=SAMPLING, help="Go on after the end of the text.")
]
Temperature = Annotated[
    float,
    typer.Option(metavar="X", parser=number, rich_help_panel=SAMPLING, help="0: greedy; above: drawn."),
]
_DRAW_AMONG = "Draw among the K likeliest, those of mass P."
TopK = Annotated[int | None, typer.Option(metavar="K", parser=whole_number, rich_help_panel=SAMPLING, help=_DRAW_AMONG)]
TopP = Annotated[float | None, typer.Option(metavar="P", parser=number, rich_help_panel=SAMPLING, help=_DRAW_AMONG)]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        parser=number,
        rich_help_panel=SAMPLING,
        help="Drop those below P times the likeliest.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(metavar="X", parser=number, rich_help_panel=SAMPLING, help="Divide logits of tokens that occurred."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", rich_help_panel=SAMPLING, help="Stop before this text. Repeatable."),
]
MinNewTokens = Annotated[
    int,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=SAMPLING, help="No end of text before so many."),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=SAMPLING, help="No run of N tokens comes twice."),
]
BadWords = Annotated[
    list[str] | None,
    typer.Option("--bad-words", metavar="TEXT", rich_help_panel=SAMPLING, help="A word that never comes. Repeatable."),
]
ForcedPrefix = Annotated[
    str | None, typer.Option(metavar="TEXT", rich_help_panel=SAMPLING, help="What each completion begins with.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias", metavar="ID=X", rich_help_panel=SAMPLING, help="Add X to a token's logit. Repeatable."
    ),
]
NumBeams = Annotated[
    int, typer.Option(metavar="N", parser=whole_number, rich_help_panel=SAMPLING, help="Above 1: a beam search.")
]
LengthPenalty = Annotated[
    float,
    typer.Option(metavar="X", parser=number, rich_help_panel=SAMPLING, help="Of beams: above 0 favours long texts."),
]
EarlyStoppingFlag = Annotated[
    Any,
    typer.Option(
        "--early-stopping",
        metavar="WHEN",
        parser=early_stopping,
        rich_help_panel=SAMPLING,
        help="Of beams: true, false or never.",
    ),
]
NumReturnSequences = Annotated[
    int,
    typer.Option(metavar="N", parser=whole_number, rich_help_panel=SAMPLING, help="Completions of each prompt."),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        parser=whole_number,
        rich_help_panel=SAMPLING,
        help="Log-probabilities of K more, in JSON.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N", parser=whole_number, rich_help_panel=MODEL, help="Texts at once; left out: the device decides."
    ),
]

# --- output ----------------------------------------------------------------------------------------------------------

Json = Annotated[bool, typer.Option("--json", metavar="", rich_help_panel=OUTPUT, help="Print one JSON document.")]
OutputFile = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", rich_help_panel=OUTPUT, help="Write the JSON to FILE.")
]
