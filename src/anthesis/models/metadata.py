"""Reads the metadata of a GGUF file: keys under the architecture's name, with errors that name them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anthesis.config import check_number, check_size
from anthesis.errors import ConfigError


class GgufReader:
    """The metadata of one architecture.

    Args:
        metadata: all key-value pairs of the file.
        architecture: the prefix of the model's own keys.
    """

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture

    def has(self, key: str) -> bool:
        """Whether the key is present."""
        return f"{self.architecture}.{key}" in self.metadata

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer of the architecture's, or the default.

        Raises:
            ConfigError: the key is absent and there is no default, or its value is no integer.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"GGUF metadata has {self.architecture}.{key} = {value!r:.60}; one integer is needed")
        return value

    def size(self, field: str, key: str, default: int | None = None) -> int:
        """An integer for a field of `ModelConfig`, within the bounds of `MAX_SIZES`.

        Raises:
            ConfigError: as `integer`; also a size that no model has.
        """
        return check_size(field, self.integer(key, default), f"GGUF metadata has {self.architecture}.{key}")

    def number(
        self, key: str, default: float | None = None, *, above: float = -math.inf, at_least: float = -math.inf
    ) -> float:
        """A finite float that is above one limit and reaches another, as `integer`.

        Raises:
            ConfigError: as `integer`; also NaN, infinity, and what is too small.
        """
        stated = f"GGUF metadata has {self.architecture}.{key}"
        return check_number(self._get(key, default), stated, above=above, at_least=at_least)

    def string(self, key: str, default: str) -> str:
        """A string, as `integer`.

        Raises:
            ConfigError: as `integer`.
        """
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"GGUF metadata has {self.architecture}.{key} = {value!r:.60}; a string is needed")
        return value

    def vocab_size(self) -> int:
        """Rows of the embedding: as stated, else the number of tokens in the vocabulary."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return self.size("vocab_size", "vocab_size", len(tokens) if isinstance(tokens, list | tuple) else None)

    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence or a turn.

        Raises:
            ConfigError: one that is no token id.
        """
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        return tuple(dict.fromkeys(self._token_id(key) for key in keys if key in self.metadata))

    def bos_token_id(self) -> int | None:
        """The id that may begin a sequence.

        Raises:
            ConfigError: it is no token id.
        """
        key = "tokenizer.ggml.bos_token_id"
        return self._token_id(key) if key in self.metadata else None

    def _token_id(self, key: str) -> int:
        value = self.metadata[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"GGUF metadata has {key} = {value!r:.60}; a token id is needed")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ConfigError(f"GGUF metadata lacks {self.architecture}.{key}")
        return value
