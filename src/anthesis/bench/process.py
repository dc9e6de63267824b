"""A point that is measured in a process of its own, as the process that wants it measured sees it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from anthesis.bench.point import Finished, Tell
from anthesis.bench.request import Request
from anthesis.bench.result import Point
from anthesis.errors import ERRORS, AnthesisError, RankError, RequestError
from anthesis.records import from_document, to_document

logger = logging.getLogger("anthesis")

PROTOCOL = 1
"""Of commands and answers; the two sides may be different versions of anthesis."""

_PATIENCE_S = 30.0
_STDERR = 2

_START = """\
import sys
if not sys.path[0]:
    del sys.path[0]
from anthesis.bench.serve import main
sys.exit(main(sys.argv[1:]))
"""
"""Python looks for modules in the working directory first, where a user's statistics.py would be taken for its own.

What starts as `python=` may be a wrapper, and the first place another one.
"""


class PointProcess:
    """A point that is measured by `anthesis.bench.serve`; use it as a context manager, which ends the process.

    Args:
        request: what to measure.
        point: which of its combinations.
        python: the interpreter, whose anthesis may be another version.

    Attributes:
        version: of its anthesis; once it is loaded.
        commit: of that; once it is loaded.
        versions: of it and of what it computes with, but for the device; once it is loaded.

    Raises:
        RequestError: it can't be started.
    """

    version: str
    commit: str | None
    versions: dict[str, str]

    def __init__(self, request: Request, point: Point, python: str = sys.executable) -> None:
        self._request, self._point, self._python = request, point, python
        self._runs, self._share = 0, 0.0
        ours, theirs = os.pipe()
        self._answers = os.fdopen(ours, encoding="utf-8")
        try:
            # a session of its own: Ctrl-C is for this process, which ends the other one
            self._process = subprocess.Popen(
                [python, "-c", _START, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=_STDERR,
                pass_fds=(theirs,),
                start_new_session=True,
                text=True,
            )
        except OSError as error:
            self._answers.close()
            raise RequestError(f"{python} can't be started: {error.strerror}; name a Python interpreter") from error
        finally:
            os.close(theirs)

    def load(self, tell: Tell) -> None:
        """Loads the model.

        Raises:
            AnthesisError: what `LocalPoint.load` raised over there, or how the process died.
            RequestError: the process does not speak our protocol.
            MemoryError: it needed more memory than there is.
        """
        tell("", 0.0)
        hello = self._answer()
        if hello is None or hello.get("protocol") != PROTOCOL:
            if hello is None and self._end() < 0:
                self._died()
            raise RequestError(
                f"{self._python} has no anthesis that measures for this version; install one there that has "
                f"anthesis.bench.serve with protocol {PROTOCOL}"
            )
        self.version, self.commit, self.versions = hello["version"], hello.get("commit"), hello.get("versions", {})
        # what is not asked for is not sent: another version may not know of it
        request = {name: value for name, value in to_document(self._request).items() if value is not None}
        self._ask({"do": "load", "request": request, "point": to_document(self._point)}, tell)

    def warm_up(self, tell: Tell) -> None:
        """Runs until the times settle.

        Raises:
            AnthesisError: as `load`.
            MemoryError: as `load`.
        """
        self._ask({"do": "warm up"}, tell)

    def run(self, tell: Tell) -> bool:
        """One timed run; whether there are as many, and they took as long, as was asked for.

        Raises:
            AnthesisError: as `load`.
            MemoryError: as `load`.
        """
        self._runs += 1
        tell(f"run {self._runs}", self._share)
        answer = self._ask({"do": "run"}, tell)
        self._share = answer["share"]
        return bool(answer["enough"])

    def finish(self) -> Finished:
        """What was found.

        Raises:
            AnthesisError: as `load`.
            MemoryError: as `load`.
        """
        return from_document(Finished, self._ask({"do": "finish"}, lambda text, share: None), "the answer")

    def _ask(self, command: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """Sends a command, and waits until it is done."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; what it said last, and how, is told below
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        while (answer := self._answer()) is not None:
            match answer["event"]:
                case "progress":
                    self._share = answer["share"]
                    tell(answer["text"], self._share)
                case "message":
                    logger.warning("%s", answer["text"])
                case "done":
                    return answer
                case "error":
                    raise _error(answer)
        return self._died()

    def _answer(self) -> dict[str, Any] | None:
        """What it says next; None where it has died, perhaps in the middle of a line."""
        try:
            line = self._answers.readline()
            return dict(json.loads(line)) if line.endswith("\n") else None
        except (TypeError, ValueError):
            return None

    def _end(self) -> int:
        """Its exit code, once it has ended, which it does with its stdin."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        return self._process.wait()

    def _died(self) -> NoReturn:
        code = self._end()
        if code == -signal.SIGKILL:
            raise MemoryError("the process was killed by SIGKILL, which the kernel does when memory runs out")
        how = f"died by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise AnthesisError(f"the process {how}")

    def __enter__(self) -> PointProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets the process end by itself, which it does with its stdin; or makes it, where it may be in the middle."""
        try:
            if error is not None and not isinstance(error, AnthesisError | MemoryError):
                self._process.terminate()
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()  # a second Ctrl-C does not wait
            self._process.wait()
            self._answers.close()


def _error(answer: dict[str, Any]) -> Exception:
    """The exception that was raised over there."""
    kind, message = answer["kind"], answer["message"]
    if kind in ("MemoryError", "OutOfMemoryError"):  # the latter is PyTorch's
        return MemoryError(message)
    if kind == RankError.__name__:
        return RankError(message, answer["details"])
    return ERRORS.get(kind, AnthesisError)(message)
