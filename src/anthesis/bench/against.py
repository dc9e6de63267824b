"""Two points measured in turns, run by run, each in a process of its own: the only rows that can be compared."""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from anthesis.bench.command import command_of
from anthesis.bench.machine import now
from anthesis.bench.point import Finished
from anthesis.bench.process import PointProcess
from anthesis.bench.request import MAX_RESULT_TIMES, Request
from anthesis.bench.result import Point, Report, Row, Turns
from anthesis.bench.sweep import OnStatus, Status, named, new_report, points_of
from anthesis.errors import AnthesisError, RankError, RequestError
from anthesis.parallel.variables import launched

SAME = "same"
"""Against which nothing is changed: it shows by how much two processes of one program differ."""

_IDLE_S = 0.01
"""Before each turn: threads of the other side that wait for work look for it up to a millisecond before they sleep."""

_TURNS = "timed runs in turns"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two.

    Attributes:
        name: "A", or "B".
        changed: what B has that A has not, as NAME=VALUE; nothing of A.
        request: of a single point.
        python: the interpreter.
    """

    name: Literal["A", "B"]
    changed: str
    request: Request
    python: str

    @property
    def point(self) -> Point:
        """The one of its request."""
        (point,) = points_of(self.request)
        return point

    @property
    def times(self) -> int:
        """Of tokens, in a run."""
        return self.point.batch * self.request.max_new_tokens


def measure_in_turns(request: Request, against: str, on_status: OnStatus = lambda status: None) -> Report:
    """Measures a point and another one in turns: rounds of a run of each, whose order is drawn for each round.

    Both are loaded and warmed up first, each in an order drawn, too: who comes first gets the better pages, for the
    whole session. There are rounds until both have their `request.runs` and `request.min_s`, or a result can't hold
    another one.

    Args:
        request: of side A, a single point.
        against: what side B has instead, as `side_b` reads it.
        on_status: told what begins.

    Returns:
        The report, with a row for each side.

    Raises:
        RequestError: several points, the ranks of a launcher, more samples than a result can hold, or as `side_b`.
        AnthesisError: one side could not be measured; the message says which.
        MemoryError: they do not fit the memory together.
    """
    if len(points_of(request)) > 1:
        raise RequestError(f"--against takes one point, and {len(points_of(request))} are asked for; sweep without it")
    sides = (Side(name="A", changed="", request=request, python=sys.executable), side_b(request, against))
    if launched() is not None and any(max(side.request.tp) * side.request.pp > 1 for side in sides):
        raise RequestError("--against starts ranks of its own; run it without the launcher")
    times = request.runs * sum(side.times for side in sides)
    if times > MAX_RESULT_TIMES:
        raise RequestError(
            f"{times:,} times of tokens of both sides are more than the {MAX_RESULT_TIMES:,} that a result can hold; "
            "ask for fewer runs, tokens or sequences"
        )
    report = new_report(request)
    report = replace(report, request={**report.request, "against": against})
    session, started_at = secrets.token_hex(8), now()
    with ExitStack() as opened:
        turns = _Turns(sides, random.Random(session), on_status)
        turns.load(opened)
        turns.warm_up()
        order = turns.run()
        finished = turns.finish()
    rows = [
        Row(
            point=side.point,
            measurement=found.measurement,
            error=None,
            started_at=started_at,
            command=command_of(side.request, side.point, None if side.python == sys.executable else side.python),
            turns=Turns(
                session=session,
                side=side.name,
                changed=side.changed,
                order=tuple(places),
                version=process.version,
                commit=process.commit,
                versions={**process.versions, **found.versions},
            ),
        )
        for side, process, found, places in zip(sides, turns.processes, finished, order, strict=True)
    ]
    return replace(report, rows=tuple(rows), versions={**report.versions, **finished[0].versions})


class _Turns:
    """The two processes, and whose turn it is, which is drawn each time."""

    def __init__(self, sides: Sequence[Side], drawn: random.Random, on_status: OnStatus) -> None:
        self._sides, self._drawn, self._on_status = sides, drawn, on_status
        self._started: dict[int, PointProcess] = {}
        self._shares = [0.0, 0.0]

    @property
    def processes(self) -> list[PointProcess]:
        """Of side A and of side B."""
        return [self._started[number] for number in range(len(self._sides))]

    def load(self, opened: ExitStack) -> None:
        """Starts both, which end with `opened`, and then loads both, in the same order."""
        order = self._in_turn()
        for number in order:
            side = self._sides[number]
            self._started[number] = opened.enter_context(PointProcess(side.request, side.point, side.python))
        for number in order:
            with _naming(self._sides[number]):
                self._started[number].load(self._tell(number, "loading"))

    def warm_up(self) -> None:
        for number in self._in_turn():
            with _naming(self._sides[number]):
                self._started[number].warm_up(self._tell(number, "warming up"))

    def run(self) -> tuple[list[int], list[int]]:
        """Rounds until both sides have enough, or a result can't hold another one; when each had its turns."""
        order: tuple[list[int], list[int]] = ([], [])
        enough = [False, False]
        most = MAX_RESULT_TIMES // sum(side.times for side in self._sides)
        while not all(enough) and len(order[0]) < most:
            for number in self._in_turn():
                order[number].append(len(order[0]) + len(order[1]))
                time.sleep(_IDLE_S)
                with _naming(self._sides[number]):
                    enough[number] = self._started[number].run(self._tell(number, _TURNS))
        return order

    def finish(self) -> list[Finished]:
        found = []
        for side, process in zip(self._sides, self.processes, strict=True):
            with _naming(side):
                found.append(process.finish())
        return found

    def _in_turn(self) -> list[int]:
        return self._drawn.sample((0, 1), 2)

    def _tell(self, number: int, phase: str) -> Callable[[str, float], None]:
        label = f"side {self._sides[number].name} ({named(self._sides[number].point)})"

        def tell(detail: str, share: float) -> None:
            self._shares[number] = share
            self._on_status(
                Status(
                    row=1,
                    rows=1,
                    # runs of both sides are one phase
                    phase=phase if phase == _TURNS else f"{label}: {phase}",
                    detail=f"{label}: {detail or phase}",
                    share=sum(self._shares) / 2,
                )
            )

        return tell


@contextmanager
def _naming(side: Side) -> Iterator[None]:
    """Makes errors say of which side they are."""
    of_side = f"side {side.name}{f' ({side.changed})' if side.changed else ''}"
    try:
        yield
    except RankError as error:
        raise RankError(f"{of_side}: {error}", error.details) from error
    except AnthesisError as error:
        raise type(error)(f"{of_side}: {error}") from error
    except MemoryError as error:
        raise MemoryError(f"{of_side}: {error}") from error


def side_b(request: Request, against: str) -> Side:
    """What a point is to be compared with.

    Args:
        request: of side A.
        against: "same", or a comma list of NAME=VALUE: options of `bench` that are different, and `python`, the
            interpreter of another installation of anthesis.

    Raises:
        RequestError: something else, an unknown name, one named twice, a value of the wrong kind or that A has too.
    """
    python = sys.executable
    changes: dict[str, Any] = {}
    items = [] if against.strip() == SAME else [item.strip() for item in against.split(",")]
    for item in items:
        flag, equals, text = item.partition("=")
        name = flag.strip().removeprefix("--").replace("-", "_")
        if not equals or not text or name not in CHANGEABLE:
            known = ", ".join(known.replace("_", "-") for known in CHANGEABLE)
            raise RequestError(f"--against {item!r} is not NAME=VALUE, nor {SAME!r}; names are: {known}")
        if name in changes or (name == "python" and python != sys.executable):
            raise RequestError(f"--against names {name} twice")
        try:
            value = CHANGEABLE[name](text.strip())
        except ValueError:
            raise RequestError(f"--against {item!r}: {text!r} is no value of {name}") from None
        if name == "python":
            python = str(value)
        elif getattr(request, name) == value:
            raise RequestError(f"--against {item!r} is what side A has; {SAME!r} compares a point with itself")
        else:
            changes[name] = value
    return Side(name="B", changed=", ".join(items), request=replace(request, **changes), python=python)


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _drafts(text: str) -> str | None:
    return None if text == "none" else text


def _one(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: (read(text),)


CHANGEABLE: Mapping[str, Callable[[str], Any]] = {
    "model": str,
    "weights": _one(str),
    "batch": _one(int),
    "prompt_tokens": _one(int),
    "tp": _one(int),
    "pp": int,
    "device": str,
    "threads": int,
    "max_context": int,
    "cache": str,
    "cache_memory": int,
    "prefill_chunk": int,
    "speculate": _drafts,
    "invariant": _yes_or_no,
    "adapter": str,
    "seed": int,
    "python": str,
}
"""What may be different, and what reads its value."""
