"""Which rows the next step has: of every sequence the token that comes next, with drafts behind it, and of prompts up
to a bound what is not in the cache yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anthesis.engine.blocks import blocks_for
from anthesis.engine.group import Group
from anthesis.engine.prefixes import Key, Prefixes
from anthesis.engine.sequence import Sequence
from anthesis.engine.speculation import Speculation
from anthesis.program.ir import BLOCK_TOKENS

Share = Callable[[Sequence, int, int], None]
"""From now on a sequence has this block of the cache at that place of its table."""


@dataclass(slots=True)
class Rows:
    """A sequence's rows of a step.

    Attributes:
        sequence: whose they are.
        tokens: of the rows, in the order of their positions: from `sequence.computed` on.
        wanted: how many of the last of them have their logits computed.
    """

    sequence: Sequence
    tokens: list[int]
    wanted: int

    @property
    def needs_logits(self) -> bool:
        """Whether tokens are chosen on the host, by all logits."""
        group, constraints = self.sequence.group, self.sequence.constraints
        if group is not None:
            return group.top is None
        return constraints is not None and constraints.needs_logits(len(self.sequence.tokens))

    @property
    def needs_sample(self) -> bool:
        """Whether the device's `sample` is needed."""
        return self.sequence.params.needs_sample or self.top is not None

    @property
    def top(self) -> int | None:
        """How many of the most likely tokens are looked at, besides the chosen one; None: not even that one's."""
        group = self.sequence.group
        return self.sequence.params.logprobs if group is None else group.top

    def seen(self) -> Iterator[NDArray[np.uint8] | None]:
        """For each wanted row the bits of the tokens that occurred up to it.

        Returns:
            (V,) bits, packed as (N,) uint8, each; None: they are of no use.
        """
        seen = self.sequence.seen
        yield seen
        for token in self.sequence.drafts:
            if seen is not None:
                seen = seen.copy()
                seen[token // 8] |= 1 << (token % 8)
            yield seen


def choose_rows(
    running: list[Sequence],
    prefill_chunk: int,
    prefixes: Prefixes | None,
    share: Share,
    speculation: Speculation | None,
) -> list[Rows]:
    """The rows of the next step, in the order in which their sequences joined.

    Args:
        running: sequences that have a place.
        prefill_chunk: most rows of prompts.
        prefixes: the blocks that are known; None: none are shared.
        share: called where a sequence need not compute a block.
        speculation: proposes drafts; None: there are none.
    """
    budget = prefill_chunk
    coming: set[Key] = set()  # blocks that this step computes, or begins to
    rows: list[Rows] = []
    decoding: list[Rows] = []
    ready: dict[Group, bool] = {}
    for sequence in running:
        group = sequence.group
        if (group is not None or sequence.leader is not None or sequence.paused) and not _may_go_on(sequence):
            continue
        if group is not None and group not in ready:  # once for all of them: they must not disagree
            ready[group] = _are_ready(group, prefixes, share)
        _undo_half_a_step(sequence)
        sequence.drafts = []
        if sequence.computed >= len(sequence.prompt):
            rows.append(Rows(sequence, sequence.tokens[sequence.computed :], 1))
            if group is None:
                decoding.append(rows[-1])
            continue
        block_end = len(sequence.prompt) + 1
        if prefixes is not None:
            block_end = _use_known(sequence, prefixes, share)
            can_use = sequence.computed == block_end - BLOCK_TOKENS and block_end < len(sequence.prompt)
            if can_use and sequence.next_key in coming:
                continue  # another sequence is at it: it takes the block from there when it is done
        if group is not None and ready[group]:
            rows.append(Rows(sequence, sequence.tokens[-1:], 1))
            continue
        count = min(sequence.num_pending, budget)
        if group is not None and len(group.firsts) > 1:
            count = min(count, sequence.num_pending - 1)  # the last rows of all prompts go together
        if count:
            if block_end <= len(sequence.prompt):
                coming.add(sequence.next_key)
            budget -= count
            wanted = int(count == sequence.num_pending)
            rows.append(Rows(sequence, sequence.tokens[sequence.computed : sequence.computed + count], wanted))
    if decoding and (speculation is not None or any(r.sequence.constraints is not None for r in decoding)):
        _add_drafts(decoding, sum(len(r.tokens) for r in rows), budget, speculation)
    return rows


def shared_tokens(rows: list[Rows]) -> Iterator[int]:
    """For each sequence its first tokens that one before it has in the same blocks of the cache."""
    seen: set[int] = set()
    for r in rows:
        assert r.sequence.place is not None
        blocks = r.sequence.place.blocks[: blocks_for(r.sequence.computed)]
        count = next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks[count:])
        yield min(count * BLOCK_TOKENS, r.sequence.computed)


def _may_go_on(sequence: Sequence) -> bool:
    group, leader = sequence.group, sequence.leader
    if sequence.paused:
        return False
    if group is not None:
        return not group.is_waiting and (group.begun or sequence in group.firsts)
    if leader is not None and leader.place is None and leader.finished:
        sequence.leader = leader = None  # it ended before it could lead
    return leader is None


def _are_ready(group: Group, prefixes: Prefixes | None, share: Share) -> bool:
    """Whether the next row of each member is its last, once each has taken what is known of its prompt."""
    for member in group.live:
        _undo_half_a_step(member)
        if prefixes is not None and not group.begun:
            _use_known(member, prefixes, share)
    return all(member.num_pending == 1 for member in group.live)


def _undo_half_a_step(sequence: Sequence) -> None:
    """Where an interrupt came between a step and its token: the last row again gives the same."""
    if sequence.num_pending == 0:
        sequence.computed -= 1


def _use_known(sequence: Sequence, prefixes: Prefixes, share: Share) -> int:
    """Takes what is known of the prompt; the last token's row is computed in any case, for its logits.

    Returns:
        Where the block behind the known ones ends.
    """
    if sequence.computed == len(sequence.known) * BLOCK_TOKENS:
        for known in prefixes.find_all(sequence.prompt, sequence.known):
            share(sequence, len(sequence.known), known.block)
            sequence.known.append(known.name)
            sequence.computed += BLOCK_TOKENS
            sequence.reused += BLOCK_TOKENS
    return (len(sequence.known) + 1) * BLOCK_TOKENS


def _add_drafts(decoding: list[Rows], num_rows: int, budget: int, speculation: Speculation | None) -> None:
    free: list[Sequence] = []
    for r in decoding:
        forced = [] if r.sequence.constraints is None else r.sequence.constraints.forced_after(r.sequence.tokens)
        if forced:
            r.sequence.drafts = forced[: min(budget, r.sequence.limit - len(r.sequence.tokens) - 1)]
            budget -= len(r.sequence.drafts)
        else:
            free.append(r.sequence)
    if speculation is not None and free:
        speculation.propose(free, num_rows)
    for r in decoding:
        r.tokens = r.tokens + r.sequence.drafts
        r.wanted = 1 + len(r.sequence.drafts)
