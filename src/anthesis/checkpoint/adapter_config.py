"""The adapter_config.json of a PEFT LoRA adapter: what its factors are scaled by, and what can't be merged.

Format: https://huggingface.co/docs/peft/package_reference/lora.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anthesis.checkpoint.safetensors import read_json
from anthesis.config import ConfigReader, check_number
from anthesis.errors import CheckpointError, ConfigError, UnsupportedError, few, naming, printable

CONFIG_NAME = "adapter_config.json"

_REFUSED = (
    "trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens", "use_qalora",
    "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config",
)  # fmt: skip
"""Variants that are not merged here; some never can be. A value that is null, false or empty is none."""

_MOVES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` for which PEFT subtracts the factors' first values from the model's weights."""

_KNOWN = frozenset({
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "lora_dropout",
    "fan_in_fan_out", "init_lora_weights", "ensure_weight_tying", "runtime_config", "qalora_group_size",
    "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    *_REFUSED,
})  # fmt: skip
"""Keys whose meaning is known: it is used, or the tensors say it, or only training depends on it."""

_QUANTIFIERS = re.compile(r"[*+?{]")
_MAX_QUANTIFIERS = 2
_MAX_QUANTIFIED = 32
_MAX_PATTERN_CHARACTERS = 128


class AdapterConfig:
    """What an adapter's configuration says.

    Args:
        directory: holds adapter_config.json.

    Attributes:
        trained_on: name of the model that it was trained on; empty where it does not say.
        has_magnitudes: every adapted matrix has a vector of magnitudes (DoRA).

    Raises:
        CheckpointError: the file is missing, damaged or contradictory.
        UnsupportedError: another kind of adapter than LoRA, or a variant that is not merged here.
    """

    def __init__(self, directory: Path) -> None:
        self._path = path = directory / CONFIG_NAME
        raw = read_json(path)
        peft_type = raw.get("peft_type")
        if peft_type != "LORA":
            raise UnsupportedError(f"{path}: the adapter is of peft_type {peft_type!r:.60}; LORA is what can be merged")
        with naming(path):
            _check_variants(raw)
            read = ConfigReader(raw, path.name)
            self.trained_on = printable(read.string("base_model_name_or_path", default=""))
            self.has_magnitudes = read.boolean("use_dora", default=False)
            self._is_rank_stabilised = read.boolean("use_rslora", default=False)
            self._rank = _rank(read.integer("r", default=8), f"{path.name} has r")
            self._alpha = read.number("lora_alpha", default=8.0)
            self._ranks = _patterns(raw, "rank_pattern")
            self._alphas = _patterns(raw, "alpha_pattern")
        unknown = sorted(printable(key, 60) for key, value in raw.items() if key not in _KNOWN and value)
        if unknown:
            warnings.warn(
                f"{path}: {few(unknown)} is not known here and has no effect; a newer version may know it", stacklevel=2
            )

    def rank(self, module: str) -> int:
        """The rank of a module's factors.

        Args:
            module: its name in the model of transformers: "model.layers.0.self_attn.q_proj".

        Raises:
            ConfigError: the pattern that names it gives no rank.
        """
        return _rank(_of_pattern(self._ranks, module, self._rank), f"{self._path} has a rank_pattern for {module}")

    def scaling(self, module: str) -> float:
        """What the product of a module's factors is multiplied by.

        Args:
            module: as for `rank`.

        Raises:
            ConfigError: the patterns that name it give no numbers.

        Source:
            Hu et al., arXiv:2106.09685 (alpha / r); Kalajdzievski, arXiv:2312.03732 (alpha / sqrt(r)).
        """
        rank = self.rank(module)
        stated = f"{self._path} has an alpha_pattern for {module}"
        alpha = check_number(_of_pattern(self._alphas, module, self._alpha), stated)
        return alpha / (math.sqrt(rank) if self._is_rank_stabilised else rank)


def _check_variants(raw: Mapping[str, Any]) -> None:
    for name in _REFUSED:
        if raw.get(name):
            raise UnsupportedError(
                f"the adapter has {name} = {raw[name]!r:.60}, which is not merged here; merge it with peft "
                "(merge_and_unload), if it can, and take the model that this gives"
            )
    begun = raw.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_MOVES_BASE):
        raise UnsupportedError(
            f"the adapter has init_lora_weights = {begun!r:.60}, so it belongs to other weights than the model's own; "
            "save it with save_pretrained(path_initial_model_for_weight_conversion=...), which makes a plain one of it"
        )


def _rank(value: object, stated: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 20:
        raise ConfigError(f"{stated} = {value!r:.60}; an integer of at least 1 is needed")
    return value


_Patterns = list[tuple[re.Pattern[str], Any]]


def _patterns(raw: Mapping[str, Any], key: str) -> _Patterns:
    """The entries of a pattern, compiled; each is the end of a module's name, or a regular expression for it."""
    found = raw.get(key) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{CONFIG_NAME} has {key} = {found!r:.60}; an object is needed")
    compiled, quantified = [], 0
    for pattern, value in found.items():
        quantifiers = len(_QUANTIFIERS.findall(pattern))
        quantified += quantifiers > 0
        # Python tries all ways in which a pattern can match: with many repetitions, for years
        if (
            len(pattern) > _MAX_PATTERN_CHARACTERS
            or quantifiers > _MAX_QUANTIFIERS
            or quantified > _MAX_QUANTIFIED
            or re.search(r"\)[*+{]", pattern)
        ):
            raise UnsupportedError(
                f"{CONFIG_NAME} has a {key} with {printable(pattern, 60)!r}, too intricate an expression to be tried "
                "safely; spell out the modules' names"
            )
        try:
            compiled.append((re.compile(rf"(?:.*\.)?(?:{pattern})$"), value))
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{CONFIG_NAME} has a {key} with {printable(pattern, 60)!r}, no regular expression: {error}"
            ) from error
    return compiled


def _of_pattern(patterns: _Patterns, module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if pattern.match(module)), default)
