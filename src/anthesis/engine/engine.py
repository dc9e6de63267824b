"""The engine: several sequences of different lengths in one step, joining and leaving as they come and finish.

Each step takes one row of every sequence that is being completed and, up to a bound, rows of prompts that are not in
the cache yet. A sequence is let in when the pool holds all the blocks it can ever need, so that none is ever evicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anthesis.devices.device import Cache, Executable
from anthesis.engine.blocks import BlockPool, blocks_for
from anthesis.engine.sequence import Sequence, TokenLogprobs
from anthesis.errors import RequestError
from anthesis.program.builder import Finish
from anthesis.program.ir import Array


@dataclass(frozen=True)
class Limits:
    """What bounds the engine.

    Attributes:
        max_sequences: sequences B in one step.
        max_blocks: blocks the pool may have, the scratch block not counted.
        prefill_chunk: prompt rows in one step.
    """

    max_sequences: int
    max_blocks: int
    prefill_chunk: int


class Engine:
    """Runs sequences to their end.

    Args:
        allocate: makes a cache pool of so many blocks.
        compile: lowers the program that finishes in one of the ways, with so many top log-probabilities, over a cache.
        limits: what bounds it.
    """

    def __init__(
        self,
        allocate: Callable[[int], Cache],
        compile: Callable[[Finish, int, Cache], Executable],
        limits: Limits,
    ) -> None:
        self._allocate = allocate
        self._compile = compile
        self._limits = limits
        self._pool = BlockPool(1)
        self._cache: Cache = None
        self._executables: dict[tuple[Finish, int], Executable] = {}
        self._table = np.zeros((limits.max_sequences, 1), np.int32)
        self._slots = list(range(limits.max_sequences - 1, -1, -1))
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._holding: list[Sequence] = []  # blocks and a slot: those running, and one whose logits are being read

    def submit(self, sequences: list[Sequence]) -> None:
        """Takes sequences in; they start as soon as there is room.

        Raises:
            RequestError: one of them alone needs more cache than there may be.
        """
        self._check(sequences)
        self._waiting.extend(sequences)

    def abort(self, sequences: list[Sequence]) -> None:
        """Takes sequences out, finished or not, and frees what they hold."""
        for sequence in sequences:
            if sequence in self._running:
                self._leave(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)

    def step(self) -> None:
        """Lets sequences in, runs one step, hands every sequence its token, and lets finished ones go."""
        self._admit()
        rows = self._choose_rows()
        if not rows:
            return
        wanted = [(i, sequence) for i, (sequence, count) in enumerate(rows) if count == sequence.num_pending]
        inputs = self._row_inputs(rows)
        if not wanted:
            self._executable("cache").run(inputs)
            self._advance(rows)
            return
        last_rows = np.cumsum([count for _, count in rows], dtype=np.int32) - np.int32(1)
        inputs["logit_rows"] = last_rows[[i for i, _ in wanted]]
        chosen = [sequence for _, sequence in wanted]
        if any(sequence.params.needs_sample for sequence in chosen):
            top = max(sequence.params.logprobs or 0 for sequence in chosen)
            outputs = self._executable("sample", top).run(inputs | sample_inputs(chosen))
        else:
            outputs = self._executable("argmax").run(inputs)
        self._advance(rows)
        for i, sequence in enumerate(chosen):
            sequence.append(int(outputs["token"][i]), _logprobs(sequence, outputs, i))
            if sequence.finished:
                self._leave(sequence)

    def run(self, sequences: list[Sequence]) -> None:
        """Submits sequences and steps until they are done; frees them also when it is interrupted."""
        self.submit(sequences)
        try:
            while not all(sequence.finished for sequence in sequences):
                self.step()
        finally:
            self.abort(sequences)

    def logits(self, sequence: Sequence) -> Iterator[NDArray[np.floating]]:
        """The logits of every row of a prompt, chunk by chunk.

        Args:
            sequence: not submitted; nothing is generated for it.

        Returns:
            Arrays (R, V) float32 (or the device's arithmetic), R rows at a time, that together are the prompt's rows.
        """
        self._check([sequence])
        while not self._enter(sequence, [sequence]):
            self.step()
        try:
            while sequence.num_pending:
                rows = [(sequence, min(self._limits.prefill_chunk, sequence.num_pending))]
                inputs = self._row_inputs(rows)
                inputs["logit_rows"] = np.arange(rows[0][1], dtype=np.int32)
                yield self._executable("logits").run(inputs)["logits"]
                self._advance(rows)
        finally:
            self._leave(sequence)

    def _check(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            needed = blocks_for(sequence.limit)
            if needed > self._limits.max_blocks:
                raise RequestError(
                    f"a sequence of {sequence.limit} tokens needs {needed} cache blocks, and the memory for the cache "
                    f"holds {self._limits.max_blocks}; ask for fewer tokens or give more --cache-memory"
                )

    def _admit(self) -> None:
        while self._waiting and self._enter(self._waiting[0], list(self._waiting)):
            self._running.append(self._waiting.popleft())

    def _enter(self, sequence: Sequence, wanting: list[Sequence]) -> bool:
        """Gives the sequence a slot and all its blocks, if they are to be had."""
        if not self._holding:
            self._grow(wanting[: self._limits.max_sequences])
        needed = blocks_for(sequence.limit)
        if not self._slots or needed > self._pool.num_free or needed > self._table.shape[1]:
            return False
        sequence.slot, sequence.blocks = self._slots.pop(), self._pool.take(needed)
        self._table[sequence.slot, :needed] = sequence.blocks
        self._holding.append(sequence)
        return True

    def _grow(self, wanting: list[Sequence]) -> None:
        """Makes the pool large enough for these, as far as memory allows; only while no sequence holds blocks."""
        needs = [blocks_for(sequence.limit) for sequence in wanting]
        total = min(sum(needs), self._limits.max_blocks)
        if total < self._pool.num_blocks and max(needs) <= self._table.shape[1]:
            return
        self._cache = None  # the old one is freed before the new one is made
        self._executables.clear()
        self._pool = BlockPool(max(total + 1, self._pool.num_blocks))
        self._cache = self._allocate(self._pool.num_blocks)
        self._table = np.zeros((self._limits.max_sequences, max(max(needs), self._table.shape[1])), np.int32)

    def _choose_rows(self) -> list[tuple[Sequence, int]]:
        """(sequence, rows) of the next step, in the order in which they joined."""
        budget = self._limits.prefill_chunk
        rows = []
        for sequence in self._running:
            count = sequence.num_pending
            if sequence.computed < len(sequence.prompt):
                count = min(count, budget)
                budget -= count
            if count:
                rows.append((sequence, count))
        return rows

    def _row_inputs(self, rows: list[tuple[Sequence, int]]) -> dict[str, Array]:
        counts = [count for _, count in rows]
        starts = np.cumsum([0, *counts[:-1]])
        segments = np.zeros((self._limits.max_sequences, 3), np.int32)
        for i, (sequence, count) in enumerate(rows):
            segments[i] = starts[i], count, sequence.computed
        tokens = [token for s, count in rows for token in s.tokens[s.computed : s.computed + count]]
        positions = [np.arange(s.computed, s.computed + count) for s, count in rows]
        return {
            "tokens": np.array(tokens, np.int32),
            "positions": np.concatenate(positions).astype(np.int32),
            "slots": np.repeat([s.slot for s, _ in rows], counts).astype(np.int32),
            "segments": segments,
            "block_table": self._table,
        }

    def _advance(self, rows: list[tuple[Sequence, int]]) -> None:
        for sequence, count in rows:
            sequence.computed += count

    def _leave(self, sequence: Sequence) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        self._holding.remove(sequence)
        self._pool.give_back(sequence.blocks)
        self._slots.append(sequence.slot)
        sequence.blocks, sequence.slot = [], -1

    def _executable(self, finish: Finish, top: int = 0) -> Executable:
        if (finish, top) not in self._executables:
            self._executables[finish, top] = self._compile(finish, top, self._cache)
        return self._executables[finish, top]


def sample_inputs(sequences: list[Sequence]) -> dict[str, Array]:
    """The inputs of `sample` for these sequences.

    Args:
        sequences: L of them.

    Returns:
        By name: temperature, top_p, min_p, repetition_penalty (L,) float32, top_k (L,) int32, seed (L,) uint64, seen
        (L, ceil(V / 8)) uint8.
    """
    params = [sequence.params for sequence in sequences]
    unseen = np.zeros(-(-sequences[0].vocab_size // 8), np.uint8)
    return {
        "temperature": np.array([p.temperature for p in params], np.float32),
        "top_k": np.array([p.top_k or 0 for p in params], np.int32),
        "top_p": np.array([1 if p.top_p is None else p.top_p for p in params], np.float32),
        "min_p": np.array([p.min_p or 0 for p in params], np.float32),
        "repetition_penalty": np.array([p.repetition_penalty or 1 for p in params], np.float32),
        "seed": np.array([p.seed % 2**64 for p in params], np.uint64),
        "seen": np.stack([unseen if s.seen is None else s.seen for s in sequences]),
    }


def _logprobs(sequence: Sequence, outputs: dict[str, Array], i: int) -> TokenLogprobs | None:
    wanted = sequence.params.logprobs
    if wanted is None:
        return None
    ids, logprobs = outputs["top_tokens"][i, :wanted], outputs["top_logprobs"][i, :wanted]
    pairs = tuple((int(token), float(logprob)) for token, logprob in zip(ids, logprobs, strict=True))
    return TokenLogprobs(float(outputs["logprob"][i]), pairs)
