"""What Gaudi does in another way than plain PyTorch."""

from __future__ import annotations

from importlib import import_module

import torch

from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.accelerator.operations import Operations, Product

_IN_FLOAT32 = Operations()


class HpuOperations(Operations):
    """Products of bf16 weights read these once, as they are, for one row as for many.

    The matrix engine adds up in float32, and a product of bf16 gives bf16. That suits the layers, whose results are
    added to a float32 residual stream; logits, of which the largest decides and some of which lie close together, are
    computed from weights turned to float32 instead.
    """

    def settle(self) -> None:
        """See `Operations.settle`; in lazy mode nothing is done before it has to be."""
        import_module("habana_frameworks.torch.core").mark_step()

    def linear(self, x: torch.Tensor, product: Product, residual: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Operations.linear`; x (R, K) float32 gives (R, N) float32."""
        if product.gives_logits:
            return _IN_FLOAT32.linear(x, product, residual)
        return super().linear(x, product, residual)

    def multiply(self, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """See `Operations.multiply`; x (R, K) float32 gives (R, N) float32, with bf16 weights rounded to bf16."""
        if matrix.kind.name != "bf16":
            return super().multiply(x, matrix)
        return (x.bfloat16() @ matrix.values.t()).float()
