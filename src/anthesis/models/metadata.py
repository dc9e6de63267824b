"""Reads the metadata of a GGUF file: keys under the architecture's name, with errors that name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
            raise ConfigError(f"GGUF metadata has {self.architecture}.{key} = {value!r}; one integer is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A float, as `integer`.

        Raises:
            ConfigError: as `integer`.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"GGUF metadata has {self.architecture}.{key} = {value!r}; a number is needed")
        return float(value)

    def string(self, key: str, default: str) -> str:
        """A string, as `integer`.

        Raises:
            ConfigError: as `integer`.
        """
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"GGUF metadata has {self.architecture}.{key} = {value!r}; a string is needed")
        return value

    def vocab_size(self) -> int:
        """Rows of the embedding: as stated, else the number of tokens in the vocabulary."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return self.integer("vocab_size", None if tokens is None else len(tokens))

    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence or a turn."""
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        return tuple(dict.fromkeys(int(self.metadata[key]) for key in keys if key in self.metadata))

    def bos_token_id(self) -> int | None:
        """The id that may begin a sequence."""
        value = self.metadata.get("tokenizer.ggml.bos_token_id")
        return None if value is None else int(value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ConfigError(f"GGUF metadata lacks {self.architecture}.{key}")
        return value
