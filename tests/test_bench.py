"""Measurements of tiny models, really run, and the arithmetic of every figure derived from samples."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anthesis import LLM
from anthesis.bench import Measurement, Report, Request, measure, read_report, sweep
from anthesis.bench.derive import decode_s, decode_tokens, has_settled, prefill_s, speed, tokens_sha256
from anthesis.bench.limit import work_of
from anthesis.bench.measure import _check_count
from anthesis.bench.measurement import Run
from anthesis.bench.result import Point
from anthesis.bench.statistic import summary
from anthesis.bench.traffic import traffic
from anthesis.errors import AnthesisError, RequestError
from anthesis.json_text import format_json
from anthesis.records import MAX_RESULT_VALUES
from command_line import Terminal
from command_line import command as command_line

VOCAB, HIDDEN, LAYERS, HEADS = 96, 64, 2, 4
BATCH, NEW = 3, 6
POINT = Point(batch=1, weights="native", tp=1)


def write_model(directory: Path, **changes: object) -> str:
    """MODEL of a small BLOOM with random bf16 weights and no tokenizer."""
    sizes = {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB, "eos_token_id": 2}
    path = directory / "config.json"
    path.write_text(json.dumps({"model_type": "bloom", **sizes, **changes}))
    return f"random:{path}"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "anthesis", "bench", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    model = write_model(tmp_path_factory.mktemp("model"))
    return sweep(
        Request(model=model, batch=(BATCH,), max_new_tokens=NEW, warmup=2, runs=2, min_s=0, device="reference")
    )


@pytest.fixture(scope="module")
def measured(report: Report) -> Measurement:
    (row,) = report.rows
    assert row.measurement is not None
    return row.measurement


def test_every_sample_is_kept_and_every_token_counted(measured: Measurement) -> None:
    assert len(measured.runs) == 2
    assert len(measured.warmup.run_s) == 2
    assert not measured.warmup.settled  # two runs are not three
    assert measured.speed.generated_tokens == BATCH * NEW
    for run in measured.runs:
        assert [len(times) for times in run.token_s] == [NEW] * BATCH
        assert all(times == tuple(sorted(times)) and times[0] > 0 for times in run.token_s)
        assert max(times[-1] for times in run.token_s) <= run.total_s
        assert len(run.read_bytes_per_s) >= 3
    assert measured.load_s > 0


def test_every_figure_follows_from_the_samples(measured: Measurement) -> None:
    runs, speed = measured.runs, measured.speed
    totals = [run.total_s for run in runs]
    assert speed.total_s.median == statistics.median(totals)
    assert (speed.total_s.min, speed.total_s.max, speed.total_s.count) == (min(totals), max(totals), 2)
    assert speed.tokens_per_s.median == pytest.approx(statistics.median([BATCH * NEW / total for total in totals]))
    firsts = [times[0] for run in runs for times in run.token_s]
    assert speed.first_token_s.count == 2 * BATCH
    assert speed.first_token_s.median == statistics.median(firsts)
    gaps = np.concatenate([np.diff(times) for run in runs for times in run.token_s])
    assert speed.between_tokens_s is not None
    assert speed.between_tokens_s.count == len(gaps) == 2 * BATCH * (NEW - 1)
    assert speed.between_tokens_s.p95 == pytest.approx(np.percentile(gaps, 95))
    assert speed.between_tokens_s.standard_deviation == pytest.approx(np.std(gaps, ddof=1))
    prefill = [7 * BATCH / max(times[0] for times in run.token_s) for run in runs]
    assert speed.prefill_tokens_per_s.median == pytest.approx(statistics.median(prefill))
    decode = [
        BATCH * (NEW - 1) / (max(times[-1] for times in run.token_s) - max(times[0] for times in run.token_s))
        for run in runs
    ]
    assert speed.decode_tokens_per_s is not None
    assert speed.decode_tokens_per_s.median == pytest.approx(statistics.median(decode))


def test_the_share_of_the_bandwidth_follows_from_bytes_and_samples(measured: Measurement) -> None:
    found = measured.traffic
    assert found is not None
    vectors = 4 * HIDDEN + LAYERS * 13 * HIDDEN
    matrices = VOCAB * HIDDEN + LAYERS * 12 * HIDDEN**2
    assert measured.model.parameters == vectors + matrices
    assert found.weight_bytes_per_step == 2 * matrices + 4 * vectors + BATCH * 2 * HIDDEN
    context = 7 + NEW // 2
    assert found.mean_context_tokens == context
    assert found.cache_bytes_per_step == BATCH * (context + 1) * 2 * LAYERS * HIDDEN * 2
    step_bytes = found.weight_bytes_per_step + found.cache_bytes_per_step
    assert found.bytes_per_token == pytest.approx(step_bytes / BATCH)
    steps = [decode_s(run) / (NEW - 1) for run in measured.runs]
    shares = [
        step_bytes / step / statistics.median(run.read_bytes_per_s)
        for step, run in zip(steps, measured.runs, strict=True)
    ]
    assert found.step_s.median == pytest.approx(statistics.median(steps))
    assert found.share_of_bandwidth is not None
    assert found.share_of_bandwidth.median == pytest.approx(statistics.median(shares))
    assert found.read_bandwidth_bytes_per_s is not None
    assert found.read_bandwidth_bytes_per_s.count == sum(len(run.read_bytes_per_s) for run in measured.runs)


def test_the_result_says_what_ran(report: Report, measured: Measurement, tmp_path: Path) -> None:
    assert measured.model.is_random
    assert (measured.model.weight_kinds, measured.model.cache_dtype) == (("bf16",), "bf16")
    assert (measured.device.name, measured.device.batch_invariant) == ("reference", True)
    assert measured.configuration.prompt is None
    assert measured.configuration.prompt_token_ids == tuple(7919 * i % VOCAB for i in range(1, 8))
    assert measured.runs_agree
    assert 10e6 < measured.process_peak_memory_bytes < 100e9
    assert report.versions["numpy"] == np.__version__
    assert set(report.versions) == {"anthesis", "python", "numpy"}
    assert report.machine.usable_cores >= 1
    assert report.machine.available_memory_bytes <= report.machine.memory_bytes
    with LLM(write_model(tmp_path), device="reference") as llm:
        prompt = list(measured.configuration.prompt_token_ids)
        (completion,) = llm.generate([prompt], max_new_tokens=NEW, ignore_eos=True)
    ids = np.array(completion.token_ids * BATCH, "<i4")
    assert measured.tokens_sha256 == hashlib.sha256(ids.tobytes()).hexdigest()


def test_a_report_survives_json(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(report.document(), allow_nan=False))
    again = read_report(path)
    assert again.rows == report.rows
    assert again.document() == report.document()
    assert (again.schema_version, again.kind) == (1, "bench")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "a JSON object is needed"),
        ('{"kind": "plan", "schema_version": 1}', "not a result"),
        ('{"kind": "bench", "schema_version": 2}', "schema_version 2"),
        ('{"kind": "bench", "schema_version": 1, "rows": []}', "lacks started_at, request"),
        (None, "can't be read"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=rf"result\.json.*{message}"):
        read_report(path)


def test_a_single_token_has_no_decoding(tmp_path: Path) -> None:
    with LLM(write_model(tmp_path), device="reference") as llm:
        measured = measure(llm, Request(max_new_tokens=1, warmup=0, runs=1, min_s=0), replace(POINT, prompt_tokens=4))
    assert len(measured.configuration.prompt_token_ids) == 4
    assert measured.speed.generated_tokens == 1
    assert measured.speed.between_tokens_s is measured.speed.decode_tokens_per_s is measured.traffic is None
    assert measured.speed.total_s.standard_deviation is None
    assert measured.warmup.run_s == ()


def test_runs_end_at_their_bound_or_when_three_agree(tmp_path: Path) -> None:
    assert not has_settled([])
    assert not has_settled([1.0, 1.0])
    assert has_settled([9.0, 1.0, 1.0, 1.0])
    assert has_settled([1.0, 1.05, 1.02])
    assert not has_settled([1.0, 1.06, 1.02])
    assert not has_settled([1.0, 1.0, 1.0, 2.0])
    with LLM(write_model(tmp_path), device="reference") as llm:
        measured = measure(llm, Request(max_new_tokens=2, warmup=40, runs=1, min_s=0), POINT)
    count = len(measured.warmup.run_s)
    assert 3 <= count <= 40
    assert measured.warmup.settled == has_settled(measured.warmup.run_s)
    assert measured.warmup.settled or count == 40
    assert not any(has_settled(measured.warmup.run_s[:i]) for i in range(count))


def test_tokens_that_come_during_the_prefill_of_others_are_no_decoding() -> None:
    # the second sequence has its first token when the first one has two already
    run = Run(total_s=5.0, token_s=((1.0, 2.0, 3.0), (2.5, 3.0, 4.5)), read_bytes_per_s=(10.0, 20.0, 1000.0))
    assert prefill_s(run) == 2.5
    assert decode_s(run) == 2.0
    assert decode_tokens(run) == 3
    found = speed([run], prompt_tokens=10)
    assert found.prefill_tokens_per_s.median == 2 * 10 / 2.5
    assert found.decode_tokens_per_s is not None
    assert found.decode_tokens_per_s.median == 3 / 2.0
    assert found.tokens_per_s.median == 6 / 5.0


def test_without_bandwidth_there_is_no_share(tmp_path: Path) -> None:
    run = Run(total_s=3.0, token_s=((1.0, 2.0, 3.0),), read_bytes_per_s=())
    with LLM(write_model(tmp_path), device="reference") as llm:
        work, programs = work_of(llm, run, 4, 3), llm.loaded.programs("argmax")
    found = traffic([work], programs, [run], "not measured: no extension")
    assert found is not None
    assert found.share_of_bandwidth is found.read_bandwidth_bytes_per_s is None
    assert found.read_bandwidth_note == "not measured: no extension"
    assert found.step_s.median == 1.0


def test_summaries() -> None:
    assert summary([]) is None
    found = summary([4.0, 1.0, 2.0, 3.0, 100.0])
    assert found is not None
    assert (found.count, found.median, found.min, found.max) == (5, 3.0, 1.0, 100.0)
    assert found.p95 == pytest.approx(4 + 0.8 * 96)
    assert found.standard_deviation == pytest.approx(math.sqrt(sum((x - 22) ** 2 for x in (4, 1, 2, 3, 100)) / 4))


def test_a_fingerprint_tells_order_and_number_apart() -> None:
    assert tokens_sha256([[1, 2], [3]]) != tokens_sha256([[1, 3], [2]])
    assert tokens_sha256([[1]]) == hashlib.sha256(b"\1\0\0\0").hexdigest()


def test_a_run_of_another_length_fails(tmp_path: Path) -> None:
    with LLM(write_model(tmp_path), device="reference", max_context=10) as llm:
        (short,) = llm.generate([1, 2, 3], max_new_tokens=20, ignore_eos=True)
    with pytest.raises(AnthesisError, match=r"generated 7 tokens instead of 20 .*context"):
        _check_count([short], 20)


def test_more_tokens_than_fit_the_context_are_refused_before_the_first_run(tmp_path: Path) -> None:
    begun: list[str] = []
    with LLM(write_model(tmp_path), device="reference", max_context=10) as llm:
        request = Request(max_new_tokens=4, warmup=0, runs=1, min_s=0)
        with pytest.raises(RequestError, match="7 prompt tokens and 4 new ones do not fit the context of 10"):
            measure(llm, request, POINT, progress=lambda text, done: begun.append(text))
        assert begun == []
        measure(llm, replace(request, max_new_tokens=3), POINT)


def test_a_point_alone_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="can't be split over 99 ranks"):
        sweep(Request(model=write_model(tmp_path), tp=(99,), device="reference"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": (1, 0)}, "batch is 0"),
        ({"batch": (257,)}, "at most 256"),
        ({"batch": ()}, "batch is empty"),
        ({"weights": ()}, "weights is empty"),
        ({"runs": 0}, "runs is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompt_tokens": (0,)}, "prompt_tokens is 0"),
        ({"prompt": "text", "prompt_tokens": (3,)}, "two prompts"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request(**changes)  # type: ignore[arg-type]


def test_a_text_needs_a_tokenizer(tmp_path: Path) -> None:
    with (
        LLM(write_model(tmp_path), device="reference") as llm,
        pytest.raises(RequestError, match="has no tokenizer"),
    ):
        measure(llm, Request(prompt="text"), POINT)


def test_the_default_model_takes_the_default_prompt() -> None:
    with LLM(device="reference") as llm:
        measured = measure(llm, Request(max_new_tokens=2, warmup=0, runs=1, min_s=0), POINT)
        assert llm.tokenizer is not None
        prompt = llm.tokenizer.encode("DeepSpeed is a machine learning framework")
    assert measured.configuration.prompt == "DeepSpeed is a machine learning framework"
    assert measured.configuration.prompt_token_ids == tuple(prompt)
    assert not measured.model.is_random
    assert measured.model.weight_kinds == ("int4m", "int8-g32")


@pytest.mark.parametrize("columns", [80, 40])
def test_the_table_is_whole_on_a_terminal(columns: int) -> None:
    options = ("--device", "reference", "-n", "3", "--warmup", "0", "--seconds", "0", "--runs", "1")
    terminal = Terminal(command_line("bench", *options), COLUMNS=str(columns))
    assert terminal.finish() == 0
    lines = [line.rpartition("\x1b[2K")[2] for line in terminal.output.splitlines()]  # what a bar leaves
    header = next(i for i, line in enumerate(lines) if line.startswith("batch weights"))
    assert re.split(" +", lines[header]) == [
        "batch", "weights", "first", "token", "p95", "prompt", "decode", "in", "all", "limit",
    ]  # fmt: skip
    cells = r" +1 int4m\+int8-g32( +[\d.,]+ m?s){3}( +[\d.,]+/s){2} +[\d.,]+ m?s +([\d.]+%|-)"
    assert re.fullmatch(cells, lines[header + 1])
    assert len(lines[header]) == len(lines[header + 1]) <= 80
    assert "…" not in "".join(lines[header:])


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    options = ("--prompt-tokens", "5", "-n", "3", "--warmup", "0", "--seconds", "0", "--runs", "2", "--json")
    result = command(write_model(tmp_path), "--device", "reference", *options)
    assert result.returncode == 0, result.stderr
    (row,) = Report.from_document(json.loads(result.stdout)).rows
    assert row.measurement is not None
    assert len(row.measurement.configuration.prompt_token_ids) == 5
    assert len(row.measurement.runs) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "1,x"), "--batch '1,x' is not a comma list of numbers"),
        (("--weights", "bf16,"), "has an empty entry"),
        (("--tp", "99"), "can't be split over 99 ranks"),
        (("-o", "missing/result.json"), "no directory missing"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = command(write_model(tmp_path), "--device", "reference", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr.splitlines()[-1]


def test_more_samples_than_a_result_can_hold_are_refused() -> None:
    Request(batch=(1, 8, 32, 64), weights=("bf16", "int8", "int4"), prompt_tokens=(7, 512))
    with pytest.raises(RequestError, match=r"2,560,000 times of tokens are more than the 2,097,152 that a result can"):
        Request(batch=(256,), max_new_tokens=1000)


@pytest.mark.slow
def test_the_largest_result_is_read_again(tmp_path: Path, report: Report) -> None:
    (row,) = report.rows
    assert row.measurement is not None
    run = row.measurement.runs[0]
    long = replace(run, token_s=(tuple(round(0.0123456789 * i, 9) for i in range(1, MAX_RESULT_VALUES // 2)),))
    path = tmp_path / "large.json"
    path.write_text(
        format_json(
            replace(report, rows=(replace(row, measurement=replace(row.measurement, runs=(long,))),)).document()
        )
    )
    (again,) = read_report(path).rows
    assert again.measurement is not None
    assert again.measurement.runs == (long,)
