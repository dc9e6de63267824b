"""What a worker does for each job. Every function gives what it has found so far again and again, the last time all."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import torch

from anthesis import LLM
from anthesis.bench import Request, measure
from anthesis.bench.machine import this_machine, versions
from anthesis.devices import OPENERS, open_device
from anthesis.devices.cuda import CudaDevice
from anthesis.errors import RequestError
from anthesis.records import to_document
from gpu import correctness, peer
from gpu.profile import profile
from gpu.work import Job, Row

COPIED_BYTES = 1 << 30
PASSES = 10

Found = Iterator[dict[str, Any]]


def do(job: Job) -> Found:
    """Does a job."""
    steps = {"environment": environment, "correctness": correctness.check}
    if job.row is None:
        yield from steps[job.step]()
    else:
        yield from {"row": row, "peer": peer.compare}[job.step](job.row)
    release()


def release() -> None:
    """Gives back what the last job held of the card's memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def environment() -> Found:
    """The card, the software, and how fast the card's memory is read and copied."""
    device = open_device("cuda")
    assert isinstance(device, CudaDevice)
    found = {"machine": asdict(this_machine()), "versions": {**versions(), **device.versions()}}
    found["device"] = asdict(device.info())
    yield found
    read = device.read_bandwidth()
    found["read_bandwidth"] = {**asdict(read), "median_bytes_per_s": read.median}
    yield found
    nbytes = min(COPIED_BYTES, device.info().memory_bytes // 8)
    source, target = (torch.zeros(nbytes, dtype=torch.uint8, device=device.device) for _ in range(2))
    samples = [2 * nbytes / device.seconds_of(lambda: target.copy_(source)) for _ in range(PASSES)]
    note = f"{nbytes >> 20} MiB copied within the memory, {PASSES} passes, read and written bytes counted"
    found["copy_bandwidth"] = {"samples": samples, "note": note}
    yield found


def row(asked: Row) -> Found:
    """One line of the table: its measurement, then where the time of a step goes."""
    request = Request(
        model=asked.source,
        prompt_tokens=asked.prompt_tokens,
        max_new_tokens=asked.new_tokens,
        batch=(asked.batch,),
        weights=(asked.weights,),
        device="cuda",
        warmup=asked.warmup,
        runs=asked.runs,
    )
    found: dict[str, Any] = {}
    try:
        with row_by_row() if asked.invariant else nullcontext():
            llm = LLM(request.model, weights=asked.weights, device=request.device)
    except RequestError as error:  # it does not fit: the message says what is needed and what there is
        yield {"refused": str(error)}
        return
    with llm:
        found["measurement"] = to_document(measure(llm, request, asked.batch))
        yield found
        found["profile"] = asdict(profile(llm, asked.prompt_tokens, asked.batch))
        yield found


def row_by_row() -> AbstractContextManager[Any]:
    """Within, the cuda device is opened with operations that compute each row alone."""
    opener = OPENERS["cuda"]
    return patch.dict(OPENERS, {"cuda": lambda threads, seat, invariant: opener(threads, seat, True)})
