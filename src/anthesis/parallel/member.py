"""A rank that is not rank 0: it takes its seat as rank 0 says, and then what there is to do from it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from anthesis.errors import AnthesisError, RankError
from anthesis.parallel.connection import ClosedError, Connection
from anthesis.parallel.launch import NAME_VARIABLE
from anthesis.parallel.layout import Layout
from anthesis.parallel.meeting import find_rank_zero, hello
from anthesis.parallel.process_groups import ProcessGroups
from anthesis.parallel.seat import Seat
from anthesis.parallel.shared_memory import (
    SharedMemory,
    close_listener,
    connect_locally,
    join_shared_memory,
    local_listener,
)
from anthesis.parallel.variables import Launched
from anthesis.program.ir import Array

Message = Mapping[str, Any]

_GRACE_S = 1.0


class Member:
    """This process's end of the connection to rank 0, and its seat.

    Args:
        rank: of this process.
        connection: to rank 0.
        token: by which rank 0 knows its own.
    """

    def __init__(self, rank: int, connection: Connection, token: str) -> None:
        self.connection = connection
        self.seat = Seat(rank, Layout())
        self._listener: socket.socket | None = None
        self._offer: SharedMemory | None = None
        self._ending = threading.Event()
        connection.greet(hello(token, rank))
        self._watcher = threading.Thread(target=self._watch, name="anthesis-rank-0", daemon=True)
        self._watcher.start()

    def serve(self, work: Callable[[Member, Message, Mapping[str, Array]], None]) -> int:
        """Does what rank 0 says until it says that this was all; returns the exit code.

        Args:
            work: called for what is not about the seat, with (this, message, arrays), such as tokens (R,) int32.
        """
        try:
            while True:
                message, arrays = self.connection.receive()
                if message["do"] == "end":
                    self._ending.set()
                    return 0
                if message["do"] in _SEATING:
                    _SEATING[message["do"]](self, message)
                else:
                    work(self, message, arrays)
        except ClosedError as error:
            self._ending.set()
            print(f"anthesis: rank {self.seat.rank} ends: rank 0 is gone: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        except Exception as error:  # noqa: BLE001 - rank 0 is told of all that goes wrong here
            self._tell_failure(error)
            return 1
        finally:
            self._ending.set()
            self._watcher.join(_GRACE_S)  # until rank 0 has read what was said last: closed sooner, it may be lost
            self.connection.close()
            self._watcher.join()  # it holds what must be freed before the interpreter ends
            self.seat.close()

    def reply(self, message: Message, arrays: Mapping[str, Array] | None = None) -> None:
        """Answers rank 0.

        Raises:
            ClosedError: it has ended.
        """
        self.connection.send(message, arrays)

    def _tell_failure(self, error: Exception) -> None:
        if isinstance(error, AnthesisError):  # it says all that there is to say
            print(f"anthesis: rank {self.seat.rank}: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        text = "".join(traceback.format_exception(error))
        told = {"kind": type(error).__name__, "message": str(error) or type(error).__name__, "traceback": text}
        with suppress(ClosedError):  # which is why it failed
            self.connection.send({"failed": told})

    def _watch(self) -> None:
        """Ends this process when rank 0 has ended, also where it waits for somebody in an exchange."""
        self.connection.has_ended()
        if self._ending.is_set():
            return
        self.seat.fail()
        if not self._ending.wait(_GRACE_S):
            sys.stderr.flush()
            os._exit(1)

    # --- what rank 0 says about the seat; see `Group` -----------------------------------------------------------------

    def _sit(self, message: Message) -> None:
        self.seat.layout = Layout(message["tp"], message["pp"])

    def _listen(self, message: Message) -> None:
        self._listener, name = local_listener()
        self.reply({"name": name, "cores": sorted(os.sched_getaffinity(0))})

    def _look(self, message: Message) -> None:
        names = {int(rank): name for rank, name in message["names"].items()}
        first = next(rank for rank in sorted(names) if rank == self.seat.rank or _is_here(names[rank]))
        self.reply({"first": first})

    def _stop_listening(self, message: Message) -> None:
        assert self._listener is not None
        close_listener(self._listener)
        self.reply({})

    def _offer_memory(self, message: Message) -> None:
        layout, rank = self.seat.layout, self.seat.rank
        if layout.share(rank) == 0:
            self._offer = SharedMemory(layout.tp)
            self.seat.communicator = self._offer.communicator()
        self.reply({"name": None if self._offer is None else self._offer.name})

    def _join_memory(self, message: Message) -> None:
        layout, rank = self.seat.layout, self.seat.rank
        share = layout.share(rank)
        if share:
            name = message["names"][str(layout.team(rank)[0])]
            self.seat.communicator = join_shared_memory(name, share, layout.tp)
        self.reply({"joined": self.seat.communicator is not None})

    def _end_offer(self, message: Message) -> None:
        if self._offer is not None:
            self._offer.close()
        self.reply({})

    def _connect(self, message: Message) -> None:
        layout, teams = self.seat.layout, message["teams"]
        address = message["host"] if self.connection.is_local else self.connection.own_address
        self.seat.groups = ProcessGroups(
            layout.size, message["host"], message["port"], message["backend"], self.seat.local_rank
        )
        found = self.seat.groups.connect(teams, self.seat.rank, address)
        if teams:
            self.seat.communicator = found
        self.reply({})

    def _place(self, message: Message) -> None:
        self.seat.take_place(message["index"], message["rivals"], message["sharers"], message["place"])
        self.reply({})


_SEATING: Mapping[str, Callable[[Member, Message], None]] = {
    "sit": Member._sit,
    "listen": Member._listen,
    "look": Member._look,
    "stop listening": Member._stop_listening,
    "offer memory": Member._offer_memory,
    "join memory": Member._join_memory,
    "end offer": Member._end_offer,
    "connect": Member._connect,
    "place": Member._place,
}


def join_local() -> Member:
    """This process as a rank that `LocalRanks` has started.

    Raises:
        RankError: rank 0 is gone.
    """
    name = os.environ[NAME_VARIABLE]
    connected = connect_locally(name)
    if connected is None:
        raise RankError("rank 0 is gone")
    return Member(int(os.environ["RANK"]) + 1, Connection(connected), name)


def join_launched(environment: Launched) -> Member:
    """This process as a rank that a launcher has started.

    Raises:
        RankError: rank 0 is not to be found.
    """
    return Member(environment.rank, *find_rank_zero(environment))


def _is_here(name: str) -> bool:
    connected = connect_locally(name)
    if connected is None:
        return False
    connected.close()
    return True
