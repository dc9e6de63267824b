"""The command of a row, for results of versions that did not say it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from anthesis.bench.request import Request
from anthesis.bench.result import Point

_FLAGS = {
    "prompt": "-p",
    "max_new_tokens": "-n",
    "pp": "--pp",
    "device": "--device",
    "threads": "--threads",
    "max_context": "--max-context",
    "cache": "--cache",
    "cache_memory": "--cache-memory",
    "prefill_chunk": "--prefill-chunk",
    "seed": "--seed",
    "warmup": "--warmup",
    "runs": "--runs",
    "min_s": "--seconds",
}
_SWITCHES = {"invariant": "--invariant", "operations": "--ops"}


def command_of_row(request: Mapping[str, Any], point: Point) -> str:
    """The command that measures a point alone, from the request of its result.

    Args:
        request: as the result has it; it may be damaged, and what has the wrong type is left out.
        point: of the row.
    """
    defaults = {field.name: field.default for field in fields(Request)}
    model = request.get("model")
    words = ["anthesis", "bench", *([model] if isinstance(model, str) else [])]
    for name, flag in _FLAGS.items():
        value = request.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value != defaults[name]:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    words += [flag for name, flag in _SWITCHES.items() if request.get(name) is True]
    # one number of prompt tokens stood in the request before it could be swept
    made_up = request.get("prompt_tokens") if point.prompt_tokens is None else point.prompt_tokens
    if isinstance(made_up, int) and not isinstance(made_up, bool):
        words += ["--prompt-tokens", str(made_up)]
    if point.batch != 1:
        words += ["--batch", str(point.batch)]
    if point.weights != "native":
        words += ["--weights", point.weights]
    if point.tp != 1:
        words += ["--tp", str(point.tp)]
    return shlex.join(words)
