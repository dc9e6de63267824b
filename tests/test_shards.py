"""A data set in shards: many workers, killed and stopped at any moment; merged, the same bytes as without shards."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from anthesis import LLM
from anthesis.dataset import Request, Worker, merge, open_dataset, read_summary
from anthesis.dataset.shard import WHOLE, Shard
from anthesis.dataset.shard_set import ShardSet
from anthesis.dataset.summary import summary_path
from anthesis.errors import AnthesisError, ClaimError, RequestError
from command_line import TIMEOUT_S, Terminal, anthesis, command, fail, succeed
from completing import arguments, count_lines, fail_last, write_rows
from text_model import text_model

DRAWN = ("--temperature", "1", "--top-k", "50")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(text_model(tmp_path_factory.mktemp("model") / "tiny"))


def worker_here(model: str, data: Path, output: Path, num_shards: int, **more: Any) -> Worker:
    """A worker within this process, greedy."""
    dataset = open_dataset(str(data), column="content")
    request = more.pop("request", Request(max_new_tokens=8))
    return Worker(
        request, dataset, output, lambda: LLM(model, device="reference", load=False), num_shards=num_shards, **more
    )


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not done():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


@contextmanager
def started(*run: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs beside the test, and not after it."""
    process = subprocess.Popen(
        command(*run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rows_done(output: Path) -> int:
    """Rows of the first generations."""
    return sum(count_lines(path) for path in ShardSet(output).path.glob("shard-*.1.jsonl"))


# --- which rows ------------------------------------------------------------------------------------------------------


def test_shards_are_all_rows_once() -> None:
    for count in (1, 2, 3, 7, 30):
        for total in (0, 1, 6, 7, 8, 29, 100):
            rows = [[Shard(i, count).row(k) for k in range(Shard(i, count).rows_of(total))] for i in range(count)]
            assert sorted(row for share in rows for row in share) == list(range(total))
            assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert WHOLE.row(5) == WHOLE.rows_of(5) == 5


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt", ".parquet"])
def test_a_reader_steps_over_the_rows_of_others(tmp_path: Path, suffix: str) -> None:
    texts, path = [f"row {i}" for i in range(50)], tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"t": texts}), path, row_group_size=7)
    else:
        lines = {".jsonl": [json.dumps({"t": text}) for text in texts], ".csv": ["t", *texts], ".txt": texts}[suffix]
        path.write_text("\n".join(lines) + "\n")
    data = open_dataset(str(path))
    whole = list(data.rows(0))
    assert [row.text for row in whole] == texts
    for first, step in ((0, 1), (0, 7), (3, 7), (6, 9), (12, 5), (49, 2), (50, 3), (80, 60)):
        assert list(data.rows(first, step)) == whole[first::step]


# --- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_merged_shards_are_the_bytes_of_a_run_without(tmp_path: Path, model: str, drawn: bool) -> None:
    data, whole, output = write_rows(tmp_path / "data.jsonl", 47), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    more = DRAWN if drawn else ()
    run = arguments(model, data, output, *more, "--num-shards", "5")
    succeed(*run, "--shard", "3", "--batch", "2")
    with started(*run) as first, started(*run) as second:  # whichever comes first, the seed is the first worker's
        assert (first.wait(TIMEOUT_S), second.wait(TIMEOUT_S)) == (0, 0)
    succeed("merge", str(output))
    seed = json.loads((tmp_path / "out.jsonl.shards" / "request.json").read_text())["request"]["seed"]
    succeed(*arguments(model, data, whole, *more, *(("--seed", str(seed)) if drawn else ())))
    assert output.read_bytes() == whole.read_bytes()
    summary, other = read_summary(summary_path(output)), read_summary(summary_path(whole))
    assert (summary.request, summary.counts, summary.written) == (other.request, other.counts, other.written)
    assert summary.finished
    assert {session.shard for session in summary.sessions} == set(range(5))
    assert sum(session.counts.rows for session in summary.sessions) == 47
    before = output.read_bytes()
    assert "nothing was left to do" in anthesis(*arguments(model, data, output, *more)).stderr
    assert output.read_bytes() == before


def test_two_that_begin_at_once_draw_with_one_seed(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    request = Request(max_new_tokens=8, sampling={"temperature": 1.0})

    def open_llm() -> LLM:
        worker_here(model, data, output, 2, request=request).close()  # begins just before
        return LLM(model, device="reference", load=False)

    dataset = open_dataset(str(data), column="content")
    with Worker(request, dataset, output, open_llm, num_shards=2) as worker:
        worker.complete_all()
    found = worker.shards.read()
    assert found is not None
    assert merge(output).summary.request["seed"] == found.request["seed"]
    whole = tmp_path / "whole.jsonl"
    succeed(*arguments(model, data, whole, "--temperature", "1", "--seed", str(found.request["seed"])))
    assert output.read_bytes() == whole.read_bytes()


def test_more_shards_than_rows(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 3), tmp_path / "out.jsonl"
    with worker_here(model, data, output, 8) as worker:
        assert worker.complete_all(6).shards == [6, 7, 0, 1, 2, 3, 4, 5]
    assert merge(output).summary.counts.rows == 3
    assert count_lines(output) == 3


def test_a_limit_is_of_all_shards_together(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 20), tmp_path / "out.jsonl"
    request = Request(max_new_tokens=8, limit=7)
    with worker_here(model, data, output, 3, request=request) as worker:
        assert worker.complete_all().counts.rows == 7
    assert [json.loads(line)["row"] for line in merge_lines(output)] == list(range(7))
    with pytest.raises(RequestError, match="limit was 7 and is None now"):
        worker_here(model, data, output, 3)


def merge_lines(output: Path) -> list[str]:
    merge(output)
    return output.read_text().splitlines()


def test_the_model_is_loaded_once_for_all_shards_and_not_for_none(tmp_path: Path, model: str) -> None:
    data, output, loaded = write_rows(tmp_path / "data.jsonl", 12), tmp_path / "out.jsonl", 0

    def load(llm: LLM) -> None:
        nonlocal loaded
        loaded += 1
        llm.load()

    for shards, times in (([0, 1, 2, 3], 1), ([], 1)):
        with worker_here(model, data, output, 4, load=load) as worker:
            assert worker.complete_all().shards == shards
            assert loaded == times
    merged = merge(output).summary.sessions
    assert [session.load_s > 0 for session in sorted(merged, key=lambda s: s.shard or 0)] == [True, False, False, False]


# --- killed, stopped, in the way of each other -----------------------------------------------------------------------


def check_killed(directory: Path, model: str, rows: int, kills: int) -> None:
    """Three workers at a time, one of which is killed again and again and another one started in its place."""
    data = write_rows(directory / "data.jsonl", rows)
    whole, output = directory / "whole.jsonl", directory / "out.jsonl"
    succeed(*arguments(model, data, whole))
    run = command(*arguments(model, data, output, "--num-shards", "6", "--batch", "3"))
    rng, workers, killed = random.Random(2), [], 0
    try:
        for _ in range(kills):
            while len(workers) < 3:
                workers.append(subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            before, more = lines_in(output), rng.randrange(1, rows // kills)
            wait_until(
                lambda: lines_in(output) >= before + more or all(w.poll() is not None for w in workers),  # noqa: B023
                f"{more} more rows",
            )
            victim = workers.pop(rng.randrange(len(workers)))
            victim.kill()
            killed += victim.wait() == -signal.SIGKILL
        assert killed >= kills * 3 // 4  # some were through before
        for worker in workers:
            assert worker.wait(TIMEOUT_S) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    succeed(*arguments(model, data, output, "--num-shards", "auto"))
    succeed("merge", str(output))
    assert output.read_bytes() == whole.read_bytes()
    assert list(ShardSet(output).path.glob("shard-*.2.claim")), "nothing was taken over"


def lines_in(output: Path) -> int:
    """Rows in the last generations of all shards."""
    last: dict[str, tuple[int, Path]] = {}
    for path in ShardSet(output).path.glob("shard-*.jsonl"):
        shard, generation, _ = path.name.split(".")
        last[shard] = max(last.get(shard, (0, path)), (int(generation), path))
    return sum(count_lines(path) for _, path in last.values())


def test_workers_killed_at_random_moments(tmp_path: Path, model: str) -> None:
    check_killed(tmp_path, model, rows=200, kills=4)


@pytest.mark.slow
def test_workers_killed_at_25_moments(tmp_path: Path, model: str) -> None:
    check_killed(tmp_path, model, rows=1500, kills=25)


def test_a_killed_workers_rows_are_taken_on(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 300), tmp_path / "out.jsonl"
    run = arguments(model, data, output, "--num-shards", "1", "--batch", "2")
    with started(*run) as victim:
        wait_until(lambda: rows_done(output) >= 20, "20 rows are out")
        victim.kill()
    shards = ShardSet(output)
    left = shards.output_path(0, 1).read_bytes()
    whole = left[: left.rfind(b"\n") + 1]
    result = anthesis(*run)
    assert result.returncode == 0, result.stderr
    rows = whole.count(b"\n")
    assert f"shard 0 goes on after the {rows} rows that are there" in result.stderr
    assert shards.output_path(0, 2).read_bytes().startswith(whole)
    assert shards.output_path(0, 1).read_bytes() == left
    sessions = merge(output).summary.sessions
    assert [session.ended for session in sessions] == ["running", "finished"]
    assert sessions[1].counts.rows == 300 - rows


@pytest.mark.parametrize("wakes", ["when all is done", "while another one is at it"])
@pytest.mark.slow
def test_a_worker_that_was_stopped_harms_nothing(tmp_path: Path, model: str, wakes: str) -> None:
    data, whole, output = write_rows(tmp_path / "data.jsonl", 240), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    succeed(*arguments(model, data, whole))
    run = arguments(model, data, output, "--num-shards", "2", "--batch", "2")
    lease = {"ANTHESIS_LEASE_S": "1"}
    with started(*run, **lease) as stopped:
        wait_until(lambda: rows_done(output) >= 10, "10 rows are out")
        stopped.send_signal(signal.SIGSTOP)
        with started(*run, **lease) as other:
            if wakes == "when all is done":
                assert other.wait(TIMEOUT_S) == 0, other.communicate()
            else:
                wait_until(lambda: ShardSet(output).output_path(0, 2).exists(), "it was taken over")
            stopped.send_signal(signal.SIGCONT)
            _, said = stopped.communicate(timeout=TIMEOUT_S)
            assert stopped.returncode == 0, said
            assert re.search("shard 0 was (finished|taken over) by another process", said), said
            assert other.wait(TIMEOUT_S) == 0, other.communicate()
    succeed("merge", str(output))
    assert output.read_bytes() == whole.read_bytes()
    assert all(session.ended != "failed" for session in read_summary(summary_path(output)).sessions)


def test_one_shard_that_was_taken_over_is_an_error(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 9), tmp_path / "out.jsonl"

    def take_over(progress: object) -> None:
        shards = ShardSet(output)
        shards.claim(shards.states(1)[0], lease_s=60)
        time.sleep(0.1)

    with worker_here(model, data, output, 1, progress=take_over) as worker:
        worker._lease_s = 0.1
        with pytest.raises(ClaimError, match="shard 0 was taken over by another process"):
            worker.complete_shard(0)


def test_what_another_worker_is_at_is_left_to_it(tmp_path: Path, model: str) -> None:
    data, output = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"content": 0}\n{"content": "the quick brown fox jumps"}\n' * 4000)  # shard 1 takes much longer
    run = arguments(model, data, output, "--num-shards", "2")
    with started(*run, "--shard", "1", "--batch", "1") as first:
        wait_until(lambda: rows_done(output) > 0, "a row is out")
        line = fail_last(*run, "--shard", "1")
        assert f"process {first.pid} on" in line
        assert "is completing shard 1" in line
        result = anthesis(*run)  # completes the other, and does not wait
        assert first.poll() is None
        assert result.returncode == 0, result.stderr
        assert "this worker: 1 shard, 4,000 rows" in result.stderr
        assert f"others are at shard 1 (process {first.pid} on" in result.stderr
        missing = fail("merge", str(output))
        assert f"1 of the 2 shards in {output}.shards are not finished: 1 (process {first.pid} on" in missing
        assert "is at it" in missing


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_can_be_caught_gives_the_shard_up(
    tmp_path: Path, model: str, how: signal.Signals, code: int
) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 400), tmp_path / "out.jsonl"
    with started(*arguments(model, data, output, "--num-shards", "2", "--batch", "2")) as worker:
        wait_until(lambda: rows_done(output) >= 5, "5 rows are out")
        worker.send_signal(how)
        _, said = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == code
    assert "any worker goes on" in said
    claim = ShardSet(output).claim_path(0, 1)
    assert claim.stat().st_mtime == 0  # for another machine, which can't see that the process has ended
    assert f"0 (process {worker.pid} on" in (line := fail("merge", str(output)))
    assert "began it, and has ended), 1 (nobody has begun it)" in line


def test_a_full_disk_costs_no_row(tmp_path: Path, model: str, small_disk: Path) -> None:
    data, whole = write_rows(tmp_path / "data.jsonl", 100), tmp_path / "whole.jsonl"
    output, ballast = small_disk / "out.jsonl", small_disk / "ballast"
    succeed(*arguments(model, data, whole))
    run = arguments(model, data, output, "--num-shards", "2")
    ballast.write_bytes(bytes(65_536))
    message = fail_last(*run, code=1)
    assert "No space left on device" in message
    assert "start the same command again" in message
    done = lines_in(output)
    assert done > 0
    ballast.write_bytes(bytes(10))
    succeed(*run)
    sessions = [s for i in (0, 1) for s in read_summary(last_summary(output, i)).sessions]
    assert sum(session.counts.rows for session in sessions) == 100  # none was done twice
    assert len(whole.read_bytes()) > 20_000
    ballast.write_bytes(bytes(4096 * ((96 * 1024 - used(small_disk)) // 4096 + 1)))
    assert "No space left on device" in fail("merge", str(output), code=1)
    assert not output.exists()
    assert not list(small_disk.glob(".*"))
    ballast.unlink()
    succeed("merge", str(output))
    assert output.read_bytes() == whole.read_bytes()


def used(place: Path) -> int:
    state = os.statvfs(place)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def last_summary(output: Path, shard: int) -> Path:
    shards = ShardSet(output)
    return summary_path(shards.output_path(shard, shards.finished(shard).generation))


# --- what is refused, and what is damaged ----------------------------------------------------------------------------


def test_workers_of_another_request_are_refused(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    succeed(*arguments(model, data, output, "--num-shards", "3", "--shard", "0"))
    before = {path: path.read_bytes() for path in ShardSet(output).path.iterdir()}
    other = text_model(tmp_path / "other", intermediate_size=32)
    for run, message in (
        (arguments(model, data, output, "--num-shards", "4"), "num_shards was 3 and is 4 now"),
        (arguments(model, data, output, "--num-shards", "3", "--limit", "3"), "limit was None and is 3 now"),
        (arguments(model, data, output, "--num-shards", "3", *DRAWN), "temperature was 0.0 and is 1.0 now"),
        (arguments(str(other), data, output, "--num-shards", "3"), "the content of its model is another one now"),
        (arguments(model, data, output), "holds the shards of"),
    ):
        line = fail_last(*run)
        assert message in line
        assert "out.jsonl.shards" in line
    assert {path: path.read_bytes() for path in ShardSet(output).path.iterdir()} == before
    assert not output.exists()


def test_an_output_that_is_there_is_not_begun_anew_in_shards(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    succeed(*arguments(model, data, output, "--limit", "5"))
    line = fail_last(*arguments(model, data, output, "--num-shards", "3"))
    assert "out.jsonl is there already, and no out.jsonl.shards beside it" in line
    assert count_lines(output) == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard", "0"), "--shard needs --num-shards"),
        (("--num-shards", "0"), "num_shards is 0; it must be at least 1"),
        (("--num-shards", "1000000"), "num_shards is 1,000,000; it must be at most 100,000"),
        (("--num-shards", "4", "--shard", "4"), "shard is 4; of 4 shards they are 0 to 3"),
        (("--num-shards", "4", "--shard", "-1"), "shard is -1"),
        (("--num-shards", "x"), "'x' is neither a whole number nor auto"),
        (("--num-shards", "auto"), "no launcher is known to say so; give a number"),
        (("--num-shards", "2", "--workers", "2"), "--workers is for --engine ray"),
        (("--engine", "ray", "--num-shards", "2", "--shard", "1"), "--shard names one shard, and --engine ray"),
        (("--engine", "ray", "--workers", "0"), "workers is 0"),
        (("--engine", "slurm"), "unknown engine 'slurm'; known are: local, ray"),
    ],
)
def test_flags_that_are_refused(tmp_path: Path, model: str, more: tuple[str, ...], message: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 3)
    assert message in fail_last(*arguments(model, data, tmp_path / "out.jsonl", *more))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


@pytest.mark.parametrize("lease", ["x", "0", "-3", "inf", "nan"])
def test_a_lease_that_is_none_is_refused(tmp_path: Path, model: str, lease: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 3)
    run = arguments(model, data, tmp_path / "out.jsonl", "--num-shards", "2")
    assert f"ANTHESIS_LEASE_S is '{lease}'; give seconds" in fail_last(*run, ANTHESIS_LEASE_S=lease)


def test_a_place_that_is_no_place(tmp_path: Path, model: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 3)
    (tmp_path / "file.jsonl.shards").touch()
    for name, message in (
        ("file.jsonl", "file.jsonl.shards is no directory"),
        ("none/out.jsonl", "there is no directory"),
        ("x" * 250, "File name too long"),
    ):
        assert message in fail_last(*arguments(model, data, tmp_path / name, "--num-shards", "2"))


@pytest.mark.parametrize("damage", ["rows", "no summary", "a summary of something else"])
def test_a_damaged_shard_is_left_out_until_it_is_removed(tmp_path: Path, model: str, damage: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 60), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt), worker_here(model, data, output, 3, progress=interrupt_after(12)) as worker:
        worker.complete_shard(1)
    shards = ShardSet(output)
    path = shards.output_path(1, 1)
    if damage == "rows":
        path.write_bytes(path.read_bytes().replace(b'"completion": "', b'"completion": "X', 1))
    elif damage == "no summary":
        summary_path(path).unlink()
    else:
        summary_path(path).write_text(
            summary_path(path).read_text().replace('"prompt_tokens": 16', '"prompt_tokens": 9', 1)
        )
    run = arguments(model, data, output, "--num-shards", "3")
    for _ in range(2):  # and again: each worker finds it anew
        line = fail_last(*run)
        assert f"or remove {shards.path}/shard-00001.* to have its rows done again" in line
        assert [state.is_finished for state in shards.states(3)] == [True, False, True]
    for name in shards.path.glob("shard-00001.*"):
        name.unlink()
    succeed(*run)
    assert merge(output).summary.counts.rows == 60


def interrupt_after(rows: int) -> Callable[[Any], None]:
    def progress(progress: Any) -> None:
        if progress.done.rows >= rows:
            raise KeyboardInterrupt

    return progress


@pytest.mark.slow
def test_foreign_files_are_let_be_and_a_damaged_request_is_told(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    shards = ShardSet(output)
    shards.path.mkdir()
    (shards.path / "notes.txt").write_text("mine")
    (shards.path / "shard-x.claim").write_text("mine")
    run = arguments(model, data, output, "--num-shards", "2")
    succeed(*run)
    request = shards.path / "request.json"
    good = request.read_text()
    for damaged in ("{", "[]", good[:-50], "{}", good.replace('"num_shards": 2', '"num_shards": "2"')):
        request.write_text(damaged)
        for refused in (run, ("merge", str(output))):
            assert "request.json" in fail_last(*refused)
    request.unlink()
    assert "holds shards, and no request.json" in fail_last(*run)
    request.write_text(good)
    succeed("merge", str(output), "--remove-shards")
    assert sorted(path.name for path in shards.path.iterdir()) == ["notes.txt", "shard-x.claim"]


def test_a_terminal_shows_the_shard_in_the_bar(tmp_path: Path, model: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 200)
    terminal = Terminal(command(*arguments(model, data, tmp_path / "a.jsonl", "--num-shards", "2")))
    assert terminal.finish() == 0
    for part in ("━", "rows/s", "shard 1, 1 of 2 finished: "):
        assert part in terminal.output
    plain = anthesis(*arguments(model, data, tmp_path / "b.jsonl", "--num-shards", "2")).stderr
    assert "\x1b" not in plain
    assert "complete: shard 1, 1 of 2 finished\n" in plain
    assert "this worker: 2 shards, 200 rows in" in plain


def test_errors_of_a_worker_are_those_of_the_run(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 60), tmp_path / "out.jsonl"

    def change(progress: object) -> None:
        data.write_text("{}\n")

    worker = worker_here(model, data, output, 2, progress=change)
    with worker, pytest.raises(AnthesisError, match="was changed while it was read"):
        worker.complete_all()
    assert ShardSet(output).claim_path(0, 1).stat().st_mtime == 0
