"""Messages between rank 0 and another rank: a JSON object, and arrays behind it.

Nothing that arrives is executed: no pickles.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np

from anthesis.errors import AnthesisError, first_line
from anthesis.parallel.communicator import peer_timeout_s
from anthesis.parallel.shared_memory import peer_of
from anthesis.program.ir import Array

_HEAD = struct.Struct("<I")
"""Bytes of the object."""

_DTYPES = ("<i4", "<f4", "<f8", "<u8", "|u1")

MAX_MESSAGE_BYTES = 1 << 31
_SPIN_S = 1e-3
"""Longer than rank 0 takes between two steps: a rank that slept would be woken too late each time."""


class ClosedError(AnthesisError):
    """The other end of a connection has ended."""


class Connection:
    """One end of it.

    Args:
        connected: a stream socket, of one machine or TCP.

    Attributes:
        place: where the other end is, for messages: " at ADDRESS"; nothing for this machine.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._sending = threading.Lock()
        if connected.family != socket.AF_UNIX:
            _notice_silence(connected)
        self.place = "" if self.is_local else _place_of(connected)

    @property
    def is_local(self) -> bool:
        """Whether the other end is on this machine: a socket without a network."""
        return self._socket.family == socket.AF_UNIX

    @property
    def own_address(self) -> str:
        """The address by which this machine is reached from the other one."""
        return "127.0.0.1" if self.is_local else str(self._socket.getsockname()[0])

    def process_id(self) -> int | None:
        """Of the process at the other end, if it is on this machine and has not closed it."""
        return peer_of(self._socket)[0] or None if self.is_local else None

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        """Sends an object and arrays of numbers.

        Raises:
            ClosedError: the other end has ended, or its machine does not answer.
        """
        parts = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        heads = [(name, part.dtype.str, part.shape) for name, part in parts.items()]
        text = json.dumps([message, heads]).encode()
        data: list[Any] = [part.reshape(-1).view(np.uint8).data for part in parts.values() if part.size]
        try:
            with self._sending:
                self._send_all([_HEAD.pack(len(text)) + text, *data])
        except OSError as error:
            raise _closed(error) from error

    def greet(self, said: bytes) -> None:
        """Sends what a rank says first, which is no message yet.

        Raises:
            ClosedError: the other end has ended.
        """
        try:
            self._socket.sendall(said)
        except OSError as error:
            raise _closed(error) from error

    def _send_all(self, buffers: list[Any]) -> None:
        sent = self._socket.sendmsg(buffers)
        for buffer in buffers:
            if sent < len(buffer):
                self._socket.sendall(buffer[sent:])
            sent = max(0, sent - len(buffer))

    def receive(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The next object, and its arrays by name: (R,), (L, V), ... of float32, int32 or another of `_DTYPES`.

        Raises:
            ClosedError: the other end has ended, or its machine does not answer, or it sent something else.
        """
        arrays = {}
        try:
            (size,) = _HEAD.unpack(self._take(_HEAD.size, spin=True))
            message, heads = json.loads(self._take(size))
            for name, dtype, shape in heads:
                if dtype not in _DTYPES:
                    raise ClosedError(f"the other rank sent numbers of the type {dtype!r:.20}, which none of ours are")
                kind = np.dtype(dtype)
                arrays[name] = np.frombuffer(self._take(prod(shape) * kind.itemsize), kind).reshape(shape)
        except (ValueError, TypeError, RecursionError) as error:
            raise ClosedError(f"the other rank sent what is no message of ours ({first_line(error)})") from error
        if not isinstance(message, dict):
            raise ClosedError(f"the other rank sent {message!r:.20}, which is no message of ours")
        return message, arrays

    def _take(self, nbytes: int, spin: bool = False) -> bytearray:
        if nbytes > MAX_MESSAGE_BYTES:
            raise ClosedError(f"the other rank sent a message of {nbytes:,} bytes, which none of ours has")
        data = bytearray(nbytes)
        view = memoryview(data)
        end = time.perf_counter() + _SPIN_S
        while view:
            try:
                count = self._socket.recv_into(view, 0, socket.MSG_DONTWAIT if spin else socket.MSG_WAITALL)
            except BlockingIOError:
                if time.perf_counter() > end:
                    self._wait_for(select.POLLIN)
                continue
            except OSError as error:
                raise _closed(error) from error
            if count == 0:
                raise ClosedError("its connection was closed")
            view = view[count:]
            spin = False
        return data

    def has_ended(self, within_s: float | None = None) -> bool:
        """Waits until the other end has ended, or so long; messages that come meanwhile stay to be received."""
        try:
            return self._wait_for(select.POLLRDHUP, within_s)
        except (OSError, ValueError):  # this end was closed
            return True

    def _wait_for(self, event: int, within_s: float | None = None) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(None if within_s is None else 1000 * within_s))

    def close(self) -> None:
        """Ends it."""
        with suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _notice_silence(connected: socket.socket) -> None:
    """Makes a connection fail where the other machine does not answer, whether something is sent or not."""
    seconds = peer_timeout_s()
    probes = 3
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every = max(1, int(seconds / (probes + 1)))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def _place_of(connected: socket.socket) -> str:
    try:
        return f" at {connected.getpeername()[0]}"
    except OSError:  # it has ended
        return ""


def _closed(error: OSError) -> ClosedError:
    if isinstance(error, TimeoutError):
        return ClosedError(f"its machine does not answer for {peer_timeout_s():g} s")
    return ClosedError(f"its connection has ended ({error.strerror or error})")
