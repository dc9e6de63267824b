"""Which process holds a shard, as its claim says, and whether that process is still alive.

A process of this machine that has ended is known to have. Of all others only the signs of life are known: a claim's
file is touched now and then, and the times are those of the storage, on which all machines agree.
"""

from __future__ import annotations

import os
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path

from anthesis.errors import RequestError
from anthesis.json_text import format_json
from anthesis.records import from_document, read_document, to_document

LEASE_VARIABLE = "ANTHESIS_LEASE_S"
LEASE_S = 120.0
"""A process that gave no sign of life for so long is taken for dead: several times what NFS may keep a file's times."""

SIGNS = 8
"""Of life, in a lease."""

_GIVEN_UP_S = 0.0
"""The time of a claim whose process has given it up."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that claims a shard.

    Attributes:
        host: the machine's name, for people.
        boot_id: of the machine's start.
        pid_namespace: in which the process has its number.
        pid: the number.
        started: clock ticks from the machine's start to the process's; 0: not known.
        lease_s: it promises a sign of life `SIGNS` times in so many seconds.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: int
    lease_s: float

    @property
    def name(self) -> str:
        """What people call it."""
        return f"process {self.pid} on {self.host}"

    def to_text(self) -> str:
        """As it stands in a claim."""
        return format_json(to_document(self))

    def state(self) -> str | None:
        """One letter of proc(5) for what it does, "" if it has ended, None if that is not to be known from here."""
        here = this_process(self.lease_s)
        if not self.boot_id or (self.boot_id, self.pid_namespace) != (here.boot_id, here.pid_namespace):
            return None
        if not 0 < self.pid < 1 << 31:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:  # it belongs to another user, or the number is none
            return None
        state, started = _state_and_start(self.pid)
        if state is None or not self.started:
            return None
        return "" if started != self.started or state in "ZX" else state


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A claim as it was seen.

    Attributes:
        holder: None where the file does not say.
        sign_s: when it gave the last sign of life, by the storage's clock.
    """

    holder: Holder | None
    sign_s: float

    @property
    def name(self) -> str:
        """What people call the process."""
        return "a process that its claim does not name" if self.holder is None else self.holder.name

    @property
    def is_given_up(self) -> bool:
        """Whether its process has ended, or has given the shard up."""
        return self.sign_s == _GIVEN_UP_S or (self.holder is not None and self.holder.state() == "")

    @property
    def is_running(self) -> bool:
        """Whether its process is known to run: it is there, and not stopped."""
        return self.holder is not None and (self.holder.state() or "T") not in "Tt"

    def is_over(self, now_s: float) -> bool:
        """Whether the shard is to be taken over.

        Args:
            now_s: by the storage's clock.
        """
        return self.is_given_up or now_s - self.sign_s > self.lease_s

    @property
    def lease_s(self) -> float:
        """As promised."""
        return LEASE_S if self.holder is None else self.holder.lease_s


def this_process(lease_s: float) -> Holder:
    """The process that asks."""
    _, started = _state_and_start(os.getpid())
    return Holder(
        host=platform.node() or "unknown",
        boot_id=_text(Path("/proc/sys/kernel/random/boot_id")),
        pid_namespace=_link(Path("/proc/self/ns/pid")),
        pid=os.getpid(),
        started=started,
        lease_s=lease_s,
    )


def lease_asked_for() -> float:
    """Seconds, of the environment variable, or the default.

    Raises:
        RequestError: it is no number of seconds.
    """
    text = os.environ.get(LEASE_VARIABLE, "")
    try:
        lease_s = float(text or LEASE_S)
    except ValueError:
        lease_s = 0.0
    if not 0.1 <= lease_s <= 1e6:
        raise RequestError(f"{LEASE_VARIABLE} is {text!r:.60}; give seconds, from 0.1 to 1,000,000")
    return lease_s


def read_claim(path: Path) -> Seen | None:
    """A claim as it is now, or None if it is not there.

    Args:
        path: of its file.

    Raises:
        OSError: the storage does not answer.
    """
    try:
        with path.open("rb") as file:  # opened, since NFS shows what it remembers otherwise
            sign_s = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        holder = from_document(Holder, read_document(path), path.name)
    except (RequestError, ValueError):  # damaged: its signs of life are all there is to go by
        holder = None
    return Seen(holder=holder, sign_s=sign_s)


def give_sign(path: Path) -> None:
    """Touches a claim, by the storage's clock.

    Raises:
        OSError: it is gone, or the storage does not answer.
    """
    os.utime(path)


def give_up(path: Path) -> None:
    """Marks a claim as one that nobody has to wait for.

    Raises:
        OSError: it is gone, or the storage does not answer.
    """
    os.utime(path, (_GIVEN_UP_S, _GIVEN_UP_S))


def storage_time(directory: Path) -> float:
    """What time it is by the clock of the storage, in seconds.

    Args:
        directory: on it; a file is made there and taken away.

    Raises:
        OSError: it can't be written to.
    """
    path = directory / f".clock.{secrets.token_hex(8)}"
    try:
        with path.open("xb") as file:
            os.utime(path)
            return os.fstat(file.fileno()).st_mtime
    finally:
        path.unlink(missing_ok=True)


def _state_and_start(pid: int) -> tuple[str | None, int]:
    """The state of a process and its start, in clock ticks; None and 0 where proc does not say.

    Source:
        proc_pid_stat(5): fields 3 and 22; the name before them stands in parentheses and may hold any character.
    """
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (fields[0], int(fields[19])) if len(fields) > 19 else (None, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
