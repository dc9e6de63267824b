"""What the ranks of a stage exchange within a step, as tensors."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from anthesis.parallel.communicator import Communicator


class Exchange:
    """Exchanges tensors of one rank with those of the others; all ranks call the same in the same order.

    Tensors of the host go through whatever the ranks have, memory that they share, it may be. Those of a card go
    through its library, in whose order they are captured: nothing here waits for them.

    Args:
        ranks: what they exchange by.
        in_rank_order: every rank gathers what is to be added, and adds it in the order of ranks. A card's library adds
            in an order that changes with the number of bytes, and so with the number of rows.
    """

    def __init__(self, ranks: Communicator, in_rank_order: bool = False) -> None:
        self._ranks: Any = ranks
        self._in_rank_order = in_rank_order
        self.size = ranks.size

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of (R, E) float32, the same bits on all of them."""
        x = x.contiguous()
        if self._in_rank_order:
            return reduce(torch.add, self.gather(x).unbind(0))
        self._ranks.all_reduce(x.view(-1).numpy() if x.device.type == "cpu" else x)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """What every rank brings, one behind the other: (..., N) of any dtype gives (W, ..., N)."""
        x = x.contiguous()
        if x.device.type != "cpu":
            gathered: torch.Tensor = self._ranks.gather_tensors(x)
            return gathered
        parts = self._ranks.all_gather(x.view(-1).view(torch.uint8).numpy())
        return torch.stack([torch.frombuffer(bytearray(part), dtype=x.dtype).view(x.shape) for part in parts])

    def gather_columns(self, x: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        """The columns of every rank side by side: (L, N) float32, N differing from rank to rank, gives (L, V)."""
        padded = torch.nn.functional.pad(x, (0, max(widths) - x.shape[1]))
        return torch.cat([part[:, :width] for part, width in zip(self.gather(padded), widths, strict=True)], 1)

    def best(self, score: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row the pair with the highest score, of equal ones the lowest rank's: (L,) float32, (L,) int32."""
        pairs = self.gather(torch.stack((score, token.float())))  # exact: no vocabulary has 2^24 tokens
        scores, tokens = pairs[:, 0], pairs[:, 1]
        first = scores.argmax(0, keepdim=True)
        return scores.gather(0, first)[0], tokens.gather(0, first)[0].int()
