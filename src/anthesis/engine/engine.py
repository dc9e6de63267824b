"""The engine: several sequences of different lengths in one step, joining and leaving as they come and finish.

Each step takes the rows of every sequence that is being completed and, up to a bound, rows of prompts that are not in
the cache yet (`engine.rows` says which).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from anthesis.devices.device import Cache, Executable, InstructionTime
from anthesis.engine.admission import NO_ROOM, Admission
from anthesis.engine.blocks import BlockCache, Need, Place
from anthesis.engine.group import OVER, Group
from anthesis.engine.inputs import row_inputs, sample_inputs, verifying_inputs
from anthesis.engine.outputs import StepOutputs
from anthesis.engine.rows import Rows, choose_rows, shared_tokens
from anthesis.engine.sequence import Sequence
from anthesis.engine.speculation import Drafter, Speculation
from anthesis.engine.step_time import StepTimes, measure_steps
from anthesis.errors import RequestError
from anthesis.program.builder import Finish
from anthesis.program.ir import BLOCK_TOKENS

OnStep = Callable[[Finish, list[tuple[int, int]], int, list[int]], None]
"""Told how a step's program finishes, (tokens in the cache before it, rows) of each of its sequences, how many rows had
their logits computed, and for each sequence how many of its first tokens are in the same blocks as another one's that
stands before it in the step: they are there once."""


class Engine:
    """Runs sequences to their end.

    Args:
        blocks: where they keep their keys and values.
        compile: lowers the program that finishes in one of the ways, with so many top log-probabilities, over a cache.
        prefill_chunk: prompt rows in one step.
        usable: tokens of the vocabulary that may be generated.
        reuse_prefixes: sequences that begin alike share what was computed of that.

    Attributes:
        on_step: told what was in each step that has run; None: nobody is.
    """

    def __init__(
        self,
        blocks: BlockCache,
        compile: Callable[[Finish, int | None, Cache], Executable],
        prefill_chunk: int,
        usable: int,
        reuse_prefixes: bool = True,
    ) -> None:
        self._blocks = blocks
        self._compile = compile
        self._prefill_chunk = prefill_chunk
        self._usable = usable
        self._reuse_prefixes = reuse_prefixes
        self._speculation: Speculation | None = None
        self._executables: dict[tuple[Finish, int | None], Executable] = {}
        self._admission = Admission(blocks, reuse_prefixes, self._executables.clear)
        self._running: list[Sequence] = []
        self._closed = False
        self.on_step: OnStep | None = None

    def submit(self, sequences: list[Sequence]) -> None:
        """Takes sequences in; they start as soon as there is room. Those of a group must all be there.

        Raises:
            RequestError: one of them alone, or a group, needs more cache than there may be; or the engine is closed.
        """
        self._check_open()
        self._admission.submit(sequences)

    def abort(self, sequences: list[Sequence]) -> None:
        """Takes sequences out, finished or not, and frees what they hold."""
        for sequence in sequences:
            if sequence in self._running:
                self._running.remove(sequence)
            else:
                self._admission.withdraw(sequence)
            self._leave(sequence)

    def close(self) -> None:
        """Aborts all sequences and lets go of the cache."""
        self.abort([*self._running, *self._admission.waiting])
        self._closed = True
        self._executables.clear()
        self._blocks.clear()

    def speculate(self, drafter: Drafter) -> None:
        """From now on verifies drafts; what steps take is measured for it first."""
        self._speculation = Speculation(drafter, self.step_times())

    def step_times(self) -> StepTimes:
        """Measures what steps take, by their rows."""
        self._check_open()
        self._blocks.make_room([Need(1)], self._executables.clear)
        places = self._blocks.take([Need(1)])
        assert places is not None, "nothing runs yet, so there is room"
        try:
            return measure_steps(lambda rows: self._time_step(places[0], rows))
        finally:
            self._blocks.give_back(places[0])

    def measure(self, on: bool) -> list[InstructionTime]:
        """As `Executable.measure`, of greedy steps; a sequence that makes the cache grow begins anew.

        Raises:
            UnsupportedError: the device has no counters.
            RequestError: no step has been made yet.
        """
        if self._blocks.cache is None:
            raise RequestError("nothing to measure yet: measure after a first step")
        return self._executable("argmax").measure(on)

    def step(self) -> bool:
        """Lets sequences in, runs one step, hands every sequence its tokens, and lets finished ones go.

        Returns:
            Whether there was anything to run: not where all wait for memory, or for somebody to choose tokens.

        Raises:
            RequestError: the engine is closed.
        """
        self._check_open()
        self._running += self._admission.admit()
        prefixes = self._blocks.prefixes if self._reuse_prefixes else None
        rows = choose_rows(self._running, self._prefill_chunk, prefixes, self._share, self._speculation)
        if not rows:
            return False
        begin = time.perf_counter()
        outputs = self._run(rows)
        if self._speculation is not None and all(r.sequence.computed >= len(r.sequence.prompt) for r in rows):
            self._speculation.timed(sum(len(r.tokens) for r in rows), time.perf_counter() - begin)
        groups: dict[Group, list[int]] = {}
        row = 0
        for r in rows:
            sequence = r.sequence
            sequence.computed += len(r.tokens) - len(sequence.drafts)
            if sequence.followers:
                self._lead(sequence)
            if r.wanted and sequence.group is not None:
                groups.setdefault(sequence.group, []).append(row)
            elif r.wanted:
                self._take(sequence, outputs, row)
            row += r.wanted
            self._learn(sequence)
        for group, own in groups.items():
            group.take(outputs, own, lambda parents, tokens, group=group: self.advance(group, parents, tokens))  # type: ignore[misc]
        self.abort([r.sequence for r in rows if r.sequence.finished and r.sequence.group is None])
        for group in groups:
            self.abort([member for member in group.members if member.finished])
        return True

    def advance(self, group: Group, parents: list[int], tokens: list[int]) -> None:
        """Lets a group's members go on.

        Args:
            group: of which a step was computed.
            parents: for each member the one, of its run, whose text it has from now on.
            tokens: for each member what follows that; OVER: the member is over, and lets go of what it holds.
        """
        members = group.members
        before = [(member.tokens, member.computed, member.known) for member in members]
        for start in range(0, len(members), group.width):
            run = [i for i in range(start, start + group.width) if members[i].place is not None]
            number = {i: n for n, i in enumerate(run)}
            places = [place for i in run if (place := members[i].place) is not None]
            followed = [None if tokens[i] == OVER else number[parents[i] if group.begun else start] for i in run]
            lengths = [before[i][1] for i in run]
            for i, place in zip(run, self._blocks.follow(places, followed, lengths), strict=True):
                members[i].place = place
        going_on = [i for i, token in enumerate(tokens) if token != OVER and not members[i].finished]
        origin = {i: parents[i] if group.begun else i - i % group.width for i in going_on}
        for i in going_on:
            if origin[i] != i:
                text, members[i].computed, known = before[origin[i]]
                members[i].tokens, members[i].known = [*text, tokens[i]], list(known)
        for i in going_on:  # after the others, which begin with what it is now
            if origin[i] == i:
                members[i].tokens.append(tokens[i])
            members[i].counts.steps += 1
        group.begun = True
        self.abort([member for member in members if member.finished])

    def run(self, units: list[list[Sequence]], at_once: int) -> None:
        """Submits sequences and steps until they are done; frees them also when it is interrupted.

        Args:
            units: the sequences of each prompt, that are submitted together, to be run to their end.
            at_once: how many sequences are on their way at a time; more only where one unit has more.

        Raises:
            AnthesisError: one of them has failed.
            RequestError: one alone needs more cache than there may be; or all wait for memory that nothing will free.
        """
        sequences = [sequence for unit in units for sequence in unit]
        self._check_open()
        self._admission.check(sequences)
        to_come = deque(units)
        running: list[Sequence] = []
        try:
            while to_come or running:
                while to_come and (not running or len(running) + len(to_come[0]) <= at_once):
                    running += to_come[0]
                    self.submit(to_come.popleft())
                if not self.step():
                    raise RequestError(NO_ROOM)
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

        Raises:
            RequestError: it needs more cache than there may be, or than will be free.
        """
        self._check_open()
        self._admission.check([sequence])
        while not self._admission.enter([sequence], behind_known=False):  # all rows are wanted
            if not self.step():
                raise RequestError(NO_ROOM)
        try:
            while sequence.num_pending:
                count = min(self._prefill_chunk, sequence.num_pending)
                rows = [Rows(sequence, sequence.tokens[sequence.computed : sequence.computed + count], count)]
                outputs = self._executable("logits").run(row_inputs(rows, self._blocks.table))
                self._tell("logits", rows, count)
                yield outputs["logits"]
                self._check_open()
                sequence.computed += count
        finally:
            self._leave(sequence)

    def _run(self, rows: list[Rows]) -> StepOutputs:
        """One step of these rows, by the program that gives all that their sequences look at."""
        inputs = row_inputs(rows, self._blocks.table)
        chosen = [r for r in rows if r.wanted]
        special = [r for r in chosen if not r.sequence.is_plain]
        finish: Finish = "cache"
        top: int | None = None
        if any(r.needs_logits for r in special):
            finish = "logits"
        elif any(r.needs_sample for r in special):
            finish = "sample"
            top = max((r.top for r in special if r.top is not None), default=None)
            inputs |= sample_inputs(chosen)
        elif chosen:
            finish = "argmax"
        outputs = self._executable(finish, top).run(inputs)
        self._tell(finish, rows, sum(r.wanted for r in chosen))
        return StepOutputs(outputs, self._usable)

    def _take(self, sequence: Sequence, outputs: StepOutputs, row: int) -> None:
        """Gives a sequence its token, and as many more as its drafts were what it would have chosen."""
        drafts, sequence.drafts = sequence.drafts, []
        before, accepted = len(sequence.tokens), 0
        is_guess = sequence.constraints is None or not sequence.constraints.forced_after(sequence.tokens)
        while outputs.take(row + accepted, sequence) and not sequence.finished and accepted < len(drafts):
            if sequence.tokens[-1] != drafts[accepted]:
                break
            accepted += 1
            sequence.computed += 1
        if accepted:
            sequence.came_together(len(sequence.tokens) - before)
        counts = sequence.counts
        counts.steps += 1
        if is_guess:
            counts.drafted_tokens += len(drafts)
            counts.accepted_tokens += accepted
            if self._speculation is not None:
                self._speculation.verified(sequence, len(drafts), accepted)

    def _learn(self, sequence: Sequence) -> None:
        """Makes the blocks that are full by now known by their tokens."""
        while self._reuse_prefixes and (len(sequence.known) + 1) * BLOCK_TOKENS <= sequence.computed:
            assert sequence.place is not None
            block = sequence.place.blocks[len(sequence.known)]
            sequence.known.append(self._blocks.prefixes.learn(sequence.next_key, block))

    def _lead(self, sequence: Sequence) -> None:
        """Lets followers begin with what is in the cache of their prompt, once that is all of it."""
        if sequence.computed < len(sequence.prompt):
            return
        assert sequence.place is not None
        common = len(sequence.prompt) - 1  # the last token's row gives each its own first token
        here = [f for f in sequence.followers if f.place is not None and f.computed < common]
        places = [sequence.place, *(place for f in here if (place := f.place) is not None)]
        followed = self._blocks.follow(places, [0] * len(places), [common] * len(places))
        for follower, place in zip([sequence, *here], followed, strict=True):
            follower.place = place
        for follower in here:
            follower.reused += common - follower.computed
            follower.computed = common
            follower.known = sequence.known[: common // BLOCK_TOKENS]
        for follower in sequence.followers:
            follower.leader = None
        sequence.followers = []

    def _share(self, sequence: Sequence, index: int, block: int) -> None:
        assert sequence.place is not None
        sequence.place = self._blocks.replace(sequence.place, index, block)

    def _tell(self, finish: Finish, rows: list[Rows], logit_rows: int) -> None:
        if self.on_step is not None:
            sequences = [(r.sequence.computed, len(r.tokens)) for r in rows]
            self.on_step(finish, sequences, logit_rows, [*shared_tokens(rows)])

    def _time_step(self, place: Place, rows: int) -> float:
        """Seconds of a step that verifies so many rows of one sequence."""
        inputs = verifying_inputs(place, rows, self._blocks.table)
        executable = self._executable("argmax")
        begin = time.perf_counter()
        executable.run(inputs)
        return time.perf_counter() - begin

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("this LLM is closed; open a new one")

    def _leave(self, sequence: Sequence) -> None:
        if self._speculation is not None:
            self._speculation.forget(sequence)
        if sequence.place is not None and not self._closed:
            self._blocks.give_back(sequence.place)
        sequence.place = None

    def _executable(self, finish: Finish, top: int | None = None) -> Executable:
        if (finish, top) not in self._executables:
            self._executables[finish, top] = self._compile(finish, top, self._blocks.cache)
        return self._executables[finish, top]
