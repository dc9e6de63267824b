"""Frequencies of rotary position embeddings, from a configuration in transformers 4's or 5's spelling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anthesis.config import ConfigReader
from anthesis.errors import ConfigError, few


def rope_frequencies(head_dim: int, theta: float) -> tuple[float, ...]:
    """Radians per position of each pair of a head's elements, D/2 float64 numbers: theta^(-2i / D).

    Args:
        head_dim: size D of a head.
        theta: base, above 0.

    Source:
        Su et al., arXiv:2104.09864, section 3.2.2.
    """
    return tuple(float(theta ** (-2 * i / head_dim)) for i in range(head_dim // 2))


def read_rope(raw: Mapping[str, Any], head_dim: int, default_theta: float = 10_000.0) -> tuple[float, ...]:
    """The frequencies that a config.json asks for.

    Args:
        raw: config.json, with `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (5).
        head_dim: size D of a head.
        default_theta: base where none is given.

    Returns:
        D/2 float64 numbers, radians per position.

    Raises:
        ConfigError: a kind of scaling we do not compute, which is named, or two statements that differ.
    """
    stated = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        raise ConfigError(f"config.json has a rope scaling {stated!r:.60}; an object is needed")
    other = raw.get("rope_scaling")
    if other and other != stated:
        raise ConfigError(
            f"config.json contradicts itself: rope_parameters = {stated!r:.60}, rope_scaling = {other!r:.60}"
        )
    nested = [key for key, value in stated.items() if isinstance(value, Mapping)]
    if nested:
        names = few([f"{key!r:.30}" for key in nested])
        raise ConfigError(f"config.json has rope parameters by layer type ({names}), not computed here")
    scaling = ConfigReader(stated)
    top = ConfigReader(raw)
    theta = scaling.number("rope_theta", default=top.number("rope_theta", default=default_theta, above=0), above=0)
    partial = scaling.number("partial_rotary_factor", default=top.number("partial_rotary_factor", default=1.0))
    if partial != 1:
        raise ConfigError(f"config.json has partial_rotary_factor = {partial}; only whole heads are rotated here")
    frequencies = rope_frequencies(head_dim, theta)
    kind = scaling.string("rope_type", "type", default="default")
    if kind == "default":
        return frequencies
    if kind == "linear":
        factor = scaling.number("factor", above=0)
        return tuple(frequency / factor for frequency in frequencies)
    if kind == "llama3":
        original = scaling.number(
            "original_max_position_embeddings", default=top.number("max_position_embeddings", default=2048), above=0
        )
        factor = scaling.number("factor", above=0)
        low, high = scaling.number("low_freq_factor", above=0), scaling.number("high_freq_factor", above=0)
        if low >= high:
            raise ConfigError(f"config.json has low_freq_factor = {low} and high_freq_factor = {high}; low < high")
        return tuple(_llama3(frequency, factor, low, high, original) for frequency in frequencies)
    raise ConfigError(f"rope scaling {kind!r:.60} is not computed here; known are: default, linear, llama3")


def _llama3(frequency: float, factor: float, low: float, high: float, original_context: float) -> float:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, those between interpolated."""
    turns = original_context * frequency / (2 * math.pi)
    if turns > high:
        return frequency
    if turns < low:
        return frequency / factor
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency
