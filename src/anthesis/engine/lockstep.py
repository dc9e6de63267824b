"""Texts that advance together by tokens that the caller chooses: for decoding methods that are not built in."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anthesis.engine.admission import NO_ROOM
from anthesis.engine.group import OVER, Advance, Group
from anthesis.engine.outputs import NOT_FINITE, StepOutputs
from anthesis.engine.sequence import Sequence
from anthesis.errors import RequestError

if TYPE_CHECKING:
    from anthesis.engine.engine import Engine


class _Held(Group):
    """Holds a step's logits until somebody has chosen by them."""

    held: NDArray[np.floating] | None = None

    @property
    def is_waiting(self) -> bool:
        return self.held is not None

    def take(self, outputs: StepOutputs, rows: list[int], advance: Advance) -> None:
        """Keeps the logits of `live`; nobody advances yet."""
        if not all(outputs.is_finite(row) for row in rows):
            self.fail(NOT_FINITE)
            return
        self.held = np.stack([outputs.logits(row) for row in rows])


class Lockstep:
    """Rows of texts, `width` for each prompt, behind one another in the order of the prompts: N in all.

    Look at `logits`, choose a token for each row, `advance`; and so on. Close it, or use it as a context manager. Other
    requests of the same LLM go on beside it.

    Args:
        engine: that runs them.
        members: a sequence for each row, those of one prompt alike.
        width: rows of each prompt.
        vocab_size: of the model.

    Raises:
        RequestError: all together need more of the cache than there may be.
    """

    def __init__(self, engine: Engine, members: list[Sequence], width: int, vocab_size: int) -> None:
        self._engine = engine
        self._group = _Held(members, width)
        self._vocab_size = vocab_size
        engine.submit(members)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self._group.members)

    def logits(self) -> NDArray[np.float32]:
        """The scores of the token after each row: (N, V) float32 (float64 on reference-fp64).

        It runs the steps that are needed. In the beginning rows of one prompt are equal. Rows that are over are zeros.

        Raises:
            RequestError: all rows are over; or the rows wait for memory that nobody else's end will free.
            AnthesisError: the model computed numbers that are not finite.
        """
        group = self._group
        if not group.live:
            raise RequestError("all rows are over, so nothing follows; look at what the last call of advance was given")
        while group.held is None:
            progressed = self._engine.step()
            for member in group.members:
                member.check()
            if not progressed:
                raise RequestError(NO_ROOM)
        assert group.held is not None
        if not group.begun:
            return np.repeat(group.held, group.width, axis=0)
        logits = np.zeros((self.num_rows, self._vocab_size), group.held.dtype)
        logits[[not member.finished for member in group.members]] = group.held
        return logits

    def advance(self, tokens: Seq[int], parents: Seq[int] | None = None) -> None:
        """Lets each row go on.

        Args:
            tokens: (N,) ids: what follows; -1: the row is over, now and from then on.
            parents: (N,) rows: row i becomes what row parents[i] was, followed by tokens[i]. It must be one of the
                same prompt that is not over. None: each goes on by itself.

        Raises:
            RequestError: `logits` was not asked for before; an id the model does not have; a parent of another prompt,
                or one that is over; a row that has no room left.
        """
        group = self._group
        if group.held is None:
            raise RequestError("advance takes the tokens that were chosen by the logits; call logits() first")
        members = group.members
        for name, given in (("tokens", tokens), ("parents", parents)):
            if given is not None and len(given) != len(members):
                raise RequestError(f"there are {len(members)} rows, and {len(given)} {name}; give one for each row")
        choice = [OVER if member.finished else int(token) for member, token in zip(members, tokens, strict=True)]
        origins = list(range(len(members))) if parents is None else [int(parent) for parent in parents]
        self._check(choice, origins)
        group.held = None
        for member, token in zip(members, choice, strict=True):
            if token == OVER and not member.finished:
                member.finish_reason = "stop"
        self._engine.advance(group, origins, choice)

    def close(self) -> None:
        """Ends all rows and frees their memory."""
        self._engine.abort(self._group.members)

    def _check(self, tokens: list[int], parents: list[int]) -> None:
        members, width = self._group.members, self._group.width
        for row, (member, token, parent) in enumerate(zip(members, tokens, parents, strict=True)):
            if token == OVER:
                continue
            if not 0 <= token < self._vocab_size:
                raise RequestError(f"row {row}: token id {token} is outside the vocabulary of {self._vocab_size}")
            if not 0 <= parent < len(members) or parent // width != row // width or members[parent].finished:
                raise RequestError(f"row {row} can't go on from row {parent}: not one of its prompt's that goes on")
            if len(members[parent].tokens) >= member.limit:
                raise RequestError(f"row {row} has reached max_new_tokens, or the end of the context; end it by -1")

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
