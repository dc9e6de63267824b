"""Starts the other ranks of a model on this machine, through PyTorch's elastic launcher.

`LocalRanks` is what rank 0 holds. This module, run by itself, is the process between: it starts the ranks, keeps a log
of each, ends all when one fails, and tells why in a file. It ends with rank 0, whatever becomes of that one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from anthesis.parallel.process_groups import torch_distributed

NAME_VARIABLE = "ANTHESIS_RANK_ZERO"
"""The local socket at which rank 0 waits for ranks that it has started."""

_RANK_MODULE = "anthesis.engine.serve"
_REPORT = "ended.json"
_KILLED = "it was killed by"
_PATIENCE_S = 5.0
_LOOK_S = 0.2


class LocalRanks:
    """Processes on this machine, ranks 1 and up.

    Args:
        count: of them.
        name: of the local socket at which they find rank 0.

    Attributes:
        directory: with the log of each; gone in the end, unless somebody was told to look into it.

    Raises:
        UnsupportedError: PyTorch is not installed.
    """

    def __init__(self, count: int, name: str) -> None:
        torch_distributed_is_there()
        self.directory = Path(tempfile.mkdtemp(prefix="anthesis-ranks-"))
        command = [sys.executable, "-m", __name__, str(count), name, str(self.directory), str(os.getpid())]
        with (self.directory / "launcher.log").open("wb") as log:
            # a session of their own: Ctrl-C is for rank 0, which tells them
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def has_ended(self) -> bool:
        """Whether none of them runs any more."""
        return self._process.poll() is not None

    def first_end(self, noticed: int | None = None) -> tuple[int, str] | None:
        """Which rank ended first, and how, where the launcher knows of one that failed; waits for it a while.

        Args:
            noticed: the rank whose end was noticed first, if one was; ends soon after each other are told apart by it.
        """
        end = time.monotonic() + _PATIENCE_S
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        try:
            report: dict[str, str] = json.loads((self.directory / _REPORT).read_text())
        except (OSError, ValueError):
            return None
        first = next(((int(rank), how) for rank, how in report.items()), None)
        if first is not None and noticed is not None and _KILLED not in first[1]:
            return noticed, report.get(str(noticed), first[1])
        return first

    def log(self, rank: int) -> Path:
        """What a rank wrote to its standard error."""
        found = sorted(self.directory.glob(f"*/attempt_0/{rank - 1}/stderr.log"))
        return found[0] if found else self.directory / "launcher.log"

    def close(self, at_once: bool, keep_logs: bool, process_ids: Sequence[int]) -> None:
        """Waits until all have ended, which they do once rank 0 has closed its connections, or ends them.

        Args:
            at_once: end them, because some have no connection yet.
            keep_logs: leave the directory where it is.
            process_ids: of those that have one.
        """
        try:
            self._process.wait(0 if at_once else _PATIENCE_S)
        except subprocess.TimeoutExpired:
            for process_id in process_ids:  # one that was stopped hears of nothing else
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if not keep_logs:
            shutil.rmtree(self.directory, ignore_errors=True)


def torch_distributed_is_there() -> None:
    """Says it before anything is started where PyTorch is missing.

    Raises:
        UnsupportedError: it is.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        torch_distributed()


def main(arguments: list[str]) -> int:
    """Starts ranks 1 to `count` and waits for them; exit code 0 if all ended with it."""
    count, name, directory, parent = int(arguments[0]), arguments[1], Path(arguments[2]), int(arguments[3])
    threading.Thread(target=_end_with, args=(parent, directory), name="anthesis-rank-0", daemon=True).start()
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[NAME_VARIABLE] = name
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=name,
        max_restarts=0,
        monitor_interval=0.05,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=str(directory), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)("-m", _RANK_MODULE)
    except ChildFailedError as error:
        # found at one look are all that ended within it: those killed from outside, not by the launcher, come first
        failures = sorted(error.failures.items(), key=lambda item: not _killed_from_outside(item[1]))
        report = {str(local_rank + 1): _ended(failure) for local_rank, failure in failures}
        if directory.exists():
            (directory / _REPORT).write_text(json.dumps(report))
        return 1
    finally:
        _clear_after(parent, directory)
    return 0


def _end_with(parent: int, directory: Path) -> None:
    """Ends this process, and with it the ranks, once rank 0 has ended without a word.

    The kernel's own way, PR_SET_PDEATHSIG, goes by the thread that has started this process, which may end long before
    rank 0 does.
    """
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    _clear_after(parent, directory)
    os.kill(os.getpid(), signal.SIGTERM)


def _clear_after(parent: int, directory: Path) -> None:
    """Removes the logs where rank 0 can't do it, nor tell anybody of them."""
    if os.getppid() != parent:
        shutil.rmtree(directory, ignore_errors=True)


def _killed_from_outside(failure: Any) -> bool:
    """By a signal that is not the launcher's."""
    return bool(failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM)


def _ended(failure: Any) -> str:
    if failure.exitcode < 0:
        return f"{_KILLED} {signal.Signals(-failure.exitcode).name}"
    return f"it ended with exit code {failure.exitcode}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
