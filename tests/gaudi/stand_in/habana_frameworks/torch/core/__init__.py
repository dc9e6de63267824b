"""Registers `torch.hpu`, and in eager mode the backend of `torch.compile`."""

from __future__ import annotations

from typing import Any

import torch
from gaudi_card import card

from habana_frameworks.torch import hpu

torch._register_device_module("hpu", hpu)

OPTIONS = {"force_static_compile", "keep_input_mutations"}
"""Of the backend, those that this stand-in knows."""


def mark_step() -> None:
    """Runs what was gathered; in eager mode there is nothing."""
    card.mark_steps += hpu.is_lazy()


if not hpu.is_lazy():
    from torch._dynamo.backends.registry import _BACKENDS, register_backend

    def hpu_backend(module: torch.fx.GraphModule, examples: list[Any], options: dict[str, Any] | None = None) -> Any:
        """Counts a compilation, and runs the graph as it is."""
        assert options is not None
        assert set(options) <= OPTIONS, f"the backend has no options {set(options) - OPTIONS}"
        for node in module.graph.nodes:
            sizes = getattr(node.meta.get("example_value"), "shape", ())
            assert all(isinstance(size, int) for size in sizes), f"{node} has no static shape: {sizes}"
        card.compilations += 1
        return module.forward

    if "hpu_backend" not in _BACKENDS:
        register_backend(hpu_backend)
