"""Commands and scripts whose model is split over processes: finds those processes, and what they hold."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import command

START_S = 60
"""More than all processes take to start on a loaded machine."""

END_S = 10
"""In which a command has to end once a rank has."""

_MARK = "ANTHESIS_TEST_RUN"
_SHARED_MEMORY = Path("/dev/shm")

# Stands in sitecustomize.py: makes one process end, or fail, when it calls a function for the n-th time.
_AT_CALL = """
import os, signal, sys, threading

who, name, nth, what = os.environ["ANTHESIS_TEST_AT_CALL"].split(":")
rank = str(int(os.environ["RANK"]) + 1) if "ANTHESIS_RANK_ZERO" in os.environ else "0"
if "anthesis.parallel.launch" in sys.orig_argv:
    rank = "launcher"
calls = 0

def profile(frame, event, _):
    global calls
    if event == "call" and frame.f_code.co_name == name and "anthesis" in frame.f_code.co_filename:
        calls += 1
        if calls == int(nth):
            if what == "raise":
                raise ZeroDivisionError("made by a test")
            os.kill(os.getpid(), getattr(signal, what))

if rank == who:
    sys.setprofile(profile)
"""


def processes(mark: str) -> dict[int, dict[str, str]]:
    """The environment of each process with this mark; zombies have none."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            variables = (directory / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if f"{_MARK}={mark}" in variables:
            found[int(directory.name)] = dict(v.split("=", 1) for v in variables if "=" in v)
    return found


def wait_until(true: Callable[[], object], within_s: float, what: str) -> float:
    """Waits until that is so, and returns for how long; fails if it takes longer."""
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - begin


class Ranks:
    """A process that splits a model over others, in a session of its own; end it by `with`.

    Args:
        directory: for its output and its temporary files.
        process: what to run.
        at_call: "RANK:FUNCTION:N:WHAT": a rank, or "launcher", meets WHAT, a signal or "raise", at its Nth call of a
            function of ours, in its main thread.
        variables: of its environment.
    """

    def __init__(self, directory: Path, process: list[str], at_call: str | None = None, **variables: str) -> None:
        self.mark = secrets.token_hex(8)
        self.temporary = directory / f"tmp-{self.mark}"
        self.temporary.mkdir()
        self._out, self._err = self.temporary / "out", self.temporary / "err"
        environment = {**os.environ, _MARK: self.mark, "TMPDIR": str(self.temporary), **variables}
        if at_call is not None:
            (self.temporary / "sitecustomize.py").write_text(_AT_CALL)
            environment |= {"ANTHESIS_TEST_AT_CALL": at_call, "PYTHONPATH": str(self.temporary)}
        self._shared_before = set(os.listdir(_SHARED_MEMORY))
        self._sockets: set[str] = set()
        self._memory: set[str] = set()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                process, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
            )

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for pid in processes(self.mark):
            os.kill(pid, signal.SIGKILL)

    # --- while it runs ------------------------------------------------------------------------------------------------

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def pid(self, rank: int | str) -> int | None:
        """Of a rank, or of the launcher; None where it is not there."""
        if rank == 0:
            return self.process.pid
        for pid, variables in processes(self.mark).items():
            name = _command_line(pid)
            if (
                rank == "launcher"
                and "anthesis.parallel.launch" in name
                and variables.get("ANTHESIS_RANK_ZERO") is None
            ):
                return pid
            if "anthesis.engine.serve" in name and variables.get("RANK") == str(
                int(rank) - 1 if rank != "launcher" else -1
            ):
                return pid
        return None

    def wait_for(self, rank: int | str) -> int:
        """Waits until a rank is there."""
        found: list[int] = []

        def there() -> bool:
            assert self.process.poll() is None, self.err
            found[:] = [pid for pid in [self.pid(rank)] if pid is not None]
            return bool(found)

        wait_until(there, START_S, f"rank {rank} has started")
        return found[0]

    def wait_for_text(self, characters: int = 1) -> None:
        """Waits until it generates."""

        def there() -> bool:
            assert self.process.poll() is None, self.err
            return len(self.out) >= characters

        wait_until(there, START_S, "text has come")

    def look(self) -> None:
        """Notes the sockets and the memory that its processes hold."""
        inodes: set[str] = set()
        for pid in processes(self.mark):
            for link in _links(pid):
                if link.startswith("socket:"):
                    inodes.add(link[8:-1])
            self._memory |= _memory_of(pid)
        for line in Path("/proc/net/unix").read_text().splitlines():
            parts = line.split()
            if parts[-1].startswith("@anthesis-") and parts[6] in inodes:
                self._sockets.add(parts[-1])

    @property
    def held(self) -> tuple[int, int]:
        """How many sockets with names and pieces of memory have been seen."""
        return len(self._sockets), len(self._memory)

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def end(self, within_s: float = END_S) -> int:
        """Waits until it has ended by itself, and all that it has started; the exit code."""
        begin = time.monotonic()
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended within {within_s} s: {self.left()}\n{self.err}") from None
        wait_until(lambda: not processes(self.mark), begin + within_s - time.monotonic(), "all have ended")
        wait_until(lambda: not self._left_behind(), 2, "nothing is left behind")
        assert "nanobind" not in self.err  # which tells at the end of what was not freed
        return code

    def left(self) -> list[str]:
        """The command lines of its processes that still run."""
        return [_command_line(pid) for pid in processes(self.mark)]

    def _left_behind(self) -> list[str]:
        names = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()} & self._sockets
        pids = [int(directory.name) for directory in Path("/proc").glob("[0-9]*")]
        memory = {piece for pid in pids for piece in _memory_of(pid)} & self._memory
        return [*names, *memory, *(set(os.listdir(_SHARED_MEMORY)) - self._shared_before)]

    def logs(self) -> list[Path]:
        """Directories of logs that are there."""
        return sorted(self.temporary.glob("anthesis-ranks-*"))

    def named_logs(self) -> list[Path]:
        """Directories of logs that its error names."""
        found = re.findall(rf"its log is ({re.escape(str(self.temporary))}/anthesis-ranks-\w+)", self.err)
        return sorted({Path(name) for name in found})


def generating(directory: Path, model: Path | str, *arguments: str, **more: Any) -> Ranks:
    """`anthesis generate` of a long text."""
    run = command("generate", str(model), "--device", "cpu", "-p", "the quick", "--ignore-eos", *arguments)
    return Ranks(directory, run, **more)


def script(directory: Path, code: str, *arguments: str, **more: Any) -> Ranks:
    """A Python script."""
    path = directory / f"script-{secrets.token_hex(4)}.py"
    path.write_text(code)
    return Ranks(directory, [sys.executable, str(path), *arguments], **more)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _links(pid: int) -> list[str]:
    found = []
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            found.append(os.readlink(link))
    except OSError:
        pass
    return found


def _memory_of(pid: int) -> set[str]:
    """The inodes of memory that ranks share, by what is mapped and what is open."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return set()
    return {line.split()[4] for line in maps.splitlines() if "memfd:anthesis-exchange" in line}
