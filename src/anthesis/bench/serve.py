"""The process in which a point is measured for another process.

`anthesis.bench.process`, the other side, starts it with the file descriptor FD as its argument. It reads commands from
stdin and answers on FD, one JSON object a line, so that what libraries print goes where it always goes. After
{"event": "hello"}, which says what its software is, it obeys

    {"do": "load", "request": {...}, "point": {...}}    {"do": "warm up"}    {"do": "run"}    {"do": "finish"}

each with any number of {"event": "message"}, then one {"event": "done"}, or {"event": "error"} and its end. "load" and
"warm up" also give {"event": "progress"}; a timed run does not, so that nobody draws a progress bar beside it. The
process also ends with its stdin, on SIGTERM, and when nobody can read its answers any more; the ranks it has started
end with it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from contextlib import ExitStack
from dataclasses import fields
from types import TracebackType
from typing import Any

import anthesis
from anthesis.bench.machine import commit, versions
from anthesis.bench.point import LocalPoint, Tell
from anthesis.bench.process import PROTOCOL
from anthesis.bench.request import Request
from anthesis.bench.result import Point
from anthesis.errors import AnthesisError, RankError, RequestError
from anthesis.records import from_document, to_document

_PATIENCE_S = 10.0


class _Answers:
    """What goes to the other side."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # ranks must not keep it open
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        threading.Thread(target=self._end_when_unread, name="anthesis-reader", daemon=True).start()

    def send(self, event: str, **content: Any) -> None:
        line = json.dumps({"event": event, **content})
        with self._lock:
            self._file.write(line + "\n")

    def progress(self, text: str, share: float) -> None:
        self.send("progress", text=text, share=share)

    def _end_when_unread(self) -> None:
        """Ends this process once the other side has ended, however it did.

        The kernel's own way, PR_SET_PDEATHSIG, goes by the thread that started this process.

        Source:
            poll(2): POLLERR on the writing end of a pipe whose reading end is closed.
        """
        waiting = select.poll()
        waiting.register(self._file.fileno(), 0)
        waiting.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE_S)
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Obeys commands until there are no more, or one fails."""
    answers = _Answers(int(arguments[0]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logger = logging.getLogger("anthesis")
    logger.addHandler(_Messages(answers))
    logger.propagate = False
    warnings.showwarning = lambda message, *_, **__: logger.warning("%s", message)
    sys.excepthook = lambda kind, error, trace: _unforeseen(answers, kind, error, trace)
    answers.send("hello", protocol=PROTOCOL, version=anthesis.__version__, commit=commit(), versions=versions())
    with ExitStack() as opened:
        point: LocalPoint | None = None
        for line in sys.stdin:
            command = json.loads(line)
            try:
                if command["do"] == "load":
                    point = opened.enter_context(_point(command))
                assert point is not None, "nothing was loaded"
                answers.send("done", **_obey(point, command["do"], answers.progress))
            except (AnthesisError, MemoryError) as error:
                details = error.details if isinstance(error, RankError) else ""
                answers.send("error", kind=type(error).__name__, message=str(error), details=details)
                return 1
    return 0


def _point(command: dict[str, Any]) -> LocalPoint:
    unknown = set(command["request"]) - {field.name for field in fields(Request)}
    if unknown:
        raise RequestError(f"version {anthesis.__version__} does not know of {', '.join(sorted(unknown))}")
    request = from_document(Request, command["request"], "the request")
    return LocalPoint(request, from_document(Point, command["point"], "the point"))


def _obey(point: LocalPoint, command: str, tell: Tell) -> dict[str, Any]:
    """What is to be answered."""
    if command == "load":
        point.load(tell)
    elif command == "warm up":
        point.warm_up(tell)
    elif command == "run":
        told = [0.0]
        enough = point.run(lambda text, share: told.append(share))
        return {"enough": enough, "share": told[-1]}
    else:
        assert command == "finish", command
        return dict(to_document(point.finish()))
    return {}


class _Messages(logging.Handler):
    """Sends what is logged to the other side, whose user it is for."""

    def __init__(self, answers: _Answers) -> None:
        super().__init__()
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        self._answers.send("message", text=record.getMessage())


def _unforeseen(
    answers: _Answers, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Shows where something happened that no user can have caused, and tells of it."""
    sys.__excepthook__(kind, error, trace)
    answers.send("error", kind=kind.__name__, message=f"{kind.__name__}: {error}", details="")
