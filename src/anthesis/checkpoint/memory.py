"""A model that another library has in memory already: what a checkpoint's files would say, without the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anthesis.checkpoint.store import TensorStore


@dataclass(frozen=True)
class InMemoryModel:
    """A model to open in place of a directory.

    Attributes:
        description: for people: "LlamaForCausalLM in memory".
        config: as config.json has it.
        store: its tensors, under the names that a Hugging Face checkpoint gives them.
    """

    description: str
    config: Mapping[str, Any]
    store: TensorStore
