"""The C++ extension, loaded when it is first used: a source tree where it was never built still imports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType

from anthesis.errors import RequestError, UnsupportedError

MIN_BANDWIDTH_BYTES = 1 << 20
"""What is smaller stays in the caches nearest to a core, and nobody waits for it."""


@cache
def extension() -> ModuleType:
    """The module `anthesis._native`.

    Raises:
        UnsupportedError: it was never built, or does not load; the message says how to build it.
    """
    try:
        from anthesis import _native
    except ImportError as error:
        raise UnsupportedError(
            f"the native extension of anthesis can't be loaded ({error}); install the package (`pip install .`) to "
            "build it, or use a device that does without it, such as --device reference"
        ) from error
    return _native


def cpu_features() -> dict[str, bool]:
    """Instruction-set extensions our kernels know of, and whether this processor and operating system have them.

    Returns:
        By name, for this architecture only: on x86-64 avx2, fma, f16c, avx_vnni, avx512f, avx512dq, avx512bw, avx512vl,
        avx512_vnni, avx512_bf16, amx_tile, amx_int8, amx_bf16; on aarch64 neon, dotprod, sve, i8mm, bf16.

    Raises:
        UnsupportedError: the extension was never built.
    """
    features: dict[str, bool] = extension().cpu_features()
    return features


def read_bandwidth(nbytes: int, threads: int, seconds: float) -> list[float]:
    """Measures how fast this machine's threads together read memory.

    Args:
        nbytes: size of the buffer that is read, in bytes. One that is not many times as large as the last-level cache
            stays in it, in part, as a model of that size would. It is freed afterwards.
        threads: threads that read, each its own part, all starting each pass together.
        seconds: time to spend reading, in seconds; at least three passes are made in each of two ways in any case: in
            several streams beside each other, and from one end to the other, asking for what comes a page ahead.

    Returns:
        One sample per pass of the faster way, over the buffer or a small one as often as makes 64 MiB, in bytes per
        second, in order.

    Raises:
        RequestError: too small a buffer, no threads, a negative time, or more memory or threads than there are.
        UnsupportedError: the extension was never built.
    """
    if nbytes < MIN_BANDWIDTH_BYTES:
        raise RequestError(f"can't measure bandwidth over {nbytes} bytes; take at least {MIN_BANDWIDTH_BYTES}")
    if threads < 1:
        raise RequestError(f"can't measure bandwidth with {threads} threads; take at least 1")
    if not seconds >= 0:
        raise RequestError(f"can't measure bandwidth for {seconds} seconds; take 0 or more")
    try:
        samples: list[float] = extension().read_bandwidth(nbytes, threads, seconds)
    except MemoryError as error:
        raise RequestError(f"can't measure bandwidth: no memory for a buffer of {nbytes} bytes; take less") from error
    except RuntimeError as error:
        raise RequestError(f"can't measure bandwidth with {threads} threads ({error}); take fewer") from error
    return samples


def handovers(cores: Sequence[int]) -> list[float]:
    """Measures how long cores take to see what another has written: whether they share a last-level cache.

    Threads that compute one step hand over at every barrier. A virtual machine's cores may be moved by the host, near
    each other or apart, which also changes how fast they read memory together.

    Args:
        cores: their numbers, as in `os.sched_getaffinity(0)`.

    Returns:
        For each core but the first: seconds until it sees what the first one writes. Some milliseconds are spent on it.

    Raises:
        RequestError: a core that this process may not use, or the same core twice.
        UnsupportedError: the extension was never built.
    """
    if len(set(cores)) != len(cores):
        raise RequestError(f"can't measure handovers among the cores {list(cores)}: one is named twice")
    try:
        return [extension().handover(cores[0], other) for other in cores[1:]]
    except RuntimeError as error:
        raise RequestError(f"can't measure handovers among the cores {list(cores)} ({error})") from error


def multiply_add_peak(kind: str, threads: int, seconds: float) -> float | None:
    """Measures the most multiply-adds that this machine's threads do together, in registers, with nothing else to do.

    The instructions are those of the kernels in use: int8 and bf16 have their own where the processor does. No product
    with a weight of this kind can take less than its multiply-adds by this.

    Args:
        kind: fp32, bf16 or int8.
        threads: that compute.
        seconds: time to spend.

    Returns:
        Multiply-adds per second; None for the portable kernels, which know nothing of the processor's instructions.

    Raises:
        RequestError: another kind, or more threads than there can be.
        UnsupportedError: the extension was never built.
    """
    if kind not in ("fp32", "bf16", "int8") or threads < 1:
        raise RequestError(
            f"can't measure the peak of {kind} with {threads} threads; take fp32, bf16 or int8, and at least 1"
        )
    try:
        found: float = extension().multiply_add_peak(kind, threads, seconds)
    except ValueError as error:  # no such kernels
        raise RequestError(str(error)) from error
    except RuntimeError as error:
        raise RequestError(f"can't measure the peak with {threads} threads ({error}); take fewer") from error
    return None if math.isnan(found) else found
