"""What a model family tells the rest: how to read its configuration, trace its step, and find its weights.

A family is one module of this package that defines `FAMILY`. See docs/adding-a-model.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anthesis.config import ModelConfig
from anthesis.program.builder import Builder


@dataclass(frozen=True)
class Source:
    """Where a weight of the program stands in a checkpoint.

    Attributes:
        name: the stored tensor's name, without any prefix of the family's `prefixes`.
        rows: (N,) int64, for each row of the weight that of the stored tensor (after `transpose`); None: all, in order.
            Takes fused matrices apart (BLOOM's query_key_value) and undoes permutations (GGUF's query and key rows).
        transpose: the stored matrix is [in, out] (GPT-2's Conv1D) instead of [out, in].
    """

    name: str
    rows: NDArray[np.int64] | None = None
    transpose: bool = False


Sources = dict[str, Source]


@dataclass(frozen=True)
class GgufFamily:
    """How a family is stored in GGUF files.

    Attributes:
        architectures: values of `general.architecture`.
        read_config: (metadata, stored tensor names) -> configuration.
        sources: configuration -> where each weight of the program stands.
        ignored: regular expressions (full match) of stored tensors that carry no weight.
    """

    architectures: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any], frozenset[str]], ModelConfig]
    sources: Callable[[Any], Sources]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: the module's name.
        model_types: values of `model_type` in config.json.
        config_type: the configuration's class; what it can't be, its own __post_init__ refuses with ConfigError, since
            packed directories hold its fields.
        read_config: parsed config.json -> configuration; raises ConfigError for what the family does not compute.
        trace: (configuration, builder): records one token step in the builder.
        sources: configuration -> where each weight of the program stands in a Hugging Face checkpoint.
        prefixes: prefixes that stored names may carry ("transformer."), besides none.
        ignored: regular expressions (full match, prefix taken off) of stored tensors that carry no weight.
        presets: config.json dictionaries by name, for `random:NAME`.
        gguf: the same for GGUF files, or None.
    """

    name: str
    model_types: tuple[str, ...]
    config_type: type[ModelConfig]
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    trace: Callable[[Any, Builder], None]
    sources: Callable[[Any], Sources]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gguf: GgufFamily | None = None
