"""Memory that the ranks of one stage share, where they are on one machine; how they find out whether they are.

One of them makes the memory, which has no name, and hands it to the others through a local socket whose name is a
random number. Who can connect to that socket and is given the memory can share it: whether two ranks are on one machine
is tried, not concluded from host names or from what a launcher says, so ranks of two machines never mix.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from contextlib import suppress

from anthesis.errors import AnthesisError
from anthesis.native import extension
from anthesis.parallel.communicator import Communicator

_WAIT_S = 10.0
_MOST_RANKS = 4096
"""That look for each other at once; none is answered where looking is all."""
_CREDENTIALS = struct.Struct("iII")
"""Of a process: its number, its user's, its group's."""


class SharedMemory:
    """What the first rank of a stage offers to the others.

    Args:
        size: ranks of the stage.

    Attributes:
        name: by which the others ask for it; it means nothing on another machine.
    """

    def __init__(self, size: int) -> None:
        self._fd = extension().make_shared_memory(size)
        self._size = size
        self._listener, self.name = local_listener()
        self._thread = threading.Thread(target=self._serve, name="anthesis-shared-memory", daemon=True)
        self._thread.start()

    def communicator(self) -> Communicator:
        """The first rank's own."""
        found: Communicator = extension().SharedCommunicator(self._fd, 0, self._size)
        return found

    def close(self) -> None:
        """Offers it no longer; those who have it keep it."""
        close_listener(self._listener)
        self._thread.join()
        os.close(self._fd)

    def _serve(self) -> None:
        while (connected := accept(self._listener)) is not None:
            with connected:
                try:
                    socket.send_fds(connected, [self.name.encode()], [self._fd])
                except OSError:  # who asked has ended
                    continue


def join_shared_memory(name: str, rank: int, size: int) -> Communicator | None:
    """What another rank of the stage offers under this name.

    Args:
        name: as that rank said.
        rank: of this process in the stage.
        size: ranks of the stage.

    Returns:
        None where it is on another machine.
    """
    connected = connect_locally(name)
    if connected is None:
        return None
    with connected:
        connected.settimeout(_WAIT_S)
        try:
            message, fds, _, _ = socket.recv_fds(connected, 256, 1)
        except OSError:
            return None
    try:
        if message != name.encode() or len(fds) != 1:
            return None
        found: Communicator = extension().SharedCommunicator(fds[0], rank, size)
        return found
    finally:
        for fd in fds:
            os.close(fd)


def local_listener() -> tuple[socket.socket, str]:
    """A socket for this machine only, and its name.

    The name is in Linux's abstract namespace: there is no file that could be left behind, and each network namespace
    has names of its own.

    Raises:
        AnthesisError: there can't be one.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name = f"anthesis-{secrets.token_hex(16)}"
    try:
        listener.bind(_address(name))
        listener.listen(_MOST_RANKS)
    except OSError as error:
        listener.close()
        raise AnthesisError(f"ranks can't meet on this machine: no local socket ({error.strerror})") from error
    return listener, name


def accept(listener: socket.socket) -> socket.socket | None:
    """The next connection, of a process of the same user; None once the listener is closed.

    Names of the abstract namespace can be seen, and connected to, by everybody.

    Raises:
        TimeoutError: the listener has a timeout, and nobody came.
    """
    while True:
        try:
            connected, _ = listener.accept()
        except TimeoutError:
            raise
        except OSError:
            return None
        if peer_of(connected)[1] == os.getuid():
            return connected
        connected.close()


def peer_of(connected: socket.socket) -> tuple[int, int]:
    """The process at the other end of a local connection, and its user; 0 for a process that has closed it.

    Source:
        Linux, unix(7), SO_PEERCRED.
    """
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process_id, user_id, _ = _CREDENTIALS.unpack(credentials)
    return process_id, user_id


def close_listener(listener: socket.socket) -> None:
    """Closes a listening socket; who waits in `accept` gets an error."""
    with suppress(OSError):  # it was closed
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def connect_locally(name: str) -> socket.socket | None:
    """A connection to a `local_listener` of this machine, or None where there is none of this name."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.connect(_address(name))
    except OSError:
        connected.close()
        return None
    return connected


def _address(name: str) -> str:
    return f"\0{name}"
