"""Native steps that exchange through a Python object, as those of ranks on several machines do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anthesis.parallel.communicator import Communicator
from command_line import tiny_model
from rank_threads import Rank, on_ranks


class Called:
    """Exchanges as another communicator does, and is none that native code knows."""

    def __init__(self, inner: Communicator) -> None:
        self._inner, self.rank, self.size = inner, inner.rank, inner.size
        self.sums = 0

    def all_reduce(self, x: NDArray[np.float32]) -> None:
        self.sums += 1
        self._inner.all_reduce(x)

    def all_gather(self, mine: NDArray[np.uint8]) -> list[bytes]:
        return self._inner.all_gather(mine)


def test_the_same_bits_as_through_shared_memory(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    ids = [5, 17, 80, 2, 33]
    sums = []

    def through_python(rank: int, communicator: Communicator) -> bytes:
        called = Called(communicator)
        logits = Rank(model, 2, rank, called, weights="fp32").logits(ids)
        sums.append(called.sums)
        return logits.tobytes()

    def through_memory(rank: int, communicator: Communicator) -> bytes:
        return Rank(model, 2, rank, communicator, weights="fp32").logits(ids).tobytes()

    assert on_ranks(2, through_python) == on_ranks(2, through_memory)
    assert min(sums) > 0
