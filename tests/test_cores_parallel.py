"""Work on all cores: it is done, and what interrupts it ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from anthesis.cores import on_all_cores, usable_cores


def test_every_part_is_done() -> None:
    done: list[int] = []
    on_all_cores(done.append, range(1000))
    assert sorted(done) == list(range(1000))


def interrupted(count: int) -> Iterator[int]:
    yield from range(count)
    raise KeyboardInterrupt


def test_an_interruption_ends_within_a_part() -> None:
    done: list[int] = []

    def work(part: int) -> None:
        time.sleep(0.05)
        done.append(part)

    count = 20 * usable_cores()
    with pytest.raises(KeyboardInterrupt):
        on_all_cores(work, interrupted(count))
    assert len(done) <= 4 * usable_cores()


def test_an_error_keeps_the_rest_from_beginning() -> None:
    begun: list[int] = []

    def work(part: int) -> None:
        begun.append(part)
        time.sleep(0.02)
        raise ValueError(part)

    with pytest.raises(ValueError, match="0"):
        on_all_cores(work, range(20 * usable_cores()))
    assert len(begun) <= 4 * usable_cores()
