"""A process that does jobs one after the other, so that a crash or a hang takes one job and not the others."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from gpu.work import Job

Outcome = dict[str, Any]
"""What came of a job: its name, `took_s`, `result` (what was found until it ended), and `error` or None."""

ALONE = ("profile", "tiles")
"""Steps with a process of their own: a profiler stays in it, and what a compiler has left there would be in the way."""


class Worker:
    """Started when there is a job, ended with the context; after a failure the next job has a fresh one.

    Args:
        dry: the code of the cuda device runs on the host's tensors.
    """

    def __init__(self, dry: bool) -> None:
        self._dry = dry
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def do(self, job: Job, limit_s: float) -> Outcome:
        """Does a job.

        Args:
            job: to do.
            limit_s: after which it is given up.
        """
        begin = time.monotonic()
        outcome: Outcome = {"job": job.name, "result": None, "error": None}
        if job.step in ALONE:
            self._end()
        connection = self._start()
        connection.send(job)
        try:
            while True:
                if not connection.poll(max(0.0, begin + limit_s - time.monotonic())):
                    outcome["error"] = f"given up after {limit_s:.0f} s"
                    break
                what, value = connection.recv()
                if what == "end":
                    outcome["error"] = value
                    break
                outcome["result"] = value
        except EOFError:
            self._process.join()
            outcome["error"] = f"the process ended with code {self._process.exitcode}"
        if outcome["error"] is not None or job.step in ALONE:
            self._end()
        outcome["took_s"] = time.monotonic() - begin
        return outcome

    def _start(self) -> Connection:
        if self._connection is None:
            self._connection, theirs = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
            self._process = context.Process(target=_serve, args=(theirs, self._dry), daemon=True)
            self._process.start()
            theirs.close()
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._connection = None


def _serve(connection: Connection, dry: bool) -> None:
    """The process: does what it is sent until the other end is closed."""
    with on_host() if dry else patch.dict({}):
        from gpu.measure import do

        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            error = None
            try:
                for found in do(job):
                    connection.send(("found", found))
            except Exception as failure:  # noqa: BLE001 (one job's failure must not lose the others)
                traceback.print_exc()
                error = f"{type(failure).__name__}: {failure}"[:2000]
            connection.send(("end", error))


@contextmanager
def on_host() -> Iterator[None]:
    """Within, the cuda device is its code over the host's tensors, without a card: its times are no results."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
    import torch

    from anthesis.devices import OPENERS
    from anthesis.devices.accelerator.operations import Operations
    from anthesis.devices.cuda import CudaDevice

    def opened(threads: Any, seat: Any, invariant: bool) -> CudaDevice:
        return CudaDevice(torch.device("cpu"), Operations(), seat, invariant)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny shapes: more threads only wait for each other
    with patch.dict(OPENERS, {"cuda": opened}):
        yield
    torch.set_num_threads(threads)
