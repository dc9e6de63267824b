"""Runs the real command line, in a pipe or in a terminal."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
TINY_BLOOM = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "eos_token_id": 2}


def tiny_model(directory: Path, **changes: Any) -> str:
    """MODEL of a BLOOM small enough for the reference device, with random weights and no tokenizer."""
    path = directory / "config.json"
    path.write_text(json.dumps({**TINY_BLOOM, **changes}))
    return f"random:{path}"


def command(*arguments: str) -> list[str]:
    """The command line with these arguments, as a process to start."""
    return [sys.executable, "-m", "anthesis", *arguments]


def anthesis(
    *arguments: str, stdin: bytes = b"", before: Callable[[], None] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command with its output in pipes and these environment variables; output is UTF-8, or the test fails.

    `before` is called in the new process, before the command.
    """
    result = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **variables},
        preexec_fn=before,
    )
    return subprocess.CompletedProcess(
        result.args, result.returncode, result.stdout.decode("utf-8"), result.stderr.decode("utf-8")
    )


def succeed(*arguments: str, **more: Any) -> str:
    """Standard output of a command that must succeed."""
    result = anthesis(*arguments, **more)
    assert result.returncode == 0, result.stderr
    return result.stdout


def fail(*arguments: str, code: int = 2, **more: Any) -> str:
    """The one line on stderr of a command that must fail, with nothing on stdout."""
    result = anthesis(*arguments, **more)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("anthesis: device auto")]
    assert (result.returncode, result.stdout, len(lines)) == (code, "", 1), (result.returncode, result.stderr)
    return lines[0]


def obey_permissions() -> None:
    """Makes what this process becomes obey the permissions of files, even root's."""
    drop_from_bounding_set, override = 24, 1  # PR_CAPBSET_DROP and CAP_DAC_OVERRIDE, linux/prctl.h and capability.h
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(drop_from_bounding_set, override, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class Terminal:
    """A process whose three standard streams are one terminal."""

    def __init__(self, process: list[str], **variables: str) -> None:
        self._terminal, inside = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **variables}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(process, stdin=inside, stdout=inside, stderr=inside, env=environment)
        os.close(inside)
        self.output = ""

    def read_until(self, done: Callable[[str], bool]) -> str:
        """Reads until what came so far satisfies `done`, or the process has closed the terminal."""
        deadline = time.monotonic() + TIMEOUT_S
        received = self.output.encode()
        with contextlib.suppress(OSError):  # Linux reports the other end's closing as an error
            while time.monotonic() < deadline and not done(self.output):
                more = os.read(self._terminal, 65536)
                if not more:
                    break
                received += more
                self.output = received.decode("utf-8", errors="ignore").replace("\r\n", "\n")
        return self.output

    def finish(self) -> int:
        """Reads to the end, and returns the exit code."""
        self.read_until(lambda _: False)
        code = self.process.wait(TIMEOUT_S)
        os.close(self._terminal)
        return code
