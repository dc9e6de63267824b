"""Exchanges through PyTorch's process groups, between two processes on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from anthesis.errors import UnsupportedError
from anthesis.parallel.binding import rivals, shares_of_cores
from anthesis.parallel.communicator import TIMEOUT_VARIABLE
from anthesis.parallel.process_groups import NoAnswerError, ProcessGroups, TorchCommunicator, backend_of
from rank_threads import on_ranks

SIZES = (1, 1000, 70_000)

OTHER = """
import json, sys, time
import numpy as np
from anthesis.parallel.process_groups import ProcessGroups
port, mode = int(sys.argv[1]), sys.argv[2]
groups = ProcessGroups(2, "127.0.0.1", port)
team = groups.connect([[0, 1]], 1, "127.0.0.1")
if mode == "work":
    for size in json.loads(sys.argv[3]):
        x = np.random.default_rng(1).normal(size=size).astype(np.float32)
        team.all_reduce(x)
        print(x.tobytes().hex()[:64])
    print([len(part) for part in team.all_gather(np.zeros(70_001, np.uint8))])
    rows = np.empty((3, 5), np.float32)
    groups.receive(rows, 0)
    time.sleep(float(sys.argv[4]))
    groups.send(2 * rows, 0)
    groups.close()
else:
    time.sleep(600)
"""


def started(mode: str, computing_s: float = 0) -> tuple[ProcessGroups, TorchCommunicator, subprocess.Popen[str]]:
    """This process as rank 0 beside another one."""
    groups = ProcessGroups(2, "127.0.0.1", None)
    command = [sys.executable, "-c", OTHER, str(groups.port), mode, json.dumps(SIZES), str(computing_s)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    team = groups.connect([[0, 1]], 0, "127.0.0.1")
    assert isinstance(team, TorchCommunicator)
    return groups, team, other


def test_sums_have_the_bits_of_shared_memory_and_parts_may_differ_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stage that computes for longer than a machine may be silent is not a lost one."""
    monkeypatch.setenv(TIMEOUT_VARIABLE, "1")
    groups, team, other = started("work", computing_s=2.5)
    try:
        heads = []
        for size in SIZES:
            parts = [np.random.default_rng(rank).normal(size=size).astype(np.float32) for rank in (0, 1)]
            x = parts[0].copy()
            team.all_reduce(x)
            assert np.array_equal(x, reduce(np.add, parts))

            def sum_of(rank, communicator, parts=parts):
                own = parts[rank].copy()
                communicator.all_reduce(own)
                return own

            assert all(np.array_equal(x, shared) for shared in on_ranks(2, sum_of))
            heads.append(x.tobytes().hex()[:64])
        gathered = team.all_gather(np.arange(3, dtype=np.uint8))
        assert (gathered[0], gathered[1]) == (b"\0\1\2", bytes(70_001))
        rows = np.arange(15, dtype=np.float32).reshape(3, 5)
        groups.send(rows, 1)
        back = np.empty_like(rows)
        groups.receive(back, 1)
        assert np.array_equal(back, 2 * rows)
        said, _ = other.communicate(timeout=60)
        assert said.split("\n")[: len(SIZES)] == heads, "the other rank holds the same bits"
        assert "[3, 70001]" in said
    finally:
        other.kill()
        groups.close()


def test_who_waits_is_told_at_once_that_it_is_over() -> None:
    """The other rank does not answer, and nobody waits for as long as a step may take."""
    groups, team, other = started("sleep")
    try:
        threading.Timer(0.5, groups.fail).start()
        begin = time.monotonic()
        with pytest.raises(NoAnswerError):
            team.all_reduce(np.ones(10, np.float32))
        assert time.monotonic() - begin < 5
    finally:
        other.kill()
        groups.close()


def test_cards_have_backends_of_their_own() -> None:
    assert [backend_of(name) for name in ("cpu", "reference", "cuda", "hpu")] == ["gloo", "gloo", "nccl", "hccl"]
    with pytest.raises(UnsupportedError, match="this PyTorch has no hccl"):
        ProcessGroups(2, "127.0.0.1", None, "hccl")


# --- cores --------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_nodes(tmp_path: Path) -> Path:
    """Two NUMA nodes of four cores with two threads each, numbered as Linux mostly does."""
    nodes = tmp_path / "node"
    for node in (0, 1):
        (nodes / f"node{node}").mkdir(parents=True)
        (nodes / f"node{node}/cpulist").write_text(f"{4 * node}-{4 * node + 3},{8 + 4 * node}-{11 + 4 * node}\n")
    for core in range(16):
        directory = tmp_path / f"cpu/cpu{core}/topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{core % 8},{core % 8 + 8}\n")
    return nodes


def test_ranks_share_neither_cores_nor_nodes(two_nodes: Path) -> None:
    cores = set(range(16))
    assert shares_of_cores(2, cores, two_nodes) == [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]
    assert shares_of_cores(4, cores, two_nodes) == [{0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 12, 13}, {6, 7, 14, 15}]
    assert shares_of_cores(8, cores, two_nodes)[3] == {3, 11}
    assert shares_of_cores(3, {0, 1, 4, 5}, two_nodes) == [{0}, {1}, {4, 5}]
    assert shares_of_cores(3, {0, 1}, two_nodes) is None


def test_ranks_with_cores_of_their_own_have_no_rivals() -> None:
    machines = {0: 0, 1: 0, 2: 2, 3: 2}
    own = {0: {0, 1}, 1: {2, 3}, 2: {0, 1}, 3: {1, 2}}
    assert [rivals(rank, machines, own) for rank in range(4)] == [[0], [1], [2, 3], [2, 3]]
