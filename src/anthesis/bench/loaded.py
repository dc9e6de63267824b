"""What results say of a model that is loaded, and of the device it is on."""

from __future__ import annotations

import math

from anthesis.bench.subject import Device, Model
from anthesis.llm import LLM


def model_of(llm: LLM) -> Model:
    """The model."""
    return Model(
        description=llm.description,
        is_random=llm.is_random,
        family=llm.config.family,
        parameters=sum(math.prod(value.static_shape) for value in llm.loaded.traced.of_kind("weight")),
        weight_kinds=llm.loaded.weight_kinds,
        cache_dtype=llm.loaded.cache_dtype,
    )


def device_of(llm: LLM) -> Device:
    """The device."""
    info = llm.device_info
    return Device(
        name=info.name,
        description=info.description,
        arithmetic=info.arithmetic,
        batch_invariant=info.batch_invariant,
    )
