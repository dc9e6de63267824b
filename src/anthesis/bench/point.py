"""One point measured piece by piece, in this process; `PointProcess` is the same in another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from anthesis.bench.measure import Session
from anthesis.bench.measurement import Measurement
from anthesis.bench.request import Request
from anthesis.bench.result import Point
from anthesis.llm import LLM

Tell = Callable[[str, float], None]
"""Told what is done now, and which share of the point's work, between 0 and 1, is done by then."""

_LOAD_SHARE = 0.1
"""Of the work, a guess for progress only."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a point gave.

    Attributes:
        measurement: of it.
        versions: of what its device computes with.
    """

    measurement: Measurement
    versions: dict[str, str]


class PointRun(Protocol):
    """A point that is measured piece by piece: `load`, `warm_up`, `run` until that says enough, `finish`."""

    def load(self, tell: Tell) -> None:
        """Loads the model."""

    def warm_up(self, tell: Tell) -> None:
        """Runs until the times settle."""

    def run(self, tell: Tell) -> bool:
        """One timed run; whether there are as many, and they took as long, as was asked for."""

    def finish(self) -> Finished:
        """What was found."""


class LocalPoint:
    """A point that is measured in this process; close it, or use it as a context manager.

    Args:
        request: what to measure.
        point: which of its combinations.
    """

    def __init__(self, request: Request, point: Point) -> None:
        self._request, self._point = request, point
        self._opened = ExitStack()

    def load(self, tell: Tell) -> None:
        """Loads the model.

        Raises:
            AnthesisError: as `LLM`; or a prompt that does not fit it.
        """

        def on_weight(loaded: int, total: int) -> None:
            tell(f"loading {loaded} of {total} weights", _LOAD_SHARE * loaded / total)

        tell("", 0.0)
        request, point = self._request, self._point
        self._llm = self._opened.enter_context(
            LLM(
                request.model,
                weights=point.weights,
                device=request.device,
                tp=point.tp,
                pp=request.pp,
                threads=request.threads,
                max_context=request.max_context,
                cache=request.cache,
                cache_memory=request.cache_memory,
                prefill_chunk=request.prefill_chunk,
                reuse_prefixes=False,  # every run does the work of the first
                speculate=request.speculate,
                invariant=request.invariant,
                adapter=request.adapter,
                seed=request.seed,
                on_weight=on_weight,
            )
        )
        self._session = Session(self._llm, request, point)

    def warm_up(self, tell: Tell) -> None:
        """Runs until the times settle."""
        self._session.warm_up(_after_loading(tell))

    def run(self, tell: Tell) -> bool:
        """One timed run; whether there are as many, and they took as long, as was asked for."""
        self._session.run(_after_loading(tell))
        return self._session.is_enough

    def finish(self) -> Finished:
        """What was found."""
        return Finished(measurement=self._session.measurement(), versions=dict(self._llm.loaded.device.versions()))

    def __enter__(self) -> LocalPoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def _after_loading(tell: Tell) -> Tell:
    return lambda text, share: tell(text, _LOAD_SHARE + (1 - _LOAD_SHARE) * share)
