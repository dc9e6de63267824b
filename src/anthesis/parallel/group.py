"""The ranks of a model, as rank 0 sees them: it tells the others what to do, and notices when one of them ends.

Rank 0 runs the command; the others do what it says (`engine/serve.py`). They meet in three ways: rank 0 starts them on
its machine; or a launcher has started all, on one machine or several; then rank 0 offers what the others need to
connect in the launcher's store. What the ranks of a stage exchange within a step does not go through rank 0.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from anthesis.errors import ERRORS, AnthesisError, RankError
from anthesis.parallel.connection import ClosedError, Connection
from anthesis.parallel.launch import LocalRanks
from anthesis.parallel.layout import Layout
from anthesis.parallel.meeting import (
    START_VARIABLE,
    check_launched,
    open_meeting,
    rank_of,
    start_timeout_s,
)
from anthesis.parallel.process_groups import PROCESSORS, NoAnswerError
from anthesis.parallel.seat import Seat
from anthesis.parallel.seating import seat_all
from anthesis.parallel.shared_memory import (
    accept,
    close_listener,
    local_listener,
)
from anthesis.parallel.uninterrupted import SIGNALS, uninterrupted
from anthesis.parallel.variables import launched
from anthesis.program.ir import Array

_T = TypeVar("_T")


class Group:
    """The others, for rank 0: started at once, and there after `meet`. Close it, also where `meet` fails.

    Args:
        layout: of the ranks.
        backend: of the process groups in which they exchange what does not go through memory that they share.

    Attributes:
        layout, backend: as given.
        connections: to the others, by rank.
        seat: rank 0's own.

    Raises:
        UnsupportedError: PyTorch, which several ranks need, is not installed.
        RequestError: the launcher started another number of ranks, or its ranks have served another model already.
    """

    def __init__(self, layout: Layout, backend: str = PROCESSORS) -> None:
        self.layout, self.backend = layout, backend
        self.seat = Seat(0, layout)
        self._failure: AnthesisError | None = None
        self._closing = False
        self._keep_logs = False
        self._process_id = os.getpid()
        self._process_ids: list[int] = []
        self._steps = 0
        self._signalled, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watcher = threading.Thread(target=self._watch, name="anthesis-ranks", daemon=True)
        self.connections: dict[int, Connection] = {}
        self._replies: queue.Queue[tuple[int, dict[str, Any], Mapping[str, Array]] | None] = queue.Queue()
        environment = launched()
        self._local: LocalRanks | None = None
        if environment is None:
            listener, self._token = local_listener()
            self._listeners = [listener]
            self._local = LocalRanks(layout.size - 1, self._token)
        else:
            check_launched(environment, layout)
            meeting = open_meeting(environment)
            meeting.was_used = True
            self._token, self._listeners = meeting.token, meeting.listeners

    def meet(self) -> None:
        """Waits for all ranks, and gives each its seat.

        Raises:
            AnthesisError: a rank did not come, or ended.
        """
        self._accept_all()
        self._close_listeners()
        self._watcher.start()
        seat_all(self)

    # --- telling them what to do --------------------------------------------------------------------------------------

    def tell(self, message: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        """Sends a message to all other ranks.

        Raises:
            AnthesisError: one of them has ended.
        """
        self.check()
        for rank in self.connections:
            self.send(rank, message, arrays)

    def send(self, rank: int, message: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        """Sends a message to one rank.

        Raises:
            AnthesisError: it has ended.
        """
        try:
            self.connections[rank].send(message, arrays)
        except ClosedError as error:
            raise self.failure_behind(error) from error

    def ask(self, message: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """Sends a message to all other ranks, and waits until each has done as it says.

        Returns:
            What they replied, by rank.

        Raises:
            AnthesisError: one of them failed at it, with the error that it raised, or ended.
        """
        with self.together():
            self.tell(message)
            return self.gather_replies()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step: signals wait for its end, and a second one breaks it off, for a rank that hangs, it may be.

        Raises:
            AnthesisError: what was raised within, or that it was broken off.
        """
        self._steps += 1
        with uninterrupted(self._wakeup), self.together():
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what all ranks do: where rank 0 leaves it midway, the others can't go on either.

        Raises:
            AnthesisError: what was raised within.
        """
        whole = False
        try:
            yield
            whole = True
        finally:
            if not whole:
                self._break_off()

    def _break_off(self) -> None:
        """Makes the others end, where rank 0 does not go on with what all have begun."""
        if self._failure is None and os.getpid() == self._process_id:
            self._failure = RankError("what the ranks did together was broken off midway; open a new LLM")
            self._abort()
            self._replies.put(None)

    def gather_replies(self) -> dict[int, dict[str, Any]]:
        """Waits until each of the other ranks has done what it was told, as `ask`.

        Raises:
            AnthesisError: one of them failed at it, or ended.
        """
        replies: dict[int, dict[str, Any]] = {}
        while len(replies) < len(self.connections):
            rank, reply, _ = self._next_reply()
            replies[rank] = reply
        return replies

    def next_outputs(self) -> Mapping[str, Array]:
        """What the last stage computed.

        Raises:
            AnthesisError: a rank failed or ended.
        """
        return self._next_reply()[2]

    def check(self) -> None:
        """Raises what the group failed by.

        Raises:
            AnthesisError: a rank failed or ended.
            RankError: this process was forked off the one that has the ranks.
        """
        if os.getpid() != self._process_id:
            raise RankError(
                "this process was forked after the model was opened, and its ranks serve the one before; open the "
                "model in this process"
            )
        if self._failure is not None:
            raise self._failure

    def failure_behind(self, error: Exception) -> Exception:
        """What an exchange failed by: mostly it is only the first to notice that a rank has ended."""
        end = time.monotonic() + _NOTICE_S
        while self._failure is None and time.monotonic() < end:
            time.sleep(0.01)
        return self._failure or error

    def _next_reply(self) -> tuple[int, dict[str, Any], Mapping[str, Array]]:
        found = self._replies.get()
        if found is None:
            self._replies.put(None)  # for whoever asks next
            self.check()
            raise RankError("the ranks have ended")
        return found

    def close(self) -> None:
        """Ends all ranks."""
        if self._closing or os.getpid() != self._process_id:
            return
        self._closing = True
        self._close_listeners()
        for connection in self.connections.values():
            with suppress(ClosedError):
                connection.send({"do": "end"})
            connection.close()
        self.seat.close()
        if self._local is not None:
            some_are_missing = len(self.connections) < self.layout.size - 1
            self._local.close(some_are_missing, self._keep_logs, self._process_ids)
        if self._watcher.is_alive() and self._watcher is not threading.current_thread():  # which may free a model
            self._watcher.join()
        os.close(self._signalled)
        os.close(self._wakeup)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            close_listener(listener)

    # --- how they meet ------------------------------------------------------------------------------------------------

    def _accept_all(self) -> None:
        end = time.monotonic() + start_timeout_s()
        poll = select.poll()
        listeners = {listener.fileno(): listener for listener in self._listeners}
        for fd, listener in listeners.items():
            listener.settimeout(_ACCEPT_S)
            poll.register(fd, select.POLLIN)
        while missing := [rank for rank in range(1, self.layout.size) if rank not in self.connections]:
            for fd, _ in poll.poll(100):
                with suppress(OSError):  # who wanted to connect has gone, or is of another user
                    listener = listeners[fd]
                    connected = accept(listener) if listener.family == socket.AF_UNIX else listener.accept()[0]
                    if connected is not None:
                        self._welcome(connected)
            if self._local is not None and self._local.has_ended():
                rank, why = self._local.first_end() or (missing[0], "the launcher failed")
                raise RankError(f"rank {rank} did not start: {why}", _text_of(self._local, rank))
            if time.monotonic() > end:
                raise RankError(
                    f"rank {missing[0]} has not come within {start_timeout_s():g} s ({START_VARIABLE} sets that); is "
                    "its machine up?"
                )

    def _welcome(self, connected: socket.socket) -> None:
        connected.settimeout(None)
        rank = rank_of(connected, self._token)
        if rank is not None and 0 < rank < self.layout.size and rank not in self.connections:
            self.connections[rank] = connection = Connection(connected)
            if (process_id := connection.process_id()) is not None:
                self._process_ids.append(process_id)
        else:
            connected.close()

    def while_all_run(self, work: Callable[[], _T]) -> _T:
        """Does what would wait for a rank that has ended as long as for one that does not answer.

        Raises:
            AnthesisError: what it raised, or what the group failed by meanwhile.
        """
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
                done.set_exception(error)

        threading.Thread(target=run, name="anthesis-meeting", daemon=True).start()
        while not wait([done], timeout=0.1).done:
            self.check()
        try:
            return done.result()
        except AnthesisError as error:
            raise self.failure_behind(error) from error

    # --- noticing when one ends ---------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Reads what the others say, in a thread of its own."""
        ranks = {connection.fileno(): rank for rank, connection in self.connections.items()}
        poll = select.poll()
        for fd in ranks:
            poll.register(fd, select.POLLIN)
        poll.register(self._signalled, select.POLLIN)
        step_signalled = 0
        while self._failure is None and not self._closing:
            for fd, _ in poll.poll(100):
                if fd == self._signalled:
                    for _ in set(SIGNALS).intersection(os.read(fd, 1)):
                        if step_signalled == self._steps:
                            self._break_off()
                        step_signalled = self._steps
                    continue
                rank = ranks[fd]
                try:
                    message, arrays = self.connections[rank].receive()
                    if "failed" in message:
                        self._fail(*self._first_cause(rank, message["failed"]))
                        return
                except Exception as error:  # noqa: BLE001 - whatever it was, nobody would notice anything from now on
                    self._fail(rank, None, error)
                    return
                self._replies.put((rank, message, arrays))

    def _first_cause(
        self, rank: int, told: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str] | None, Exception | None]:
        """The rank that has ended, where another one tells only that somebody does not answer."""
        if told["kind"] == NoAnswerError.__name__:
            others = [other for other in self.connections if other != rank]
            for other in others:
                if self.connections[other].has_ended(_CAUSE_S / len(others)):
                    return other, None, RankError("its connection was closed")
        return rank, told, None

    def _fail(self, rank: int, told: Mapping[str, str] | None, error: Exception | None) -> None:
        if self._closing or self._failure is not None:
            return
        if told is not None:
            kind = ERRORS.get(told["kind"])
            # what a user can mend is told as if rank 0 had met it; else it is for whoever looks into it
            failure = (
                kind(told["message"])
                if kind
                else RankError(f"rank {rank} failed: {told['message']}", told["traceback"])
            )
        else:
            failure = RankError(f"rank {rank}{self.connections[rank].place} is gone: {error}")
        self._abort()
        if told is None and self._local is not None:
            rank, why = self._local.first_end(rank) or (rank, str(error))
            self._keep_logs = True
            log = self._local.log(rank)
            failure = RankError(f"rank {rank} has ended: {why}; its log is {log}", _text_of(self._local, rank))
        self._failure = failure
        self._replies.put(None)

    def _abort(self) -> None:
        """Ends the exchanges in progress, and all ranks: those that wait in one would wait for ever."""
        self.seat.fail()
        for connection in self.connections.values():
            connection.close()


_ACCEPT_S = 1.0
_CAUSE_S = 1.0
_NOTICE_S = 8.0
"""More than `LocalRanks.first_end` waits."""


def _text_of(local: LocalRanks, rank: int) -> str:
    try:
        return local.log(rank).read_text(errors="replace").strip()
    except OSError:
        return ""
