"""Measurements with drafts: what they say was gained, by which steps, and what they find that can't be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from anthesis import LLM
from anthesis.bench import Measurement, Report, Request, measure
from anthesis.bench.derive import decode_s, decode_tokens
from anthesis.bench.drafts import speculation, unverified
from anthesis.bench.measurement import Drafts, Run
from anthesis.bench.point import LocalPoint
from anthesis.bench.result import Point, Row
from anthesis.bench.sweep import new_report
from anthesis.engine.sequence import per_token_s
from anthesis.engine.step_time import StepTimes
from anthesis.errors import RequestError
from anthesis.program.cost import cost
from anthesis.program.ir import Step
from anthesis.report.bench_line import line_of_row
from command_line import fail, tiny_model

PROMPT, NEW = 120, 30
REQUEST = Request(max_new_tokens=NEW, warmup=1, runs=3, min_s=0, speculate="lookup")


Steps = list[list[tuple[int, int]]]
Found = tuple[Measurement, list[Steps]]


class Free(StepTimes):
    """Steps that take the same whatever their rows, so that every draft is worth it."""

    def __init__(self) -> None:
        super().__init__([1e-3] * 10)

    def learn(self, num_rows: int, seconds: float) -> None:
        """Stays as it is."""


def measured(directory: Path, batch: int) -> Found:
    """A model of 96 tokens, so that the made-up prompt repeats itself; and the steps of its runs."""
    with LLM(tiny_model(directory), device="cpu", speculate="lookup", reuse_prefixes=False) as llm:
        speculating = llm._engine._speculation
        assert speculating is not None
        speculating.times = Free()
        steps: list[Steps] = []
        watch = llm.watch

        def watching(on_step: object) -> None:
            if on_step is not None:
                steps.append([])
                watch(lambda *step: (on_step(*step), steps[-1].append(step[1])))  # type: ignore[operator]
            else:
                watch(None)

        llm.watch = watching  # type: ignore[method-assign]
        point = Point(batch=batch, weights="native", tp=1, prompt_tokens=PROMPT)
        return measure(llm, REQUEST, point), steps[-REQUEST.runs :]


@pytest.fixture(scope="module", params=[1, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return measured(tmp_path_factory.mktemp("model"), request.param)


def test_what_drafts_gave_is_told_and_adds_up(found: Found) -> None:
    measurement, steps = found
    gained = measurement.speculation
    assert gained is not None and gained.acceptance is not None
    assert measurement.configuration.speculate == "lookup"
    assert measurement.runs_agree
    assert [reason for reason in measurement.invalid if "the least possible" not in reason] == []
    shares, per_step = [], []
    for run, observed in zip(measurement.runs, steps, strict=True):
        drafts, tokens = run.drafts, sum(map(len, run.token_s))
        assert drafts is not None
        assert tokens == len(run.token_s) * NEW == drafts.steps + drafts.accepted_tokens
        assert 0 < drafts.accepted_tokens <= drafts.drafted_tokens
        # tokens of one step came at one time, so as many times are different as there were steps
        assert sum(len(set(times)) for times in run.token_s) == drafts.steps
        after_prompts = [step for step in observed if all(before >= PROMPT for before, _ in step)]
        assert drafts.decode_steps == len(after_prompts)
        shares.append(drafts.accepted_tokens / drafts.drafted_tokens)
        per_step.append(tokens / drafts.steps)
    assert gained.acceptance.median == pytest.approx(sorted(shares)[1])
    assert gained.tokens_per_step.median == pytest.approx(sorted(per_step)[1])
    assert gained.tokens_per_step.median > 1


def test_the_time_of_a_step_is_shared_by_its_tokens(
    found: Found,
) -> None:
    measurement, _ = found
    between = measurement.speed.between_tokens_s
    assert between is not None
    assert between.count == sum(len(times) - 1 for run in measurement.runs for times in run.token_s)
    assert between.min > 0, "no token takes nothing"
    assert per_token_s((1.0, 3.0, 3.0, 7.0, 10.0, 10.0, 10.0)) == (1.0, 1.0, 4.0, 1.0, 1.0, 1.0)
    assert per_token_s((1.0,)) == ()


def test_the_limit_is_that_of_the_steps_that_ran(found: Found, tmp_path: Path) -> None:
    """Not that of a step for each token; each run has its own."""
    measurement, steps = found
    with LLM(tiny_model(tmp_path), device="cpu", load=False) as llm:
        (program,) = llm.loaded.programs("argmax")
    ran = [step for of_run in steps for step in of_run if all(before >= PROMPT for before, _ in step)]
    nbytes = 0
    for step in ran:
        rows = sum(count for _, count in step)
        of_rows = cost(program, Step(rows=rows, logit_rows=rows, context=0, sequences=0))
        token = cost(program, Step(rows=0, logit_rows=0, context=1, sequences=1)).cache_bytes
        nbytes += of_rows.weight_bytes + (rows + sum(before + count for before, count in step)) * token
    limit, traffic = measurement.limit, measurement.traffic
    assert limit is not None and traffic is not None
    assert limit.step_bytes == nbytes // len(ran)
    seconds = [decode_s(run) / run.drafts.decode_steps for run in measurement.runs if run.drafts is not None]
    assert traffic.step_s.median == pytest.approx(sorted(seconds)[1])
    tokens = sum(map(decode_tokens, measurement.runs))
    assert traffic.bytes_per_token == pytest.approx(nbytes / tokens, rel=0.01)  # rows and context are rounded down


def test_tokens_that_no_row_gave_are_found(found: Found) -> None:
    measurement, steps = found
    run = measurement.runs[0]
    assert run.drafts is not None
    assert list(unverified(measurement.runs, steps, PROMPT)) == []

    def said(**changes: int) -> list[str]:
        assert run.drafts is not None
        return list(unverified([replace(run, drafts=replace(run.drafts, **changes))], steps[:1], PROMPT))

    (reason,) = said(steps=run.drafts.steps - 1)
    assert reason.startswith(f"timed run 1 has {len(run.token_s) * NEW} tokens, and {run.drafts.steps - 1} steps gave")
    (reason,) = said(drafted_tokens=run.drafts.drafted_tokens + 5)
    assert f"and there were {run.drafts.drafted_tokens} rows for them" in reason
    (reason,) = said(steps=run.drafts.steps + 1, accepted_tokens=run.drafts.accepted_tokens - 1)
    assert "is said to have verified" in reason
    without = [[(before, 1) for before, _ in step] for step in steps[0]]
    (reason,) = unverified([run], [without], PROMPT)
    assert "and there were 0 rows for them" in reason
    assert list(unverified([replace(run, drafts=None)], [[]], PROMPT)) == []


def test_runs_that_drafted_nothing_have_no_acceptance() -> None:
    run = Run(total_s=3.0, token_s=((1.0, 2.0, 3.0),), read_bytes_per_s=())
    assert speculation([run]) is None
    nothing = speculation([replace(run, drafts=Drafts(steps=3, drafted_tokens=0, accepted_tokens=0, decode_steps=2))])
    assert nothing is not None and nothing.acceptance is None
    assert (nothing.drafted_tokens.median, nothing.tokens_per_step.median) == (0.0, 1.0)


def test_the_line_of_a_report_says_it(found: Found) -> None:
    measurement, _ = found
    point = Point(batch=len(measurement.runs[0].token_s), weights="native", tp=1, prompt_tokens=PROMPT)
    report = replace(new_report(REQUEST), rows=(Row(point=point, measurement=measurement, error=None),))
    again = Report.from_document(json.loads(json.dumps(report.document())))
    assert again.rows == report.rows
    line = line_of_row(report.rows[0], report, "r.json", "")
    gained = measurement.speculation
    assert gained is not None and gained.acceptance is not None
    assert (line.speculate, line.acceptance) == ("lookup", gained.acceptance.median)
    assert (line.drafted_tokens, line.tokens_per_step) == (gained.drafted_tokens.median, gained.tokens_per_step.median)
    assert "drafts by lookup" in line.label


def test_operations_of_steps_with_drafts_are_refused() -> None:
    with pytest.raises(RequestError, match="drafts make steps differ"):
        Request(operations=True, speculate="lookup")
    assert "drafts make steps differ" in fail("bench", "--ops", "--speculate", "lookup")


def test_every_run_computes_its_prompts(tmp_path: Path) -> None:
    """Else all but the first would be runs of something else."""
    request = Request(model=tiny_model(tmp_path), device="reference", max_new_tokens=1, warmup=2, runs=1, min_s=0)
    rows: list[int] = []
    with LocalPoint(request, Point(batch=2, weights="native", tp=1, prompt_tokens=PROMPT)) as point:
        point.load(lambda text, share: None)
        point._llm.watch(lambda finish, sequences, *_: rows.append(sum(count for _, count in sequences)))
        point._session._once()
        once = sum(rows)
        point._session._once()
    assert (once, sum(rows)) == (2 * PROMPT, 4 * PROMPT)
