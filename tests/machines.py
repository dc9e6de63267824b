"""Two machines joined by a cable, as far as a program can tell: namespaces of this one.

Each has its own network, host name, processes, System V memory and /dev/shm; files and processors are those of this
machine. That takes root, and `unshare`, `nsenter` and `ip`.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

TIMEOUT_S = 120
CABLE = "veth0"
# a hosts file as Debian makes it: a machine's own name leads nowhere that others could follow
_SET_UP = (
    'hostname "$1" && printf "127.0.0.1 localhost\\n127.0.1.1 $1\\n$3\\n" >"$2" && mount --bind "$2" /etc/hosts && '
    "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo ready && exec sleep infinity"
)
_LAUNCHERS = re.compile(r"^(RANK|WORLD_SIZE|LOCAL_|GROUP_|MASTER_|SLURM_|TORCHELASTIC_|JOB_COMPLETION_INDEX|GLOO_)")


class NotAllowedError(Exception):
    """There can be no namespaces here; the message says why."""


class Started:
    """A command that runs on a machine."""

    def __init__(self, command: list[str], directory: Path, label: str, environment: dict[str, str]) -> None:
        self._stdout, self._stderr = directory / f"{label}.stdout", directory / f"{label}.stderr"
        self.began = time.monotonic()
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=directory, env=environment
            )

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._stdout.read_text("utf-8")

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return self._stderr.read_text("utf-8")

    def said(self) -> list[str]:
        """What Anthesis has complained of on stderr, without what launchers and libraries add."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("anthesis: ")]
        return [line for line in lines if not line.startswith("anthesis: device auto")]

    def has_ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    def code(self, within_s: float = TIMEOUT_S) -> int:
        """Waits for its end, which must come in time."""
        return self._process.wait(within_s)


class Machine:
    """One of them.

    Args:
        name: of the host.
        directory: for what its commands write, and where they run.
        others: lines for its hosts file.
    """

    def __init__(self, name: str, directory: Path, others: str = "") -> None:
        self.name, self.directory = name, directory
        directory.mkdir()
        namespaces = ["--net", "--uts", "--mount", "--pid", "--ipc"]
        unshare = ["unshare", *namespaces, "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*unshare, "sh", "-c", _SET_UP, "sh", name, str(directory / "hosts"), others],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            self._holder.kill()
            raise NotAllowedError(self._holder.stderr.read().strip() or "unshare failed")
        holder = self._holder.pid
        self.init = int(Path(f"/proc/{holder}/task/{holder}/children").read_text())
        self.enter = ["nsenter", "--target", str(self.init), *namespaces, f"--wd={directory}", "--"]
        self._count = 0

    def close(self) -> None:
        """Ends all that runs on it; with its last process the kernel takes the rest away."""
        self._holder.kill()
        self._holder.communicate()

    def start(self, command: Sequence[str], **variables: str) -> Started:
        """Starts a command, with these environment variables and none of a launcher around these tests."""
        self._count += 1
        inherited = {name: value for name, value in os.environ.items() if not _LAUNCHERS.match(name)}
        return Started([*self.enter, *command], self.directory, str(self._count), {**inherited, **variables})

    def pull_cable(self) -> None:
        """Nothing comes or goes any more, and nobody is told."""
        subprocess.run([*self.enter, "ip", "link", "set", CABLE, "down"], check=True)

    def rank(self, rank: int) -> int:
        """The process, as this machine numbers it, of a rank that is served or runs here."""
        wanted = f"RANK={rank}".encode()
        own = os.stat(f"/proc/{self.init}/ns/pid").st_ino
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.stat(process / "ns" / "pid").st_ino != own:
                    continue
                if wanted in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
            except OSError:  # it ended meanwhile
                continue
        raise LookupError(f"{self.name} has no rank {rank}")


@contextmanager
def two_machines(directory: Path, names: tuple[str, str] = ("one", "two")) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with the addresses that `address` gives, joined by a cable; all is gone afterwards.

    Raises:
        NotAllowedError: there can be none here.
    """
    with ExitStack() as stack:
        try:
            machines = []
            for number, name in enumerate(names, start=1):
                others = f"{address(3 - number)} {names[2 - number]}" if names[0] != names[1] else ""
                machines.append(Machine(name, directory / f"machine-{number}", others))
                stack.callback(machines[-1].close)
            one, two = machines
            # from outside, where both have a number; within, they are the only interfaces of their machines
            link = f"ip link add {CABLE} type veth peer name {CABLE} netns {two.init}"
            enter = ["nsenter", "--target", str(one.init), "--net"]
            subprocess.run([*enter, *link.split()], check=True, capture_output=True, text=True)
            for number, machine in enumerate(machines, start=1):
                for words in (f"addr add {address(number)}/24 dev {CABLE}", f"link set {CABLE} up"):
                    subprocess.run([*machine.enter, "ip", *words.split()], check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise NotAllowedError(f"{error.filename} is not installed") from error
        except subprocess.CalledProcessError as error:
            raise NotAllowedError(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from error
        yield one, two


def address(number: int) -> str:
    """Of machine 1 or 2."""
    return f"10.77.0.{number}"


def wait_until(done: Callable[[], bool], within_s: float = TIMEOUT_S) -> None:
    """Waits until something is so, which must be in time."""
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.02)
