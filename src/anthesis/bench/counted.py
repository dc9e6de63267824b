"""What a device counts: how much of it belongs to warming up, and what makes a timed run one of something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anthesis.bench.measurement import Counted
from anthesis.devices.device import Counters
from anthesis.units import counted


def warming_up(since: Counters, now: Counters, peak_memory_bytes: int | None) -> Counted:
    """What was counted before the timed runs.

    Args:
        since: when this began.
        now: right before the first timed run.
        peak_memory_bytes: of the device, when the first timed run had ended.
    """
    return Counted(
        captures=now.captures - since.captures,
        capture_s=now.capture_s - since.capture_s,
        compilations=_more(since.compilations, now.compilations),
        cpu_fallbacks=_more(since.cpu_fallbacks, now.cpu_fallbacks),
        peak_memory_bytes=peak_memory_bytes,
    )


def intrusions(runs: Sequence[tuple[Counters, Counters]]) -> tuple[str, ...]:
    """What timed runs held besides the work that is measured.

    Args:
        runs: what the device had counted right before and right after each.

    Returns:
        A reason not to use their times for each kind of it.
    """
    captures = [after.captures - before.captures for before, after in runs]
    uncaptured = [after.uncaptured - before.uncaptured for before, after in runs]
    compilations = [_more(before.compilations, after.compilations) for before, after in runs]
    fallbacks = [_more(before.cpu_fallbacks, after.cpu_fallbacks) for before, after in runs]
    return (
        *_reason(captures, "graph capture", "take more --warmup"),
        *_reason(uncaptured, "uncaptured step", "take more --warmup"),
        *_reason(compilations, "compilation", "take more --warmup"),
        *_reason(fallbacks, "operation done by the host's processor", "the time is not the device's alone"),
    )


def _reason(counts: Sequence[int | None], what: str, advice: str) -> Iterator[str]:
    where = [str(run) for run, count in enumerate(counts, start=1) if count]
    if where:
        runs = f"timed run{'' if len(where) == 1 else 's'} {', '.join(where)}"
        yield f"{counted(sum(count or 0 for count in counts), what)} in {runs}; {advice}"


def _more(before: int | None, after: int | None) -> int | None:
    return None if after is None else after - (before or 0)
