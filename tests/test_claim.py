"""Who holds a shard: one process at a time, until it has ended, has given it up or gives no sign of life."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from anthesis.atomic import create_file
from anthesis.dataset.holder import Seen, give_sign, give_up, read_claim, storage_time, this_process
from anthesis.dataset.shard_set import ShardSet
from anthesis.dataset.summary import Summary
from anthesis.errors import AnthesisError, ClaimError, RequestError
from hostile import sample

SHARDS = 40

# Claims all it can, as soon as it is told to, says what it got, and lives on until its standard input ends.
CLAIM_ALL = f"""
import json, sys
from pathlib import Path
from anthesis.dataset.holder import read_claim, storage_time
from anthesis.dataset.shard_set import ShardSet

shards, got = ShardSet(Path(sys.argv[1])), []
print("ready", flush=True)
sys.stdin.readline()
for state in shards.states({SHARDS}):
    seen = read_claim(shards.claim_path(state.shard, state.last_claim)) if state.last_claim else None
    if seen is None or seen.is_over(storage_time(shards.path)):
        claim = shards.claim(state, lease_s=60)
        if claim is not None:
            got.append([claim.shard, claim.generation])
print(json.dumps(got), flush=True)
sys.stdin.read()
"""


@contextmanager
def claimants(output: Path, count: int) -> Iterator[Counter[tuple[int, int]]]:
    """What processes got that claimed at the same time, and how many of them got it; they live on in the context."""
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            run = [sys.executable, "-c", CLAIM_ALL, str(output)]
            process = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield Counter(
            (shard, generation)
            for process in processes
            if process.stdout is not None
            for shard, generation in json.loads(process.stdout.readline())
        )


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    shards = ShardSet(tmp_path / "out.jsonl")
    shards.path.mkdir()
    return shards


def test_of_many_that_claim_at_once_each_shard_gets_one(shards: ShardSet) -> None:
    for generation in (1, 2, 3):  # nobody's; then those of processes that were killed
        with claimants(shards.output, 8) as got:
            assert got == Counter({(shard, generation): 1 for shard in range(SHARDS)})
            with claimants(shards.output, 2) as more:
                assert not more  # all of them are alive


def test_a_file_is_made_by_one_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    create_file(path, "é\n")
    with pytest.raises(FileExistsError):
        create_file(path, "other")
    assert path.read_text(encoding="utf-8") == "é\n"
    with pytest.raises(FileNotFoundError):
        create_file(tmp_path / "none" / "a", "x")
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


def test_a_file_system_without_links_is_told(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)  # as on vfat; no such file system can be counted on here
    with pytest.raises(RequestError, match="workers need a file system with hard links"):
        shards.claim(shards.states(1)[0], lease_s=60)


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    me = this_process(60)
    assert me.pid == os.getpid()
    assert me.state() == "R"
    assert replace(me, started=me.started - 1).state() == ""
    assert replace(me, started=0).state() is None
    for elsewhere in (replace(me, boot_id="x"), replace(me, boot_id=""), replace(me, pid_namespace="x")):
        assert elsewhere.state() is None
    for pid in (0, -1, 1 << 40):
        assert replace(me, pid=pid).state() is None


def test_a_process_that_ended_is_known_to_have_and_one_that_is_stopped_too() -> None:
    code = "from anthesis.dataset.holder import this_process\nprint(this_process(60).to_text(), flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        time.sleep(0)
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"}\n")
        me = this_process(60)
        other = replace(me, **json.loads(b"".join(lines) + b"}"))
        assert (other.pid, other.boot_id) == (process.pid, me.boot_id)
        seen = Seen(holder=other, sign_s=1e9)
        assert (other.state() or "") in "RSD"
        assert (seen.is_running, seen.is_given_up, seen.is_over(1e9 + 59), seen.is_over(1e9 + 61)) == (
            True, False, False, True,
        )  # fmt: skip
        process.send_signal(signal.SIGSTOP)
        while other.state() not in ("T", "t"):
            time.sleep(0.001)
        assert (seen.is_running, seen.is_given_up) == (False, False)
        process.kill()
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            time.sleep(0.001)
        assert other.state() == ""  # not yet waited for
        process.wait()
        assert other.state() == ""
        assert seen.is_over(1e9)


def test_signs_of_life_are_times_of_the_storage(shards: ShardSet) -> None:
    begin = storage_time(shards.path)
    claim = shards.claim(shards.states(1)[0], lease_s=60)
    assert claim is not None
    seen = read_claim(claim.path)
    assert seen is not None
    assert 0 <= seen.sign_s - begin < 5
    assert seen.holder == this_process(60)
    elsewhere = replace(seen, holder=replace(this_process(60), boot_id="of another machine"))
    assert not elsewhere.is_running
    assert [elsewhere.is_over(seen.sign_s + s) for s in (-9, 0, 59, 61)] == [False, False, False, True]
    time.sleep(0.02)
    give_sign(claim.path)
    later = read_claim(claim.path)
    assert later is not None
    assert later.sign_s > seen.sign_s
    give_up(claim.path)
    assert (read_claim(claim.path) or seen).is_over(0)
    claim.path.write_text("{")
    damaged = read_claim(claim.path)
    assert damaged is not None
    assert (damaged.holder, damaged.is_over(damaged.sign_s + 119), damaged.is_over(damaged.sign_s + 121)) == (
        None, False, True,
    )  # fmt: skip
    claim.path.unlink()
    assert read_claim(claim.path) is None
    assert not list(shards.path.glob(".*"))


def test_a_claim_gives_signs_of_life_until_it_is_left(shards: ShardSet) -> None:
    claim = shards.claim(shards.states(1)[0], lease_s=0.4)
    assert claim is not None
    with claim:
        begin = claim.path.stat().st_mtime
        while claim.path.stat().st_mtime < begin + 0.3:
            time.sleep(0.01)
        claim.check()
    assert claim.path.stat().st_mtime == 0
    time.sleep(0.2)
    assert claim.path.stat().st_mtime == 0


@pytest.mark.parametrize(
    ("what", "message"),
    [("claim", "was taken over"), ("done", "was finished by another"), ("gone", "merged or removed")],
)
def test_a_claim_that_is_lost_is_noticed(shards: ShardSet, what: str, message: str) -> None:
    claim = shards.claim(shards.states(1)[0], lease_s=0.1)
    assert claim is not None
    with claim:
        claim.check()
        if what == "claim":
            assert shards.claim(shards.states(1)[0], lease_s=60)
        elif what == "done":
            (shards.path / "shard-00000.done.json").touch()
        else:
            claim.path.unlink()
        time.sleep(0.1)
        with pytest.raises(ClaimError, match=message):
            claim.check()


def test_a_finished_shard_is_nobodys(shards: ShardSet) -> None:
    (stale,) = shards.states(1)  # as a machine sees it that has not heard of the end yet
    (shards.path / "shard-00000.done.json").touch()
    assert shards.claim(stale, lease_s=60) is None
    assert shards.states(1)[0].is_finished


def test_of_two_that_finish_a_shard_the_first_counts(shards: ShardSet) -> None:
    summary = Summary.from_document(json.loads(sample("summary")))
    first, second = (shards.claim(shards.states(1)[0], lease_s=60) for _ in range(2))
    assert first is not None
    assert second is not None
    shards.finish(first, summary)
    with pytest.raises(ClaimError, match="was finished by another process meanwhile"):
        shards.finish(second, summary)
    assert (first.is_finished, second.is_finished) == (True, False)
    assert shards.finished(0).generation == first.generation == 1


def test_a_full_disk_is_told(tmp_path: Path, small_disk: Path) -> None:
    shards = ShardSet(small_disk / "out.jsonl")
    shards.path.mkdir()
    (small_disk / "ballast").write_bytes(bytes(96 * 1024))
    with pytest.raises(AnthesisError, match="No space left on device"):
        shards.claim(shards.states(1)[0], lease_s=60)
    assert not list(shards.path.iterdir())
