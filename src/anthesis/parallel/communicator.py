"""What the ranks of one stage exchange within a step.

Ranks on one machine share memory: `anthesis._native.SharedCommunicator` has these methods. For others, and for cards,
there is `process_groups.py`.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anthesis.errors import AnthesisError
from anthesis.program.ir import Array

TIMEOUT_VARIABLE = "ANTHESIS_PEER_TIMEOUT_S"
_TIMEOUT_S = 30.0


class Communicator(Protocol):
    """Exchanges among the ranks of a stage; all of them call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """This rank's number among them."""

    @property
    def size(self) -> int:
        """Ranks W."""

    def all_reduce(self, x: Array) -> None:
        """Makes `x`, (N,) float32, its sum over the ranks, the same bits on all of them.

        Raises:
            AnthesisError: another rank has ended, or does not answer.
        """

    def all_gather(self, mine: NDArray[np.uint8]) -> list[bytes]:
        """What each rank brings, in rank order: (N,) uint8, of any length each.

        Raises:
            AnthesisError: another rank has ended, or does not answer.
        """


def peer_timeout_s() -> float:
    """Seconds without an answer after which another machine counts as lost.

    Raises:
        AnthesisError: the environment variable that sets it holds no such number.
    """
    return seconds_in(TIMEOUT_VARIABLE, _TIMEOUT_S)


def seconds_in(variable: str, default: float) -> float:
    """The seconds that an environment variable holds; the default where it is not set.

    Raises:
        AnthesisError: it holds no such number.
    """
    text = os.environ.get(variable, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise AnthesisError(f"{variable} is {text!r:.60}; it must be a number of seconds from 1 to 86400")
    return seconds
