"""The engine: several sequences of different lengths in one step, joining and leaving as they come and finish.

Each step takes one row of every sequence that is being completed and, up to a bound, rows of prompts that are not in
the cache yet. A sequence is let in when the pool has all the blocks it can ever need, so that none is ever evicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from anthesis.devices.device import Cache, Executable, InstructionTime
from anthesis.engine.blocks import BlockCache, blocks_for
from anthesis.engine.sequence import Sequence, TokenLogprobs
from anthesis.errors import RequestError
from anthesis.program.builder import Finish
from anthesis.program.ir import Array

NOT_FINITE = (
    "the model's logits are not finite numbers: its weights are damaged, or a value went out of range; "
    "compare with --device reference-fp64"
)
_INT32_MAX = 2**31 - 1

OnStep = Callable[[Finish, list[tuple[int, int]], int], None]
"""Told how a step's program finishes, (tokens in the cache before it, rows) of each of its sequences, and how many rows
had their logits computed."""


class Engine:
    """Runs sequences to their end.

    Args:
        blocks: where they keep their keys and values.
        compile: lowers the program that finishes in one of the ways, with so many top log-probabilities, over a cache.
        prefill_chunk: prompt rows in one step.

    Attributes:
        on_step: told what was in each step that has run; None: nobody is.
    """

    def __init__(
        self,
        blocks: BlockCache,
        compile: Callable[[Finish, int | None, Cache], Executable],
        prefill_chunk: int,
    ) -> None:
        self._blocks = blocks
        self._compile = compile
        self._prefill_chunk = prefill_chunk
        self._executables: dict[tuple[Finish, int | None], Executable] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._closed = False
        self.on_step: OnStep | None = None

    def submit(self, sequences: list[Sequence]) -> None:
        """Takes sequences in; they start as soon as there is room.

        Raises:
            RequestError: one of them alone needs more cache than there may be, or the engine is closed.
        """
        self._check(sequences)
        self._waiting.extend(sequences)

    def abort(self, sequences: list[Sequence]) -> None:
        """Takes sequences out, finished or not, and frees what they hold."""
        for sequence in sequences:
            if sequence in self._running:
                self._running.remove(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)
            self._leave(sequence)

    def close(self) -> None:
        """Aborts all sequences and lets go of the cache."""
        self._closed = True
        self.abort([*self._running, *self._waiting])
        self._executables.clear()
        self._blocks.clear()

    def measure(self, on: bool) -> list[InstructionTime]:
        """As `Executable.measure`, of greedy steps; a sequence that makes the cache grow begins anew.

        Raises:
            UnsupportedError: the device has no counters.
            RequestError: no step has been made yet.
        """
        if self._blocks.cache is None:
            raise RequestError("nothing to measure yet: measure after a first step")
        return self._executable("argmax").measure(on)

    def step(self) -> None:
        """Lets sequences in, runs one step, hands every sequence its token, and lets finished ones go.

        Raises:
            RequestError: the engine is closed.
        """
        self._check_open()
        self._admit()
        rows = self._choose_rows()
        if not rows:
            return
        inputs = self._row_inputs(rows)
        chosen: list[Sequence] = []
        last_rows: list[int] = []
        end = 0
        for sequence, count in rows:
            end += count
            if count == sequence.num_pending:
                chosen.append(sequence)
                last_rows.append(end - 1)
        finish: Finish = "cache"
        if not chosen:
            outputs = self._executable(finish).run(inputs)
        else:
            inputs["logit_rows"] = np.array(last_rows, np.int32)
            if any(sequence.params.needs_sample for sequence in chosen):
                finish = "sample"
                asked = [s.params.logprobs for s in chosen if s.params.logprobs is not None]
                executable = self._executable(finish, max(asked, default=None))
                outputs = executable.run(inputs | sample_inputs(chosen))
            else:
                finish = "argmax"
                outputs = self._executable(finish).run(inputs)
        self._tell(finish, rows, len(chosen))
        for sequence, count in rows:
            sequence.computed += count
        for i, sequence in enumerate(chosen):
            if outputs["token"][i] < 0:  # the others compute without it: they share no rows
                sequence.failure = NOT_FINITE
            else:
                sequence.append(int(outputs["token"][i]), _logprobs(sequence, outputs, i))
            if sequence.finished:
                self.abort([sequence])

    def run(self, sequences: list[Sequence], at_once: int) -> None:
        """Submits sequences and steps until they are done; frees them also when it is interrupted.

        Args:
            sequences: to be run to their end.
            at_once: how many of them are on their way at a time, at least one.

        Raises:
            AnthesisError: one of them has failed.
        """
        self._check(sequences)
        to_come = deque(sequences)
        running: list[Sequence] = []
        try:
            while to_come or running:
                while to_come and len(running) < at_once:
                    running.append(to_come.popleft())
                    self.submit(running[-1:])
                self.step()
                for sequence in running:
                    sequence.check()
                running = [sequence for sequence in running if not sequence.finished]
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
        while not self._enter(sequence):
            self.step()
        try:
            while sequence.num_pending:
                count = min(self._prefill_chunk, sequence.num_pending)
                inputs = self._row_inputs([(sequence, count)])
                inputs["logit_rows"] = np.arange(count, dtype=np.int32)
                outputs = self._executable("logits").run(inputs)
                self._tell("logits", [(sequence, count)], count)
                yield outputs["logits"]
                self._check_open()
                sequence.computed += count
        finally:
            self._leave(sequence)

    def _tell(self, finish: Finish, rows: list[tuple[Sequence, int]], logit_rows: int) -> None:
        if self.on_step is not None:
            self.on_step(finish, [(sequence.computed, count) for sequence, count in rows], logit_rows)

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("this LLM is closed; open a new one")

    def _check(self, sequences: list[Sequence]) -> None:
        self._check_open()
        for sequence in sequences:
            needed, most = blocks_for(sequence.limit), self._blocks.max_blocks
            if needed > most:
                raise RequestError(
                    f"a sequence of {sequence.limit} tokens needs {needed} cache blocks, and the memory for the cache "
                    f"holds {most}; ask for fewer tokens or give more --cache-memory"
                )

    def _admit(self) -> None:
        while self._waiting and self._enter(self._waiting[0]):
            self._running.append(self._waiting.popleft())

    def _enter(self, sequence: Sequence) -> bool:
        """Gives the sequence its place, if one is to be had; the pool may grow for it and for those that wait."""
        needed = blocks_for(sequence.limit)
        sequence.place = self._blocks.take(needed)
        if sequence.place is None and self._blocks.num_free_slots:
            others = (other for other in islice(self._waiting, self._blocks.num_free_slots) if other is not sequence)
            needs = [needed, *(blocks_for(other.limit) for other in others)]
            self._blocks.make_room(needs, self._executables.clear)
            sequence.place = self._blocks.take(needed)
        return sequence.place is not None

    def _choose_rows(self) -> list[tuple[Sequence, int]]:
        """(sequence, rows) of the next step, in the order in which they joined."""
        budget = self._prefill_chunk
        rows = []
        for sequence in self._running:
            if sequence.num_pending == 0:
                # an interrupt came between a step and its token: the last row again gives the same
                sequence.computed -= 1
            count = sequence.num_pending
            if sequence.computed < len(sequence.prompt):
                count = min(count, budget)
                budget -= count
            if count:
                rows.append((sequence, count))
        return rows

    def _row_inputs(self, rows: list[tuple[Sequence, int]]) -> dict[str, Array]:
        # lists first: for the few rows of most steps NumPy's calls would take longer than the work
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments = np.zeros((len(self._blocks.table), 3), np.int32)
        for i, (sequence, count) in enumerate(rows):
            assert sequence.place is not None
            first = sequence.computed
            segments[i] = len(tokens), count, first
            tokens += sequence.tokens[first : first + count]
            positions += range(first, first + count)
            slots += [sequence.place.slot] * count
        return {
            "tokens": np.array(tokens, np.int32),
            "positions": np.array(positions, np.int32),
            "slots": np.array(slots, np.int32),
            "segments": segments,
            "block_table": self._blocks.table,
        }

    def _leave(self, sequence: Sequence) -> None:
        if sequence.place is not None:
            self._blocks.give_back(sequence.place)
            sequence.place = None

    def _executable(self, finish: Finish, top: int | None = None) -> Executable:
        if (finish, top) not in self._executables:
            self._executables[finish, top] = self._compile(finish, top, self._blocks.cache)
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
        "top_k": np.array([min(p.top_k or 0, _INT32_MAX) for p in params], np.int32),
        "top_p": np.array([1 if p.top_p is None else p.top_p for p in params], np.float32),
        "min_p": np.array([p.min_p or 0 for p in params], np.float32),
        "repetition_penalty": np.array([p.repetition_penalty or 1 for p in params], np.float32),
        "seed": np.array([p.seed for p in params], np.uint64),
        "seen": np.stack([unseen if s.seen is None else s.seen for s in sequences]),
    }


def _logprobs(sequence: Sequence, outputs: dict[str, Array], i: int) -> TokenLogprobs | None:
    wanted = sequence.params.logprobs
    if wanted is None:
        return None
    ids, logprobs = outputs["top_tokens"][i, :wanted], outputs["top_logprobs"][i, :wanted]
    pairs = tuple((int(token), float(logprob)) for token, logprob in zip(ids, logprobs, strict=True))
    return TokenLogprobs(float(outputs["logprob"][i]), pairs)
