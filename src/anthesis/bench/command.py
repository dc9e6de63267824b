"""The command line that measures one row alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from anthesis.bench.request import Request
from anthesis.bench.result import Point

FLAGS = {"max_new_tokens": "-n", "min_s": "--seconds", "operations": "--ops"}
"""Options of `anthesis bench` that are not called like the attribute of the request."""


def command_of(request: Request, point: Point, python: str | None = None) -> str:
    """The command, quoted for a shell, with the options that differ from the defaults.

    Args:
        request: what was measured.
        point: which of its combinations.
        python: the interpreter, where it is not that of `anthesis` itself.
    """
    alone = request_of_point(request, point)
    words = ["anthesis", "bench"] if python is None else [python, "-m", "anthesis", "bench"]
    words += options_of(alone, FLAGS)
    if alone.model is not None:
        words += ["--", alone.model] if alone.model.startswith("-") else [alone.model]
    return shlex.join(words)


def options_of(request: Any, flags: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """The options of a request that differ from the defaults, but for its model.

    Args:
        request: a dataclass whose attributes are a command's options.
        flags: of attributes whose option is called differently.
    """
    words = []
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name != "model" and value != field.default:
            words += _option(flags.get(field.name, f"--{field.name.replace('_', '-')}"), value)
    return words


def request_of_point(request: Request, point: Point) -> Request:
    """The request of one of its combinations alone."""
    return replace(
        request,
        batch=(point.batch,),
        weights=(point.weights,),
        tp=(point.tp,),
        prompt_tokens=None if point.prompt_tokens is None else (point.prompt_tokens,),
    )


def _option(flag: str, value: object) -> list[str]:
    if value is True:
        return [flag]
    text = str(value[0] if isinstance(value, tuple) else value).removesuffix(".0")
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]  # what could be taken for another option
