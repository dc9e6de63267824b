"""The model families: every module of this package that defines `FAMILY` is one.

`families()` finds them, so that adding a family is adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from anthesis.config import ModelConfig
from anthesis.errors import ConfigError, RequestError
from anthesis.models.family import Family
from anthesis.program.builder import Builder, Finish, native_kind
from anthesis.program.ir import Program


@cache
def families() -> tuple[Family, ...]:
    """All known families, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return tuple(sorted(found, key=lambda family: family.name))


def family_named(name: str) -> Family:
    """The family of a `ModelConfig`."""
    return next(family for family in families() if family.name == name)


def family_of_config(raw: Mapping[str, Any]) -> Family:
    """The family that reads this config.json.

    Args:
        raw: the parsed config.json.

    Raises:
        ConfigError: an unknown or missing `model_type`; the message lists the known ones.
    """
    model_type = raw.get("model_type")
    for family in families():
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(t for family in families() for t in family.model_types))
    raise ConfigError(f"unknown architecture model_type = {model_type!r:.60}; known are: {known}")


def family_of_gguf(architecture: object) -> Family:
    """The family that reads a GGUF file's `general.architecture`.

    Raises:
        ConfigError: an unknown architecture; the message lists the known ones.
    """
    for family in families():
        if family.gguf and isinstance(architecture, str) and architecture in family.gguf.architectures:
            return family
    known = ", ".join(sorted(a for family in families() if family.gguf for a in family.gguf.architectures))
    raise ConfigError(f"unknown GGUF architecture {architecture!r:.60}; known are: {known}")


def preset(name: str) -> Mapping[str, Any]:
    """The config.json dictionary of `random:NAME`.

    Raises:
        RequestError: no such preset; the message lists those there are.
    """
    presets = {key: raw for family in families() for key, raw in family.presets.items()}
    if name not in presets:
        raise RequestError(f"no preset {name!r} for random weights; known are: {', '.join(sorted(presets))}")
    return presets[name]


def trace(
    config: ModelConfig,
    finish: Finish = "argmax",
    kind_of: Callable[[str, tuple[int, ...]], str] = native_kind,
    cache_dtype: str = "bf16",
    top_logprobs: int | None = None,
) -> Program:
    """The program of one token step, as its family records it; the arguments are those of `Builder`."""
    builder = Builder(config, finish, kind_of, cache_dtype, top_logprobs)
    family_named(config.family).trace(config, builder)
    return builder.program()
