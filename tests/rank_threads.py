"""All ranks of a model as threads of this process: each with a device, weights, a cache and an engine of its own.

What they share is what ranks share, the memory that they exchange through. Native steps run without the interpreter's
lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anthesis.checkpoint import open_checkpoint
from anthesis.devices import open_device
from anthesis.engine.blocks import BlockCache
from anthesis.engine.engine import Engine
from anthesis.engine.loaded import LoadedModel
from anthesis.engine.sampling import SamplingParams
from anthesis.engine.sequence import Sequence
from anthesis.native import extension
from anthesis.parallel.communicator import Communicator
from anthesis.parallel.layout import Layout
from anthesis.parallel.seat import Seat

T = TypeVar("T")


def communicators(size: int) -> list[Communicator]:
    """What so many ranks exchange by; each maps the memory for itself."""
    native = extension()
    fd = native.make_shared_memory(size)
    try:
        return [native.SharedCommunicator(fd, rank, size) for rank in range(size)]
    finally:
        os.close(fd)


def on_ranks(size: int, work: Callable[[int, Communicator], T]) -> list[T]:
    """Calls `work(rank, communicator)` on every rank at once, and gives what each returned."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size), communicators(size)))


class Rank:
    """One of them.

    Args:
        directory: of the model.
        tp: ranks in all.
        rank: this one.
        communicator: its own.
        options: weights, device, cache, threads; prefill_chunk.
    """

    def __init__(self, directory: Path | str, tp: int, rank: int, communicator: Communicator, **options: Any) -> None:
        seat = Seat(rank, Layout(tp), communicator, sharers=tp)
        device = open_device(options.get("device", "cpu"), options.get("threads", 1), seat)
        with open_checkpoint(str(directory), weights=options.get("weights", "native")) as checkpoint:
            self.model = LoadedModel(checkpoint, checkpoint.config, device, options.get("cache", "fp32"), seat)
            self.model.load(checkpoint, lambda loaded, total: None)
        blocks = BlockCache(self.model.allocate, self.model.copy_blocks, 16, 64)
        self.engine = Engine(
            blocks, self.model.compile, options.get("prefill_chunk", 256), self.model.config.usable_vocab_size
        )

    def sequence(self, prompt: list[int], **params: Any) -> Sequence:
        """A request."""
        sampling = SamplingParams(**{"max_new_tokens": 1, **params})
        limit = len(prompt) + sampling.max_new_tokens
        return Sequence(prompt, sampling, limit, "length", frozenset(), None, self.model.config.vocab_size)

    def generate(self, prompts: list[list[int]], **params: Any) -> list[Sequence]:
        """Completes prompts, all at once."""
        sequences = [self.sequence(prompt, **params) for prompt in prompts]
        self.engine.run([[sequence] for sequence in sequences], len(sequences))
        return sequences

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V) float32."""
        return np.concatenate(list(self.engine.logits(self.sequence(ids))))


def spread(directory: Path | str, tp: int, work: Callable[[Rank], T], **options: Any) -> list[T]:
    """Opens the model on so many ranks and calls `work` on each, all at once."""
    return on_ranks(tp, lambda rank, communicator: work(Rank(directory, tp, rank, communicator, **options)))
