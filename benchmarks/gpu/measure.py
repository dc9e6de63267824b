"""What a worker does for each job. Every function gives what it has found so far again and again, the last time all."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from anthesis import LLM
from anthesis.bench import Request, measure
from anthesis.bench.machine import this_machine, versions
from anthesis.bench.sweep import points_of
from anthesis.devices import open_device
from anthesis.devices.cuda import CudaDevice
from anthesis.errors import AnthesisError, RequestError
from anthesis.records import to_document
from gpu import correctness, peer, tiles
from gpu.profile import prepare, profile
from gpu.work import Job, Row

COPIED_BYTES = 1 << 30
PASSES = 10

Found = Iterator[dict[str, Any]]


def do(job: Job) -> Found:
    """Does a job."""
    if job.step == "environment":
        yield from environment()
    elif job.step == "correctness":
        yield from correctness.check()
    elif job.step == "profile":
        yield from profiles(job.rows)
    elif job.step == "tiles":
        yield from tiles.compare(job.rows)
    else:
        (asked,) = job.rows
        yield from row(asked) if job.step == "row" else peer.compare(asked)
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
    """One line of the table."""
    request = Request(
        model=asked.source,
        prompt_tokens=(asked.prompt_tokens,),
        max_new_tokens=asked.new_tokens,
        batch=(asked.batch,),
        weights=(asked.weights,),
        device="cuda",
        invariant=asked.invariant,
        warmup=asked.warmup,
        runs=asked.runs,
        min_s=0,  # the whole has minutes
    )
    (point,) = points_of(request)
    try:
        llm = opened(asked)
    except RequestError as error:  # it does not fit: the message says what is needed and what there is
        yield {"refused": str(error)}
        return
    with llm:
        yield {"measurement": to_document(measure(llm, request, point))}


def profiles(rows: Sequence[Row]) -> Found:
    """Where the time of a step goes, of each row; one that does not work says nothing of the others."""
    found: dict[str, Any] = {}
    prepare()
    for asked in rows:
        try:
            with opened(asked) as llm:
                found[asked.name] = asdict(profile(llm, asked.prompt_tokens, asked.batch))
        except AnthesisError as error:
            found[asked.name] = {"error": str(error)}
        release()
        yield found


def opened(asked: Row) -> LLM:
    """The model of a row, loaded."""
    return LLM(asked.source, weights=asked.weights, device="cuda", invariant=asked.invariant)
