"""Data sets with broken rows, and `anthesis complete` on them, also interrupted."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from command_line import TIMEOUT_S, anthesis, command

DEVICE = ("--device", "reference")
COLUMN = {".jsonl": "content"}
WORDS = ["quick", "brown", "fox", "lazy", "dog", "jumps", "über", "日本語", "print", "return"]


def write_rows(path: Path, count: int) -> Path:
    """Rows of uneven lengths, every tenth of them broken in some way."""
    rng = random.Random(0)
    broken = ["{", "[]", '{"content": 3}', '{"content": ""}', '{"other": "x"}']
    with path.open("w") as file:
        for i in range(count):
            text = " ".join(rng.choices(WORDS, k=rng.randint(1, 40)))
            file.write((broken[i // 10 % 5] if i % 10 == 9 else json.dumps({"content": text})) + "\n")
    return path


def arguments(model: str, data: Path, output: Path, *more: str) -> tuple[str, ...]:
    return ("complete", model, str(data), "-o", str(output), "--column", "content", "-n", "8", *DEVICE, *more)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def interrupt(run: tuple[str, ...], output: Path, after_rows: int, how: signal.Signals) -> int:
    """Starts a run, sends it a signal once so many rows are out, and gives the exit code; 0 if it was through first."""
    process = subprocess.Popen(command(*run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while count_lines(output) < after_rows and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(how)
        process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode


def fail_last(*run: str, code: int = 2, **more: Any) -> str:
    """The last line on stderr of a command that must fail."""
    result = anthesis(*run, **more)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]
