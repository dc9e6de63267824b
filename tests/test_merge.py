"""`anthesis merge`: every row once, in order, of one request, as it was written; or an error and no file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from anthesis import LLM
from anthesis.dataset import Request, Worker, merge, open_dataset, read_summary
from anthesis.dataset.shard_set import ShardSet
from anthesis.dataset.summary import summary_path
from anthesis.errors import AnthesisError, RequestError
from anthesis.report import read_result
from command_line import anthesis, command, fail, obey_permissions, succeed
from completing import count_lines, write_rows
from text_model import text_model

ROWS, SHARDS = 23, 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `out.jsonl.shards`, all finished."""
    directory = tmp_path_factory.mktemp("finished")
    model = str(text_model(directory / "tiny"))
    dataset = open_dataset(str(write_rows(directory / "data.jsonl", ROWS)), column="content")

    def open_llm() -> LLM:
        return LLM(model, device="reference", load=False)

    with Worker(Request(max_new_tokens=8), dataset, directory / "out.jsonl", open_llm, num_shards=SHARDS) as worker:
        worker.complete_all()
    return directory


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(finished / "out.jsonl.shards", tmp_path / "out.jsonl.shards")
    return tmp_path / "out.jsonl"


def names(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


def rewrite(output: Path, shard: int, lines: list[bytes]) -> None:
    """Other rows of a shard, with all that was noted of them made to agree."""
    shards = ShardSet(output)
    path = shards.output_path(shard, 1)
    written = b"".join(lines)
    path.write_bytes(written)
    counts = [json.loads(line) for line in lines]
    done = shards.path / f"shard-{shard:05}.done.json"
    for file in (done, summary_path(path)):
        document = json.loads(file.read_text())
        document["written"] = {"nbytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
        document["counts"] = {
            "rows": len(lines),
            "failed_rows": sum(row["error"] is not None for row in counts),
            "prompt_tokens": sum(row["prompt_tokens"] for row in counts),
            "completion_tokens": sum(row["completion_tokens"] for row in counts),
        }
        file.write_text(json.dumps(document))


def rows_of(output: Path, shard: int) -> list[bytes]:
    return ShardSet(output).output_path(shard, 1).read_bytes().splitlines(keepends=True)


def test_what_comes_out(output: Path) -> None:
    assert f"{ROWS} rows of {SHARDS} shards in {output}, each there once, 2 of them with an error" in told(output)
    assert [json.loads(line)["row"] for line in output.read_text().splitlines()] == list(range(ROWS))
    assert names(output) == ["out.jsonl", "out.jsonl.shards", "out.jsonl.summary.json"]
    (line,) = read_result(output).lines
    assert (line.rows, line.failed_rows, line.finished, line.kind) == (ROWS, 2, True, "complete")
    assert line.timed_rows == ROWS
    succeed("report", str(output))
    before = output.read_bytes(), summary_path(output).read_bytes()
    assert "all there already" in told(output)  # and is left as it was
    summary_path(output).unlink()
    assert "all there already" in told(output)
    assert (output.read_bytes(), summary_path(output).read_bytes()) == before


def told(output: Path, *more: str) -> str:
    result = anthesis("merge", str(output), *more)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_the_shards_are_removed_if_asked(output: Path) -> None:
    (output.parent / "out.jsonl.shards" / ".clock.0123").touch()  # what a killed worker left
    told(output, "--remove-shards")
    assert names(output) == ["out.jsonl", "out.jsonl.summary.json"]
    assert f"there is no {output}.shards with shards to merge" in fail("merge", str(output))


def test_pieces_are_read_in_turn(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are; the bytes are those of the shards, dealt back."""
    expected = b"".join(rows_of(output, row % SHARDS)[row // SHARDS] for row in range(ROWS))
    monkeypatch.setattr(sys.modules["anthesis.dataset.merge"], "_PIECE_BYTES", range(7, 8))
    assert not merge(output).was_there
    assert output.read_bytes() == expected


def test_a_merge_that_was_killed_is_done_again(output: Path) -> None:
    unfinished = output.with_name(".out.jsonl.unfinished")
    unfinished.write_bytes(b"half a row")
    summary_path(output).write_text("{")
    told(output)
    assert count_lines(output) == ROWS
    assert names(output) == ["out.jsonl", "out.jsonl.shards", "out.jsonl.summary.json"]


def test_two_at_once_write_one_file(output: Path) -> None:
    processes = [subprocess.Popen(command("merge", str(output)), stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[1] for process in processes]
    assert all(p.returncode == 0 or "another process is writing" in s for p, s in zip(processes, said, strict=True))
    assert 0 in [process.returncode for process in processes]
    assert count_lines(output) == ROWS
    assert names(output) == ["out.jsonl", "out.jsonl.shards", "out.jsonl.summary.json"]


def test_a_symbolic_link_is_followed(output: Path) -> None:
    elsewhere = output.parent / "elsewhere"
    elsewhere.mkdir()
    output.symlink_to(elsewhere / "rows.jsonl")
    merge(output)
    assert output.is_symlink()
    assert count_lines(elsewhere / "rows.jsonl") == ROWS


def test_a_different_file_is_left_alone(output: Path) -> None:
    for content in (b"", b"mine\n"):
        output.write_bytes(content)
        assert "is there already and does not hold the rows of" in fail("merge", str(output))
        assert output.read_bytes() == content
    assert names(output) == ["out.jsonl", "out.jsonl.shards"]


def test_missing_shards_are_named(output: Path) -> None:
    shards = ShardSet(output)
    for shard in (1, 3):
        (shards.path / f"shard-{shard:05}.done.json").unlink()
    shards.claim_path(3, 1).unlink()
    os.utime(shards.claim_path(1, 1), (0, 0))  # given up
    with pytest.raises(RequestError, match="2 of the 4 shards in") as caught:
        merge(output)
    assert "and has ended), 3 (nobody has begun it); start a worker again" in str(caught.value)
    assert names(output) == ["out.jsonl.shards"]


def check_damaged(output: Path, message: str, error: type[AnthesisError] = AnthesisError) -> None:
    with pytest.raises(error, match=message) as caught:
        merge(output)
    assert "to have its rows done again" in str(caught.value) or "to have them done again" in str(caught.value)
    assert names(output) == ["out.jsonl.shards"]


def test_rows_that_are_missing_twice_or_elsewhere_are_noticed(output: Path) -> None:
    rows = rows_of(output, 1)  # 1, 5, 9, 13, 17, 21
    for wrong, message in (
        (rows[:-1], "shard 1 in .* has 5 rows; of the 22 in all shards it must have 6"),
        ([*rows, rows[-1]], "shard 1 in .* has 7 rows; of the 24 in all shards it must have 6"),
        ([rows[0], rows[0], *rows[2:]], "where row 5 should be, there is another line"),
        ([rows[1], rows[0], *rows[2:]], "where row 1 should be, there is another line"),
        (rows_of(output, 2), "where row 1 should be, there is another line"),
    ):
        rewrite(output, 1, wrong)
        check_damaged(output, message)


def test_bytes_that_were_changed_are_noticed(output: Path) -> None:
    path = ShardSet(output).output_path(1, 1)
    good = path.read_bytes()
    for wrong, message in (
        (good.replace(b'"completion": "', b'"completion": "X', 1), "not those that were written"),
        (good + good[-1:], "there is more than its rows"),
        (good + good.splitlines(keepends=True)[-1], "there is more than its rows"),
        (good[:-1], "where row 21 should be, there is another line"),
        (good[: good.rindex(b'{"row": 21')], "where row 21 should be, there is the end"),
        (b"", "where row 1 should be, there is the end"),
        (bytes(len(good)), "where row 1 should be, there is another line"),
        (None, "can't be read: No such file"),
    ):
        path.unlink(missing_ok=True)
        if wrong is not None:
            path.write_bytes(wrong)
        check_damaged(output, message)


def test_shards_of_another_request_are_not_mixed(output: Path) -> None:
    path = summary_path(ShardSet(output).output_path(1, 1))
    good = path.read_text()
    for wrong in (
        good.replace('"prompt_tokens": 16', '"prompt_tokens": 15', 1),
        "{",
        good.replace('"rows": 6', '"rows": 7'),
    ):
        assert wrong != good
        path.write_text(wrong)
        check_damaged(output, "summary", RequestError)
    path.unlink()
    check_damaged(output, "can't be read", RequestError)


def test_a_damaged_note_of_the_end_is_told(output: Path) -> None:
    done = ShardSet(output).path / "shard-00002.done.json"
    good = done.read_text()
    for wrong in ("{", good.replace('"shard": 2', '"shard": 1'), good.replace('"generation": 1', '"generation": "1"')):
        done.write_text(wrong)
        with pytest.raises(RequestError, match=r"shard-00002\.done\.json"):
            merge(output)
    done.write_text(good.replace('"generation": 1', '"generation": 7'))
    check_damaged(output, "can't be read", RequestError)


def test_several_processors_are_said(output: Path) -> None:
    path = summary_path(ShardSet(output).output_path(1, 1))
    summary = read_summary(path)
    replace(summary, machine=replace(summary.machine, processor="Another One")).write(path)
    assert "the shards were computed on" in (said := told(output))
    assert "Another One with NumPy" in said


@pytest.mark.parametrize(("typed", "kept"), [("anthesis complete a", "anthesis complete a"), ("another", None)])
def test_the_command_is_that_of_each_worker_or_nobody_s(output: Path, typed: str, kept: str | None) -> None:
    for shard in range(SHARDS):
        path = summary_path(ShardSet(output).output_path(shard, 1))
        replace(read_summary(path), command=typed if shard == 0 else "anthesis complete a", commit="c0ffee").write(path)
    summary = merge(output).summary
    assert (summary.command, summary.commit) == (kept, "c0ffee")


def test_a_place_that_can_t_be_written_to(output: Path) -> None:
    output.parent.chmod(0o555)
    try:
        line = fail("merge", str(output), before=obey_permissions)
    finally:
        output.parent.chmod(0o755)
    assert "can't be written to: Permission denied" in line
    assert "there is no directory" in fail("merge", str(output.parent / "none" / "x.jsonl"))


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    """And one of them without rows."""
    import resource

    model = str(text_model(tmp_path / "tiny"))
    data, output = write_rows(tmp_path / "data.jsonl", 99), tmp_path / "out.jsonl"
    with Worker(
        Request(max_new_tokens=1),
        open_dataset(str(data), column="content"),
        output,
        lambda: LLM(model, device="reference", load=False),
        num_shards=100,
    ) as worker:
        worker.complete_all()
    result = anthesis("merge", str(output), before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    assert result.returncode == 0, result.stderr
    assert count_lines(output) == 99


def test_all_rows_failed(tmp_path: Path) -> None:
    model, output = str(text_model(tmp_path / "tiny")), tmp_path / "out.jsonl"
    (tmp_path / "data.jsonl").write_text('{"content": 1}\n' * 3)
    run = ("complete", model, str(tmp_path / "data.jsonl"), "--column", "content", "-o", str(output))
    assert anthesis(*run, "--num-shards", "2", "--device", "reference").returncode == 0  # of others it may be otherwise
    assert anthesis("merge", str(output)).returncode == 1
    assert count_lines(output) == 3
