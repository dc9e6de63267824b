"""What results say of a model that is loaded, and of the device it is on."""

from __future__ import annotations

import math
from collections import Counter

from anthesis.bench.subject import Device, Model, Product
from anthesis.llm import LLM
from anthesis.program.ops import Linear


def model_of(llm: LLM) -> Model:
    """The model."""
    return Model(
        description=llm.description,
        is_random=llm.is_random,
        family=llm.config.family,
        parameters=sum(math.prod(value.static_shape) for value in llm.loaded.traced.of_kind("weight")),
        weight_kinds=llm.loaded.weight_kinds,
        cache_dtype=llm.loaded.cache_dtype,
        source=llm.source,
        fingerprint=llm.fingerprint,
        products=_products(llm),
    )


def device_of(llm: LLM) -> Device:
    """The device."""
    info = llm.device_info
    return Device(
        name=info.name,
        description=info.description,
        arithmetic=info.arithmetic,
        batch_invariant=info.batch_invariant,
        kernels=info.kernels,
    )


def _products(llm: LLM) -> tuple[Product, ...]:
    """Those of a greedy step, counted by what is multiplied with what."""
    program, device = llm.loaded.program("argmax"), llm.loaded.device
    found = Counter(
        (program.values[weight].dtype, device.inputs_of(program.values[weight].dtype, op.wide_inputs))
        for op in program.ops
        if isinstance(op, Linear)
        for weight in op.weights
    )
    return tuple(Product(weights=weights, inputs=inputs, count=n) for (weights, inputs), n in sorted(found.items()))
