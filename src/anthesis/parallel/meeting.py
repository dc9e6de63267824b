"""How ranks that a launcher has started find rank 0: through the launcher's store, on one machine or several.

Rank 0 opens the meeting before it reads anything, which may take long: the others come and wait, and notice if it ends.
"""

from __future__ import annotations

import atexit
import hmac
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from anthesis.errors import RankError, RequestError, first_line
from anthesis.parallel.communicator import (
    peer_timeout_s,
    seconds_in,
)
from anthesis.parallel.connection import ClosedError, Connection
from anthesis.parallel.layout import Layout
from anthesis.parallel.process_groups import torch_distributed
from anthesis.parallel.shared_memory import connect_locally, local_listener
from anthesis.parallel.variables import Launched

START_VARIABLE = "ANTHESIS_START_TIMEOUT_S"
_START_S = 120.0
"""Most of it is for machines that begin one after the other."""

_HELLO = struct.Struct("<64sI")
"""Of a rank to rank 0: the token by which that one knows its own, the rank."""
_HELLO_S = 2

_KEY = "anthesis/rank-0/{}"
_NOT_NEEDED = "the others are not needed"


@dataclass
class Meeting:
    """What rank 0 has opened.

    Attributes:
        token: by which it knows its own ranks.
        listeners: where they come: from its machine, and from others.
        store: where they read both; rank 0 may have to offer it as long as it runs.
        was_used: a model's ranks have met here.
    """

    token: str
    listeners: list[socket.socket]
    store: Any
    was_used: bool = False


_OPEN: list[Meeting] = []


def start_timeout_s() -> float:
    """Seconds after which ranks that have not come have failed to start.

    Raises:
        AnthesisError: the environment variable that sets it holds no such number.
    """
    return seconds_in(START_VARIABLE, _START_S)


def check_launched(environment: Launched, layout: Layout) -> None:
    """Checks that a launcher's processes are the ranks of this model.

    Raises:
        RequestError: they are another number, or have served another model before, and ended with it.
    """
    if environment.size != layout.size:
        raise RequestError(
            f"the launcher started {environment.size} processes, and {layout} is {layout.size} ranks; "
            "make the two equal"
        )
    if any(meeting.was_used for meeting in _OPEN):
        raise RequestError(
            "the ranks that the launcher started ended with their first model; a second needs a new launch"
        )


def open_meeting(environment: Launched) -> Meeting:
    """Tells the other ranks, through the store, how to reach rank 0: on its machine, and from others.

    It is opened once, and stays open until a model's ranks have met.

    Raises:
        RankError: rank 0 can't offer the store, or reach that of the launcher.
    """
    if not _OPEN:
        listener, token = local_listener()
        listeners = [listener, socket.create_server(("", 0), backlog=256)]
        try:
            store = _store(environment, environment.rank == 0)
            store.set(_KEY.format(environment.attempt), f"{token} {environment.host} {listeners[1].getsockname()[1]}")
        except RuntimeError as error:
            place = f"{environment.host}:{environment.port}"
            if environment.launcher_has_store:
                raise RankError(f"rank 0 can't reach the launcher's store at {place}: {first_line(error)}") from error
            raise RankError(
                f"rank 0 can't offer a store at {place}, where ranks meet; MASTER_ADDR must be its own address, and "
                f"MASTER_PORT free: {first_line(error)}"
            ) from error
        _OPEN.append(Meeting(token, listeners, store))
        atexit.register(_dismiss, _OPEN[0], environment)
    return _OPEN[0]


def _dismiss(meeting: Meeting, environment: Launched) -> None:
    """Lets the other ranks end where rank 0 has opened no model: a data set that was complete already, for instance."""
    if meeting.was_used:
        return
    with suppress(RuntimeError):  # the launcher has ended its store
        meeting.store.set(_KEY.format(environment.attempt), _NOT_NEEDED)
    for listener in meeting.listeners:
        listener.setblocking(False)
        with suppress(OSError):  # nobody else has come
            while True:
                connected, _ = listener.accept()
                connected.setblocking(True)
                if rank_of(connected, meeting.token) is not None:
                    with suppress(ClosedError):
                        Connection(connected).send({"do": "end"})


def find_rank_zero(environment: Launched) -> tuple[Connection, str]:
    """Connects to rank 0; gives also the token by which it knows its own.

    Raises:
        RankError: it is not to be found.
        SystemExit: it has ended, and needed no others.
    """
    begin = time.monotonic()
    try:
        store = _store(environment, False)
        found = store.get(_KEY.format(environment.attempt)).decode()
    except RuntimeError as error:
        how = (
            f"has not come within {start_timeout_s():g} s ({START_VARIABLE} sets that)"
            if time.monotonic() - begin > 0.9 * start_timeout_s()
            else "has ended before this rank met it"
        )
        raise RankError(f"rank 0 {how} at {environment.host}:{environment.port}: {first_line(error)}") from error
    if found == _NOT_NEEDED:
        raise SystemExit(0)
    token, host, port = found.split(" ")
    connected = connect_locally(token)
    if connected is None:
        try:
            connected = socket.create_connection((host, int(port)), timeout=peer_timeout_s())
        except OSError as error:
            raise RankError(f"rank 0 can't be reached at {host}:{port}: {error.strerror or error}") from error
        connected.settimeout(None)
    return Connection(connected), token


def hello(token: str, rank: int) -> bytes:
    """What a rank says first to rank 0."""
    return _HELLO.pack(token.encode(), rank)


def rank_of(connected: socket.socket, token: str) -> int | None:
    """Which rank has connected; None for somebody else, whose words are not looked at and need not come."""
    timeout = struct.Struct("ll")
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout.pack(_HELLO_S, 0))
        said = connected.recv(_HELLO.size, socket.MSG_WAITALL)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout.pack(0, 0))
    except OSError:
        return None
    if len(said) != _HELLO.size or not hmac.compare_digest(said[:-4].rstrip(b"\0"), token.encode()):
        return None
    return int(_HELLO.unpack(said)[1])


def _store(environment: Launched, is_first: bool) -> Any:
    distributed = torch_distributed()
    offers = is_first and not environment.launcher_has_store
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(
                distributed.TCPStore(
                    environment.host,
                    environment.port,
                    is_master=offers,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=start_timeout_s()),
                )
            )
        except RuntimeError as error:
            found.append(error)

    # where something else listens there, it waits for an answer for ever
    thread = threading.Thread(target=connect, name="anthesis-store", daemon=True)
    thread.start()
    thread.join(start_timeout_s() + 1)
    if not found:
        raise RuntimeError("what listens there does not answer as such a store does")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
