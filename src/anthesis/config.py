"""What the engine must know of a model, in one spelling.

Families extend `ModelConfig` with what only their trace needs (rotary embedding, biases, ...); everything outside
`models/` reads just the fields here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from anthesis.errors import ConfigError

MAX_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "num_layers": 1 << 12,
        "num_heads": 1 << 16,
        "num_kv_heads": 1 << 16,
        "head_dim": 1 << 16,
        "hidden_size": 1 << 20,
        "ffn_size": 1 << 22,
        "vocab_size": 1 << 24,
        "max_context": (1 << 31) - 1,
    }
)
"""The most that is believed of a configuration, so that a damaged one costs neither time nor memory.

The largest published models have about 130 layers, 128 heads, a hidden size of 20 thousand and a vocabulary of a
quarter of a million: each bound is at least thirty times that. Positions are int32.
"""

MAX_QUERY_WIDTH = 1 << 20
"""Of num_heads * head_dim, as for the hidden size, which it usually is."""


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
        for name in MAX_SIZES:
            size = getattr(self, name)
            if name != "max_context" or size is not None:
                check_size(name, size, f"the model's configuration has {name}")
        if self.num_heads * self.head_dim > MAX_QUERY_WIDTH:
            raise ConfigError(
                f"the model's configuration has {self.num_heads} heads of {self.head_dim} elements; together they may "
                f"have {MAX_QUERY_WIDTH}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"the model's configuration has {self.num_heads} query heads and {self.num_kv_heads} key-value heads; "
                "the first must be a multiple of the second"
            )
        ids = self.eos_token_ids if self.bos_token_id is None else (*self.eos_token_ids, self.bos_token_id)
        if min(ids, default=0) < 0:
            raise ConfigError(f"the model's configuration has the token id {min(ids)}; 0 or more is needed")


def check_size(field: str, value: object, stated: str) -> int:
    """The value of a field of `ModelConfig`, if it is one that a model can have.

    Args:
        field: a key of `MAX_SIZES`.
        value: what was read for it.
        stated: where it stands, for the message: "config.json has n_layer".

    Raises:
        ConfigError: no integer, below 1, or beyond `MAX_SIZES`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZES[field]:
        raise ConfigError(f"{stated} = {_short(value)}; an integer from 1 to {MAX_SIZES[field]} is needed")
    return value


def check_number(value: object, stated: str, *, above: float = -math.inf, at_least: float = -math.inf) -> float:
    """A number as a float, if it is finite and not too small.

    Args:
        value: what was read.
        stated: where it stands, for the message: "config.json has rope_theta".
        above: what it must exceed.
        at_least: what it must reach.

    Raises:
        ConfigError: no number, NaN, infinite, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{stated} = {_short(value)}; a number is needed")
    # some integers are too large for a float, but not for being compared
    extreme = not -MAX_NUMBER <= value <= MAX_NUMBER or 0 < abs(value) < 1 / MAX_NUMBER
    if extreme or value <= above or value < at_least:
        low = f" above {above:g}" if above > -math.inf else f" of at least {at_least:g}" if at_least > -math.inf else ""
        raise ConfigError(f"{stated} = {_short(value)}; a finite number{low} is needed")
    return float(value)


MAX_NUMBER = 1e300
"""Beyond it a float is as good as infinite, and 1 / it as good as zero."""


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


class ConfigReader:
    """Reads a `config.json` dictionary: aliases, defaults and types, with errors that name the key.

    Args:
        raw: the parsed `config.json`.
        file: its name, for messages.
    """

    def __init__(self, raw: Mapping[str, Any], file: str = "config.json") -> None:
        self.raw = raw
        self._file = file

    def _find(self, names: tuple[str, ...]) -> tuple[str, Any]:
        present = [(name, self.raw[name]) for name in names if self.raw.get(name) is not None]
        if len({repr(value) for _, value in present}) > 1:
            seen = ", ".join(f"{name} = {value!r:.60}" for name, value in present)
            raise ConfigError(f"{self._file} contradicts itself: {seen}")
        return present[0] if present else (names[0], None)

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of the aliases that is present, as an int, or the default.

        Raises:
            ConfigError: aliases that contradict each other, a value that is no integer, or none and no default.
        """
        name, value = self._find(names)
        if value is None:
            if default is None:
                raise ConfigError(f"{self._file} lacks {' | '.join(names)}")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self._file} has {name} = {_short(value)}; an integer is needed")
        return value

    def size(self, field: str, *names: str, default: int | None = None) -> int:
        """Like `integer`, for a field of `ModelConfig`, within the bounds of `MAX_SIZES`.

        Raises:
            ConfigError: as `integer`; also a size that no model has.
        """
        value = self.integer(*names, default=default)
        return check_size(field, value, f"{self._file} has {self._find(names)[0]}")

    def number(
        self, *names: str, default: float | None = None, above: float = -math.inf, at_least: float = -math.inf
    ) -> float:
        """Like `integer`, for a finite float that is above one limit and reaches another.

        Raises:
            ConfigError: as `integer`; also NaN, infinity, and what is too small.
        """
        name, value = self._find(names)
        if value is None:
            if default is None:
                raise ConfigError(f"{self._file} lacks {' | '.join(names)}")
            return default
        return check_number(value, f"{self._file} has {name}", above=above, at_least=at_least)

    def boolean(self, *names: str, default: bool) -> bool:
        """Like `integer`, for true or false.

        Raises:
            ConfigError: aliases that contradict each other, or a value that is neither.
        """
        name, value = self._find(names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self._file} has {name} = {value!r:.60}; true or false is needed")
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
            raise ConfigError(f"{self._file} has {name} = {value!r:.60}; a string is needed")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing: always as a tuple.

        Raises:
            ConfigError: anything else.
        """
        value = self.raw.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"{self._file} has {name} = {_short(value)}; a token id or a list of them is needed")
        return tuple(ids)
