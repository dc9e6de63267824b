"""Turns: every entry of a comparison does the same work, one after the other, again and again.

Between turns the machine's read bandwidth is measured. On a shared machine it moves by half within seconds, so it takes
many short measurements beside the work that they are compared with. A virtual machine's host may also move its cores,
near each other or apart, and they stay there for longer than a turn: so every round of turns has an order of its own,
drawn at random, and beside each turn is measured how long the cores take to see what another has written.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from anthesis.bench.derive import decode_s, decode_tokens, prefill_s
from anthesis.bench.measurement import Run
from anthesis.native import handovers, multiply_add_peak, read_bandwidth
from peers.environments import PeerError
from peers.process import Worker
from peers.systems import Comparison, Entry, prompts

BANDWIDTH_S = 0.1
PEAK_S = 0.05
WARMUP_TOKENS = 8
WARMUP_PROMPTS = 256  # as many as any system runs at once
NEAR_S = 90e-9
"""Cores that share a last-level cache see each other's writes sooner (20 to 60 ns), others later (100 and more)."""


@dataclass
class Turn:
    """One turn of one entry.

    Attributes:
        total_s: of the request.
        prefill_s: until the last sequence had its first token.
        decode_s: from then until the last token.
        decode_tokens: that came in `decode_s`, of all sequences.
        token_s: time of each token, where there is one sequence.
        read_passes_s: of each pass over a buffer as large as the weights, right before and right after.
        peaks_per_s: bf16 multiply-adds of all threads, right before and right after; empty where that is not known.
        handovers_s: until each other core sees what the first has written, right before and right after.
    """

    total_s: float
    prefill_s: float
    decode_s: float
    decode_tokens: int
    token_s: list[float]
    read_passes_s: list[float]
    peaks_per_s: list[float]
    handovers_s: list[float]

    @property
    def place(self) -> str | None:
        """Where the cores were: "near" each other, "apart", or None where they were moved or are many."""
        near = {seconds < NEAR_S for seconds in self.handovers_s}
        return None if len(near) != 1 else "near" if near.pop() else "apart"


@dataclass
class Measured:
    """What was measured of one entry in one comparison.

    Attributes:
        entry: the system and its weights.
        about: what its worker told.
        weight_bytes: that one decode step reads, as they are stored.
        multiply_adds: of the work, where all of it is counted.
        warmup_s: of the requests that don't count.
        turns: in order.
        tokens: for each sequence the ids it was completed with, in the first turn.
        error: why there are no more turns, or none.
    """

    entry: Entry
    about: dict[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    multiply_adds: int = 0
    warmup_s: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    error: str | None = None


def as_json(row: Measured) -> dict[str, Any]:
    """All of it but the tokens, of which a fingerprint is enough."""
    digest = hashlib.sha256(str(row.tokens).encode()).hexdigest() if row.tokens else None
    return {**{name: value for name, value in asdict(row).items() if name != "tokens"}, "tokens_sha256": digest}


def measure(
    comparison: Comparison,
    measured: list[Measured],
    workers: dict[Entry, Worker],
    vocab_size: int,
    turns: int,
    threads: int,
) -> None:
    """Warms every entry up, then lets them take turns.

    Args:
        comparison: the work.
        measured: takes the results; entries with an error are left out.
        workers: of the others.
        vocab_size: for the prompts.
        turns: that were asked for.
        threads: that read memory.
    """
    work = prompts(comparison, vocab_size)
    for row in measured:
        if row.error is None:
            _say(comparison, "warm-up", row)
            _warm_up(comparison, row, workers[row.entry], work)
    order = random.Random(comparison.title)
    for number in range(1, min(turns * comparison.turns_for_one, comparison.most_turns) + 1):
        for row in order.sample(measured, len(measured)):
            if row.error is None:
                _say(comparison, f"turn {number}", row)
                _take_turn(comparison, row, workers[row.entry], work, threads)


def _warm_up(comparison: Comparison, row: Measured, worker: Worker, work: list[list[int]]) -> None:
    """Twice a shorter form of the work: what is compiled, allocated or tuned at first use is so afterwards."""
    try:
        for _ in range(2):
            answer = worker.ask(work[:WARMUP_PROMPTS], min(comparison.new_tokens, WARMUP_TOKENS))
            row.warmup_s.append(answer["total_s"])
    except PeerError as error:
        row.error = str(error)


def _take_turn(comparison: Comparison, row: Measured, worker: Worker, work: list[list[int]], threads: int) -> None:
    passes, peaks = _read_passes_s(row.weight_bytes, threads), _peaks_per_s(threads)
    moves = _handovers_s(threads)
    try:
        worker.ask(work[:1], 1)  # wakes its threads, and brings its code back into the caches
        answer = worker.ask(work, comparison.new_tokens)
    except PeerError as error:
        row.error = str(error)
        return
    moves += _handovers_s(threads)
    peaks += _peaks_per_s(threads)
    passes += _read_passes_s(row.weight_bytes, threads)
    row.tokens = row.tokens or answer["tokens"]
    run = Run(total_s=answer["total_s"], token_s=tuple(map(tuple, answer["token_s"])), read_bytes_per_s=())
    row.turns.append(
        Turn(
            total_s=run.total_s,
            prefill_s=prefill_s(run),
            decode_s=decode_s(run),
            decode_tokens=decode_tokens(run),
            token_s=list(run.token_s[0]) if len(work) == 1 else [],
            read_passes_s=passes,
            peaks_per_s=peaks,
            handovers_s=moves,
        )
    )


def _read_passes_s(nbytes: int, threads: int) -> list[float]:
    """Seconds of each pass of all threads over a buffer of so many bytes."""
    return [nbytes / per_second for per_second in read_bandwidth(nbytes, threads, BANDWIDTH_S)]


def _peaks_per_s(threads: int) -> list[float]:
    found = multiply_add_peak("bf16", threads, PEAK_S)
    return [] if found is None else [found]


def _handovers_s(threads: int) -> list[float]:
    return handovers(sorted(os.sched_getaffinity(0))[:threads])


def _say(comparison: Comparison, what: str, row: Measured) -> None:
    print(f"peers: {comparison.title}: {what}: {row.entry.name}", file=sys.stderr)
