"""`anthesis complete`: killed at any moment, on a full disk, by two at once; the same bytes in the end."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anthesis import LLM
from anthesis.dataset import Request, complete, open_dataset
from anthesis.dataset.output import OutputFile, row_line
from anthesis.dataset.summary import Counts, read_summary, summary_path
from anthesis.errors import DataSetError, RequestError
from anthesis.native import extension
from command_line import TIMEOUT_S, Terminal, anthesis, command, fail, obey_permissions, succeed
from completing import COLUMN, DEVICE, arguments, count_lines, fail_last, interrupt, write_rows
from text_model import text_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(text_model(tmp_path_factory.mktemp("model") / "tiny"))


def complete_here(
    model: str, data: Path, output: Path, request: Request | None = None, llm: Mapping[str, Any] = {}, **hooks: Any
) -> None:
    """The same within this process."""
    how = {"model": model, "device": "reference", **llm}
    request = request or Request(max_new_tokens=8)
    complete(
        request,
        open_dataset(str(data), column=COLUMN.get(data.suffix)),
        output,
        lambda: LLM(**how, load=False),
        **hooks,
    )


def check_interrupted(directory: Path, model: str, rows: int, moments: int) -> None:
    data = write_rows(directory / "data.jsonl", rows)
    whole, broken = directory / "whole.jsonl", directory / "broken.jsonl"
    succeed(*arguments(model, data, whole))
    assert count_lines(whole) == rows
    run = arguments(model, data, broken, "--batch", "16")
    rng = random.Random(1)
    codes: list[int] = []
    for after in sorted(rng.sample(range(rows), moments)):
        codes.append(interrupt(run, broken, after, signal.SIGKILL))
    codes += [interrupt(run, broken, rng.randrange(rows), how) for how in (signal.SIGTERM, signal.SIGINT)]
    assert codes.count(-signal.SIGKILL) >= moments * 3 // 4  # some were through before
    succeed(*run)
    assert broken.read_bytes() == whole.read_bytes()
    summary = read_summary(summary_path(broken))
    assert summary.finished
    assert (summary.counts.rows, summary.counts.failed_rows) == (rows, rows // 10)


def test_killed_and_started_again(tmp_path: Path, model: str) -> None:
    check_interrupted(tmp_path, model, rows=120, moments=4)


@pytest.mark.slow
def test_500_rows_killed_at_20_moments(tmp_path: Path, model: str) -> None:
    check_interrupted(tmp_path, model, rows=500, moments=20)


def test_going_on_with_other_kernels_is_said(tmp_path: Path, model: str) -> None:
    """And with another number of threads it is not: that changes nothing."""
    data, output = write_rows(tmp_path / "data.jsonl", 9), tmp_path / "out.jsonl"
    run = arguments(model, data, output, "--device", "cpu")
    warning = "the output may differ from a run without interruption"
    for limit, threads in [("3", "2"), ("6", "1")]:
        assert warning not in anthesis(*run, "--limit", limit, "--threads", threads).stderr
    shown = anthesis(*run, ANTHESIS_CPU_KERNELS="portable")
    assert shown.returncode == 0
    assert (
        (warning in shown.stderr)
        == ("portable kernels" in shown.stderr)
        == (extension().chosen_kernels() != "portable")
    )


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_can_be_caught_is_noted(tmp_path: Path, model: str, how: signal.Signals, code: int) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 400), tmp_path / "out.jsonl"
    run = arguments(model, data, output)
    assert interrupt(run, output, 20, how) == code
    summary = read_summary(summary_path(output))
    assert (summary.finished, summary.sessions[-1].ended) == (False, "interrupted")
    assert summary.counts.rows == count_lines(output) >= 20


def test_rows_are_what_generate_gives(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 20), tmp_path / "out.jsonl"
    succeed(*arguments(model, data, output, "--prompt-tokens", "5"))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(20))
    with LLM(model, device="reference") as llm:
        for row, line in zip(rows, data.read_text().splitlines(), strict=True):
            if row["row"] % 10 == 9:
                assert (row["prompt"], row["completion"], row["finish_reason"]) == (None, None, None)
                assert row["error"]
                continue
            ids = llm.encode(json.loads(line)["content"])[:5]
            (expected,) = llm.generate([ids], max_new_tokens=8)
            assert row == {
                "row": row["row"],
                "prompt": llm.tokenizer.decode(ids) if llm.tokenizer else None,
                "completion": expected.text,
                "prompt_tokens": len(ids),
                "completion_tokens": len(expected.token_ids),
                "finish_reason": expected.finish_reason,
                "error": None,
            }


def test_drawn_rows_go_on_with_their_seed(tmp_path: Path, model: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 30)
    drawn = ("--temperature", "1", "--top-k", "50")
    outputs = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    succeed(*arguments(model, data, outputs[0], *drawn, "--limit", "12"))
    succeed(*arguments(model, data, outputs[0], *drawn))
    seed = read_summary(summary_path(outputs[0])).request["seed"]
    succeed(*arguments(model, data, outputs[1], *drawn, "--seed", str(seed), "--batch", "3"))
    succeed(*arguments(model, data, outputs[2], *drawn))
    assert outputs[0].read_bytes() == outputs[1].read_bytes() != outputs[2].read_bytes()


def test_an_output_of_another_request_is_left_alone(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    succeed(*arguments(model, data, output, "--limit", "5"))
    before = output.read_bytes()
    other = text_model(tmp_path / "other", intermediate_size=32)
    for run, message in (
        (arguments(model, data, output, "--prompt-tokens", "3"), "prompt_tokens was 16 and is 3 now"),
        (arguments(model, data, output, "--temperature", "1"), "temperature was 0.0 and is 1.0 now"),
        (arguments(model, data, output, "--weights", "bf16"), "model.weights was 'fp32' and is 'bf16' now"),
        (arguments(str(other), data, output), "the content of its model is another one now"),
        (arguments(model, data, output, "--limit", "3"), "holds 5 rows already, more than --limit 3"),
        (arguments(model, write_rows(tmp_path / "more.jsonl", 11), output), "data_set.name was 'data.jsonl'"),
    ):
        assert message in fail_last(*run)
        assert output.read_bytes() == before
    data.write_text(data.read_text() + '{"content": "one more"}\n')
    assert "the content of its data set is another one now" in fail_last(*arguments(model, data, output))
    summary_path(output).unlink()
    assert "no out.jsonl.summary.json beside it" in fail_last(*arguments(model, data, output))
    assert output.read_bytes() == before


def test_two_processes_do_not_write_one_file(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 400), tmp_path / "out.jsonl"
    run = arguments(model, data, output)
    first = subprocess.Popen(command(*run), stderr=subprocess.DEVNULL)
    try:
        while count_lines(output) < 5:
            time.sleep(0.01)
        assert f"another process is writing {output}" in fail_last(*run)
    finally:
        first.kill()
        first.wait()
    succeed(*run)
    assert count_lines(output) == 400


def test_what_a_power_cut_leaves_is_cut_off_and_nothing_else(tmp_path: Path) -> None:
    rows = [
        row_line(i, prompt="p", completion="c\n", prompt_tokens=2, completion_tokens=3, error=None) for i in range(3)
    ]
    path, whole = tmp_path / "out.jsonl", b"".join(rows)
    torn = [rows[2][:n] for n in range(1, len(rows[2]))]
    unwritten_pages = [bytes(5000), rows[2][:9] + bytes(70_000), rows[2][:9] + bytes(4096) + rows[0] + rows[1]]
    for tail in (b"", *torn, *unwritten_pages):
        path.write_bytes(rows[0] + rows[1] + tail)
        with OutputFile(path) as file:
            file.recover()
            assert (file.counts.rows, file.counts.completion_tokens, file.torn_bytes) == (2, 6, len(tail))
            file.append(rows[2], Counts(rows=1))
        assert path.read_bytes() == whole
    counted_wrong = [
        rows[0].replace(b'"prompt_tokens": 2', b'"prompt_tokens": %s' % n) for n in (b'"x"', b"-1", b"true")
    ]
    notes = [b"notes", rows[0] + b"notes", rows[0] + b"note\n", whole + b"a\nb", b"\n" + whole]
    for foreign in (*counted_wrong, *notes, rows[0] + rows[2], rows[1]):
        path.write_bytes(foreign)
        with OutputFile(path) as file, pytest.raises(RequestError, match="somebody else wrote"):
            file.recover()
        assert path.read_bytes() == foreign


def test_a_finished_output_is_no_other_models(tmp_path: Path, model: str) -> None:
    other = text_model(tmp_path / "other", eos_token_id=3)
    data, output = write_rows(tmp_path / "data.jsonl", 5), tmp_path / "out.jsonl"
    complete_here(model, data, output)
    before = [path.read_bytes() for path in (output, summary_path(output))]
    for changed, message in (
        ({"model": str(other)}, "the content of its model is another one now"),
        ({"weights": "bf16"}, "model.weights was 'fp32' and is 'bf16' now"),
        ({"cache": "bf16"}, "model.cache was 'fp32' and is 'bf16' now"),
        ({"max_context": 50}, "model.max_context was 96 and is 50 now"),
        ({"device": "reference-fp64"}, "device.name was"),
        ({"model": str(tmp_path / "none")}, "no such file or directory"),
    ):
        with pytest.raises(RequestError, match=message):
            complete_here(model, data, output, llm=changed)
    for limit in (9, 5):
        complete_here(model, data, output, Request(max_new_tokens=8, limit=limit, seed=3))
    result = anthesis(*arguments(model, data, output))
    assert result.returncode == 0
    assert "nothing was left to do" in result.stderr
    assert "this session" not in result.stderr
    assert [path.read_bytes() for path in (output, summary_path(output))] == before


def test_rows_that_somebody_changed_are_noticed(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 20), tmp_path / "out.jsonl"
    succeed(*arguments(model, data, output, "--limit", "9"))
    first, second, *others = output.read_bytes().splitlines(keepends=True)
    for changed in (
        second.replace(b'"completion": "', b'"completion": "X', 1),
        second.replace(b'"error": null', b'"error": NaN', 1),
    ):
        output.write_bytes(b"".join((first, changed, *others)))
        assert "somebody else wrote to it" in fail_last(*arguments(model, data, output))
    output.write_bytes(b"".join((first, second, *others[:-1])))
    assert "somebody else wrote to it" in fail_last(*arguments(model, data, output))
    assert count_lines(output) == 8


def test_an_interrupt_before_the_first_row_leaves_nothing(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 5), tmp_path / "out.jsonl"

    def interrupt(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete_here(model, data, output, progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


@pytest.mark.parametrize("batch", [1, 3])  # after it in the same cache blocks, and beside it
def test_a_row_whose_logits_are_not_finite_fails_alone(tmp_path: Path, batch: int) -> None:
    model = str(text_model(tmp_path / "model", tie_word_embeddings=False))
    data, output, whole = tmp_path / "data.txt", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    data.write_text("fox\nquick dog\nbrown\n")
    complete_here(model, data, whole)

    def load(llm: LLM) -> None:
        llm.load()
        (token, *_) = llm.encode("quick")
        embed = llm.loaded._weights["embed.weight"].copy()
        embed[token] = np.nan
        llm.loaded._weights["embed.weight"] = embed

    complete_here(model, data, output, Request(max_new_tokens=8, batch=batch), load=load)
    rows, expected = (list(map(json.loads, path.read_text().splitlines())) for path in (output, whole))
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "not finite" in rows[1]["error"]
    assert (rows[0], rows[2]) == (expected[0], expected[2])


def test_a_data_set_that_changes_while_the_model_loads_is_not_read(tmp_path: Path, model: str) -> None:
    data, output = tmp_path / "data.txt", tmp_path / "out.jsonl"
    data.write_text("fox\n")

    def load(llm: LLM) -> None:
        llm.load()
        data.write_text("dog\n")

    with pytest.raises(DataSetError, match="changed"):
        complete_here(model, data, output, load=load)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.txt"]


def test_a_data_set_that_changes_behind_the_limit_is_noticed(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 5), tmp_path / "out.jsonl"

    def change(progress: object) -> None:
        with data.open("a") as file:
            file.write("{}\n")

    with pytest.raises(DataSetError, match="changed"):
        complete_here(model, data, output, Request(max_new_tokens=8, limit=3), progress=change)


def test_a_run_goes_on_when_nobody_reads_its_messages(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 20), tmp_path / "out.jsonl"
    process = subprocess.Popen(command(*arguments(model, data, output)), stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(TIMEOUT_S) == 0
    assert count_lines(output) == 20


def test_a_refusal_leaves_a_symbolic_link_as_it_was(tmp_path: Path) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 3), tmp_path / "out.jsonl"
    output.symlink_to("target.jsonl")
    fail_last(*arguments("random:bloomz-560m", data, output))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out.jsonl"]
    assert output.is_symlink()


def test_a_full_disk_costs_no_row(tmp_path: Path, model: str, small_disk: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", 300)
    whole, output, ballast = tmp_path / "whole.jsonl", small_disk / "out.jsonl", small_disk / "ballast"
    succeed(*arguments(model, data, whole))
    assert whole.stat().st_size < 80_000  # it fits, without the ballast
    ballast.write_bytes(bytes(60_000))
    message = fail_last(*arguments(model, data, output), code=1)
    assert "No space left on device" in message
    assert "start the same command again" in message
    done = output.read_bytes()
    assert done
    assert whole.read_bytes().startswith(done)
    ballast.unlink()
    succeed(*arguments(model, data, output))
    assert output.read_bytes() == whole.read_bytes()


def test_a_directory_that_can_t_be_written_to_is_told_at_once(tmp_path: Path, model: str) -> None:
    data, directory = write_rows(tmp_path / "data.jsonl", 2), tmp_path / "closed"
    directory.mkdir(mode=0o555)
    run = arguments(model, data, directory / "out.jsonl")
    assert "out.jsonl can't be written to: Permission denied" in fail_last(*run, before=obey_permissions)
    directory.chmod(0o755)
    (directory / "out.jsonl").touch()
    directory.chmod(0o555)  # rows could be written, and their summary not
    assert "out.jsonl.summary.json has to stand there" in fail_last(*run, before=obey_permissions)


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path: Path, model: str) -> None:
    data, whole, output = write_rows(tmp_path / "data.jsonl", 60), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    succeed(*arguments(model, data, whole))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    result = anthesis(*arguments(model, data, output), before=limit)
    assert result.returncode == 1
    assert "File too large" in result.stderr.splitlines()[-1]
    assert whole.read_bytes().startswith(output.read_bytes())
    succeed(*arguments(model, data, output))
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("-o", "{tmp}"), "is a directory"),
        (("-o", "{tmp}/none/out.jsonl"), "there is no directory"),
        (("-o", "/dev/full"), "no regular file"),
        (("-o", "{tmp}/" + "x" * 300), "File name too long"),
        (("-o", "{tmp}/" + "x" * 250), "File name too long"),
        (("-o", "{tmp}/a.jsonl", "--batch", "0"), "batch is 0"),
        (("-o", "{tmp}/a.jsonl", "--limit", "0"), "limit is 0"),
        (("-o", "{tmp}/a.jsonl", "--top-k", "3"), "temperature"),
        (("-o", "{tmp}/a.jsonl", "--column", "x"), "no column 'x'"),
        ((), "Missing option"),
    ],
)
def test_what_is_refused(tmp_path: Path, model: str, more: tuple[str, ...], message: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 3)
    more = tuple(word.format(tmp=tmp_path) for word in more)
    assert message in fail_last("complete", model, str(data), *more, *DEVICE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_vanished_input(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    succeed(*arguments(model, data, output, "--limit", "4"))
    data.unlink()
    before = output.read_bytes()
    assert "no such data set" in fail(*arguments(model, data, output))
    assert output.read_bytes() == before


def test_a_model_without_tokenizer_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", 3)
    message = fail_last(*arguments("random:bloomz-560m", data, tmp_path / "out.jsonl"), code=2)
    assert "has no tokenizer" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_every_row_failed(tmp_path: Path, model: str) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"content": "x"}\n' + '{"content": ""}\n' * 3)
    output = tmp_path / "out.jsonl"
    assert anthesis(*arguments(model, data, output)).returncode == 0
    data.write_text('{"content": ""}\n' * 3)
    output.unlink()
    assert anthesis(*arguments(model, data, output)).returncode == 1
    assert count_lines(output) == 3


def test_a_text_that_the_tokenizer_gives_up_on_fails_alone(tmp_path: Path) -> None:
    directory = text_model(tmp_path / "model")
    raw = json.loads((directory / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, raw["pre_tokenizer"]]}
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    data, output = tmp_path / "data.txt", tmp_path / "out.jsonl"
    data.write_text(f"fox\n{'a' * 40}b\ndog\n")
    succeed("complete", str(directory), str(data), "-o", str(output), "-n", "4", *DEVICE)
    first, second, third = map(json.loads, output.read_text().splitlines())
    assert first["error"] is None and third["error"] is None
    assert "can't encode the text" in second["error"]


def test_a_terminal_shows_a_bar_and_a_pipe_plain_lines(tmp_path: Path, model: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 100)
    terminal = Terminal(command(*arguments(model, data, tmp_path / "a.jsonl")))
    assert terminal.finish() == 0
    for part in ("━", "rows/s", "tokens/s", "left", "100 rows"):
        assert part in terminal.output
    plain = anthesis(*arguments(model, data, tmp_path / "b.jsonl")).stderr
    assert "\x1b" not in plain
    assert "100 rows in" in plain
    assert "batch 16" in plain


def test_the_batch_is_the_devices(tmp_path: Path, model: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 3)
    output = str(tmp_path / "a.jsonl")
    shown = anthesis("complete", model, str(data), "-o", output, "--column", "content", "-n", "2", "--device", "cpu")
    assert shown.returncode == 0, shown.stderr
    assert "batch 64" in shown.stderr


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, model: str) -> None:
    """Of the rows only a few are read ahead, so the 20,000 that fail at once take no more than 200."""
    code = (
        "import resource, sys\nfrom anthesis.cli import main\n"
        "try:\n    main()\nfinally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    peaks = []
    for count in (200, 20_000):
        data = tmp_path / f"{count}.jsonl"
        data.write_text('{"content": "fox"}\n' + '{"content": 1}\n' * count)
        run = [sys.executable, "-c", code, *arguments(model, data, tmp_path / f"{count}.out.jsonl")]
        result = subprocess.run(run, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stderr.split()[-1]))
    assert peaks[1] - peaks[0] < 10_000  # KiB
