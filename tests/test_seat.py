"""Which cores ranks take that share a machine."""

from __future__ import annotations

import os

import pytest

from anthesis.parallel.binding import rivals
from anthesis.parallel.layout import Layout
from anthesis.parallel.seat import Seat


def test_ranks_of_one_machine_with_the_same_cores_share_them():
    machines = {0: 0, 1: 0, 2: 2, 3: 2}
    cores = {rank: {0, 1, 2, 3} for rank in machines}
    assert [rivals(rank, machines, cores) for rank in machines] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_ranks_with_cores_of_their_own_share_none():
    machines = {0: 0, 1: 0, 2: 0}
    assert rivals(1, machines, {0: {0, 1}, 1: {2, 3}, 2: {3, 4}}) == [1, 2]
    assert rivals(0, machines, {0: {0, 1}, 1: {2, 3}, 2: {3, 4}}) == [0]
    assert rivals(1, machines, {0: set(), 1: set(), 2: set()}) == [1]


@pytest.fixture
def two_cores():
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs two cores")
    first, second, *_ = sorted(before)
    os.sched_setaffinity(0, {first, second})
    yield first, second
    os.sched_setaffinity(0, before)


def test_a_seat_takes_its_share_of_what_it_may_use(two_cores):
    first, second = two_cores
    seat = Seat(1, Layout(2))
    seat.take_place(index=1, rivals=2, sharers=2, place=1)
    assert (seat.cores, seat.threads, seat.sharers) == ({second}, 1, 2)
    seat.take_place(index=0, rivals=1, sharers=2, place=1)
    assert (seat.cores, seat.sharers) == ({first, second}, 2)
