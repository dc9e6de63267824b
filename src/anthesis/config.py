"""What the engine must know of a model, in one spelling.

Families extend `ModelConfig` with what only their trace needs (rotary embedding, biases, ...); everything outside
`models/` reads just the fields here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anthesis.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a decoder language model.

    Attributes:
        family: name of the module under `models/` that traces it.
        num_layers: decoder layers.
        num_heads: query heads H.
        num_kv_heads: key-value heads K; divides `num_heads`.
        head_dim: size D of a head.
        hidden_size: width E of the residual stream.
        ffn_size: width F of the MLP.
        vocab_size: rows V of the embedding.
        usable_vocab_size: ids from here up to `vocab_size` are padding rows and are never generated.
        max_context: tokens of prompt and completion together, or None where positions have no limit (ALiBi).
        eos_token_ids: ids that end a sequence; may be empty.
        bos_token_id: id that a tokenizer may put first, or None.
    """

    family: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    ffn_size: int
    vocab_size: int
    usable_vocab_size: int
    max_context: int | None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "ffn_size", "vocab_size"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**31:
                raise ConfigError(f"the model's configuration has {name} = {size!r}; a positive integer is needed")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"the model's configuration has {self.num_heads} query heads and {self.num_kv_heads} key-value heads; "
                "the first must be a multiple of the second"
            )

    def cache_elements_per_token(self) -> int:
        """Numbers the key-value cache stores per token: a key and a value per layer, key-value head and element."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class ConfigReader:
    """Reads a `config.json` dictionary: aliases, defaults and types, with errors that name the key.

    Args:
        raw: the parsed `config.json`.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def _find(self, names: tuple[str, ...]) -> tuple[str, Any]:
        present = [(name, self.raw[name]) for name in names if self.raw.get(name) is not None]
        if len({repr(value) for _, value in present}) > 1:
            seen = ", ".join(f"{name} = {value!r}" for name, value in present)
            raise ConfigError(f"config.json contradicts itself: {seen}")
        return present[0] if present else (names[0], None)

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of the aliases that is present, as an int, or the default.

        Raises:
            ConfigError: aliases that contradict each other, a value that is no integer, or none and no default.
        """
        name, value = self._find(names)
        if value is None:
            if default is None:
                raise ConfigError(f"config.json lacks {' | '.join(names)}")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"config.json has {name} = {value!r}; an integer is needed")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """Like `integer`, for a float.

        Raises:
            ConfigError: as `integer`.
        """
        name, value = self._find(names)
        if value is None:
            if default is None:
                raise ConfigError(f"config.json lacks {' | '.join(names)}")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"config.json has {name} = {value!r}; a number is needed")
        return float(value)

    def boolean(self, *names: str, default: bool) -> bool:
        """Like `integer`, for true or false.

        Raises:
            ConfigError: aliases that contradict each other, or a value that is neither.
        """
        name, value = self._find(names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"config.json has {name} = {value!r}; true or false is needed")
        return value

    def string(self, *names: str, default: str) -> str:
        """Like `integer`, for a string.

        Raises:
            ConfigError: aliases that contradict each other, or a value that is no string.
        """
        name, value = self._find(names)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ConfigError(f"config.json has {name} = {value!r}; a string is needed")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing: always as a tuple.

        Raises:
            ConfigError: anything else.
        """
        value = self.raw.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"config.json has {name} = {value!r}; a token id or a list of token ids is needed")
        return tuple(ids)
