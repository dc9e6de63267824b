"""Verdicts: the statistics beside brute force and on simulated machines, what is comparable, and the command."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anthesis.bench import Report, Request, sweep
from anthesis.bench.measurement import Run
from anthesis.bench.paired import LEAST_PAIRS, p_value, shift
from anthesis.bench.result import Row, Turns
from anthesis.bench.verdict import BETWEEN_PROCESSES, SIGNIFICANCE, Comparison, _verdict, compare
from command_line import fail, succeed, tiny_model

# --- statistics -------------------------------------------------------------------------------------------------------


def p_by_enumeration(differences: Sequence[float]) -> float:
    """Of all ways to give the differences signs: twice the part with a rank sum as far on one side, or farther."""
    kept = [value for value in differences if value != 0]
    sizes = [abs(value) for value in kept]
    ranks = [sum(x < y for x in sizes) + (sum(x == y for x in sizes) + 1) / 2 for y in sizes]
    observed = sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    above, below = (sum(s >= observed for s in sums), sum(s <= observed for s in sums))
    return min(1.0, 2 * min(above, below) / len(sums))


@pytest.mark.parametrize("count", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("decimals", [1, 6])
def test_the_test_is_exact(count: int, decimals: int) -> None:
    """With one decimal there are equal differences, and zeros."""
    rng = np.random.default_rng(count)
    for shifted in (0.0, 0.3, 1.0):
        differences = [float(value) for value in rng.normal(shifted, 0.5, count).round(decimals)]
        assert p_value(differences) == pytest.approx(p_by_enumeration(differences), abs=1e-12)


def test_known_critical_values() -> None:
    """Of the signed-rank test, two-sided at 0.01, as tables have them: n = 8: 0, n = 10: 3, n = 20: 37."""
    for count, critical in ((8, 0), (10, 3), (20, 37)):
        for against, is_rejected in ((critical, True), (critical + 1, False)):
            assert (p_value(signed(count, against)) < SIGNIFICANCE) is is_rejected


def signed(count: int, negative_sum: int) -> list[float]:
    """1 to count, of which some are negative whose sum is this."""
    values = [float(number) for number in range(1, count + 1)]
    for number in range(count, 0, -1):
        if number <= negative_sum:
            negative_sum -= number
            values[number - 1] *= -1
    assert negative_sum == 0
    return values


def test_no_difference_at_all() -> None:
    assert p_value([0.0] * 10) == 1.0
    assert shift([0.0] * 10).low == shift([0.0] * 10).high == 0.0


def test_too_few_pairs_can_not_reach_the_level() -> None:
    assert p_value([1.0 + i for i in range(LEAST_PAIRS)]) < SIGNIFICANCE
    assert p_value([1.0 + i for i in range(LEAST_PAIRS - 1)]) > SIGNIFICANCE


def test_the_interval_is_what_the_test_does_not_reject() -> None:
    rng = np.random.default_rng(0)
    for count in (8, 9, 10, 15, 40):
        differences = rng.standard_t(2, count)
        found = shift([float(value) for value in differences])
        assert found.low < found.estimate < found.high
        for end, inside in ((found.low, 1e-9), (found.high, -1e-9)):
            assert p_value([float(value) - end - inside for value in differences]) >= SIGNIFICANCE
            assert p_value([float(value) - end + inside for value in differences]) < SIGNIFICANCE


def test_many_pairs_are_quick_and_agree_with_few() -> None:
    rng = np.random.default_rng(1)
    found = shift([float(value) for value in rng.normal(0.02, 0.05, 20_000)])
    assert found.low < 0.02 < found.high
    assert found.high - found.low == pytest.approx(2 * 2.576 * 0.05 / math.sqrt(20_000), rel=0.3)


def machine(rng: np.random.Generator, rounds: int, slower: float, between: float) -> list[float]:
    """Log ratios of a simulated session.

    A disturbance that fades over several runs slows both sides; one run in ten meets something that costs up to half
    of its time; and a coin decides which side is first. The processes differ by `between` for the whole session.
    """
    drift, level = np.empty(2 * rounds), 0.0
    for run in range(2 * rounds):
        level = 0.8 * level + rng.normal(0, 0.02)
        drift[run] = level + (rng.uniform(0, 0.5) if rng.random() < 0.1 else 0.0)
    first, second = drift.reshape(rounds, 2).T
    sign = np.where(rng.random(rounds) < 0.5, 1, -1)
    return [float(x) for x in sign * (first - second) - math.log1p(slower) + between]


SESSIONS = 500


def outcomes(rounds: int, slower: float, between: float) -> list[str]:
    """Of sessions whose processes differ by up to `between`, one way or the other."""
    rng = np.random.default_rng(2)
    logs = [machine(rng, rounds, slower, between * rng.uniform(-1, 1)) for _ in range(SESSIONS)]
    return [_verdict("in all", one, BETWEEN_PROCESSES).outcome for one in logs]


@pytest.mark.parametrize("rounds", [10, 40])
def test_the_same_seldom_seems_different(rounds: int) -> None:
    found = outcomes(rounds, slower=0.0, between=math.log1p(BETWEEN_PROCESSES))
    assert found.count("no difference seen") >= 0.99 * SESSIONS


def test_a_tenth_is_seen_among_disturbances() -> None:
    assert outcomes(40, slower=0.1, between=0.02).count("slower") >= 0.95 * SESSIONS


def test_without_disturbances_ten_rounds_see_a_tenth() -> None:
    rng = np.random.default_rng(3)
    logs = [[float(x) for x in rng.normal(-math.log(1.1), 0.03, 10)] for _ in range(300)]
    assert sum(_verdict("in all", one, BETWEEN_PROCESSES).outcome == "slower" for one in logs) >= 0.95 * 300


# --- what is comparable -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Report:
    request = Request(
        model=tiny_model(tmp_path_factory.mktemp("model")),
        max_new_tokens=5,
        warmup=0,
        runs=1,
        min_s=0,
        device="reference",
    )
    return sweep(request)


def with_times(row: Row, run_s: Sequence[float], turns: Turns | None = None, batch: int = 1) -> Row:
    """The row as if its runs had taken these times, a third of them for the prompt."""
    assert row.measurement is not None
    runs = tuple(
        Run(
            total_s=s,
            token_s=(tuple(float(t) for t in np.linspace(s / 3, 0.99 * s, 5)),) * batch,
            read_bytes_per_s=(),
        )
        for s in run_s
    )
    return replace(row, measurement=replace(row.measurement, runs=runs), turns=turns)


def in_turns(report: Report, a_s: Sequence[float], b_s: Sequence[float], session: str = "s", batch: int = 1) -> Report:
    """A session with these times."""
    order = tuple(range(0, 2 * len(a_s), 2))
    a = Turns(session=session, side="A", changed="", order=order)
    b = Turns(session=session, side="B", changed="threads=1", order=tuple(i + 1 for i in order))
    row = report.rows[0]
    return replace(report, rows=(with_times(row, a_s, a), with_times(row, b_s, b, batch)))


def only(*reports: Report) -> Comparison:
    (comparison,) = compare([(f"{number}.json", report) for number, report in enumerate(reports)])
    return comparison


def noisy(rounds: int, seed: int = 0, slower: float = 0.0) -> list[float]:
    return [(1 + slower) * (1 + float(x)) for x in np.random.default_rng(seed).normal(0, 0.01, rounds)]


def test_a_difference_is_told_with_its_interval(measured: Report) -> None:
    found = only(in_turns(measured, noisy(12), noisy(12, 1, slower=-0.2)))
    assert [verdict.quantity for verdict in found.verdicts] == ["in all", "first token", "per token"]
    for verdict in found.verdicts:
        assert verdict.outcome == "faster"
        assert verdict.low < 1.25 < verdict.high
        assert verdict.p_value < SIGNIFICANCE
        assert verdict.pairs == 12
        assert (
            verdict.text
            == f"B is {verdict.ratio:.3g} x as fast as A (99 % interval {verdict.low:.3g} to {verdict.high:.3g})"
        )
    slower = only(in_turns(measured, noisy(12), noisy(12, 1, slower=0.25))).verdicts[0]
    assert (slower.outcome, round(slower.ratio, 1)) == ("slower", 0.8)
    assert found.medians["in all"][0] == pytest.approx(1.0, abs=0.02)
    assert found.b == "batch 1, weights native, tp 1 (threads=1), row 2 of 0.json"


def test_no_difference_says_what_could_be_missed(measured: Report) -> None:
    verdict = only(in_turns(measured, noisy(12), noisy(12, 1))).verdicts[0]
    assert verdict.outcome == "no difference seen"
    assert verdict.text.startswith("no difference seen (99 % interval ")
    assert verdict.text.endswith("; differences under 3.0% could be missed)")
    wide = only(in_turns(measured, [1.0] * 8, [1.0, 4.0] * 4)).verdicts[0]
    assert wide.text.endswith("differences under 4 x could be missed)")


def test_what_two_processes_of_one_program_differ_by_is_no_difference(measured: Report) -> None:
    verdict = only(in_turns(measured, noisy(40), noisy(40, 1, slower=0.02))).verdicts[0]
    assert verdict.high < 1
    assert verdict.outcome == "no difference seen"
    assert verdict.text.startswith(
        "no difference seen beyond the 3% by which two processes of one program may differ ("
    )


def test_sessions_with_new_processes_see_what_one_can_not(measured: Report) -> None:
    def sessions(count: int) -> list[Report]:
        return [
            in_turns(measured, noisy(10, 2 * i), noisy(10, 2 * i + 1, slower=0.02), session=str(i))
            for i in range(count)
        ]

    found = only(*sessions(LEAST_PAIRS))
    assert len(found.sessions) == LEAST_PAIRS
    assert found.verdicts[0].pairs == LEAST_PAIRS
    assert found.verdicts[0].outcome == "slower"
    assert found.b.endswith("row 2 of 0.json, and 7 more sessions")
    apart = compare([(str(i), report) for i, report in enumerate(sessions(LEAST_PAIRS - 1))])
    assert len(apart) == LEAST_PAIRS - 1
    assert {one.verdicts[0].outcome for one in apart} == {"no difference seen"}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("changes", [{"commit": "c-dirty-0"}, {"versions": {"triton": "3.0"}}, {"version": "0.0.9"}])
def test_sessions_of_other_software_are_no_sessions_of_the_same_sides(
    measured: Report, side: int, changes: dict[str, object]
) -> None:
    first, *others = [
        in_turns(measured, noisy(10, 2 * i), noisy(10, 2 * i + 1), session=str(i)) for i in range(LEAST_PAIRS)
    ]
    assert len(only(first, *others).sessions) == LEAST_PAIRS
    rows = list(first.rows)
    assert rows[side].turns is not None
    rows[side] = replace(rows[side], turns=replace(rows[side].turns, **changes))
    found = compare([(str(i), report) for i, report in enumerate([replace(first, rows=tuple(rows)), *others])])
    assert [len(one.sessions) for one in found] == [1] * LEAST_PAIRS


def test_other_numbers_of_sequences_are_compared_by_token(measured: Report) -> None:
    found = only(in_turns(measured, noisy(12), noisy(12, 1, slower=1.0), batch=4))
    verdict = found.verdicts[0]
    assert verdict.quantity == "in all, by token"
    assert verdict.ratio == pytest.approx(2.0, rel=0.02)
    assert found.medians[verdict.quantity] == pytest.approx((1 / 5, 2 / 20), rel=0.02)


def test_a_session_may_lie_in_two_files(measured: Report) -> None:
    whole = in_turns(measured, noisy(12), noisy(12, 1))
    a, b = (replace(whole, rows=(row,)) for row in whole.rows)
    assert only(a, b).verdicts == only(b, a).verdicts == only(whole).verdicts
    assert compare([("a", a)]) == []
    assert compare([("file", whole), ("its copy", whole)])[0].verdicts == only(whole).verdicts
    assert len(compare([("file", whole), ("its copy", whole)])) == 1


@pytest.mark.parametrize(
    ("rounds", "changes", "reason"),
    [
        (7, {}, "7 rounds are too few, at least 8 are needed; take more --runs"),
        (9, {"invalid": ("a capture in timed run 1",)}, "side B is invalid: a capture in timed run 1"),
        (9, {"runs": ()}, "side A has 9 runs and side B 0; the file is damaged"),
        (
            1,
            {"runs": (Run(total_s=1, token_s=((),), read_bytes_per_s=()),)},
            "side B has a run with impossible times; ",
        ),
        (
            1,
            {"runs": (Run(total_s=0, token_s=((1,),), read_bytes_per_s=()),)},
            "side B has a run with impossible times; ",
        ),
    ],
)
def test_rows_in_turns_that_are_not_comparable(
    measured: Report, rounds: int, changes: dict[str, object], reason: str
) -> None:
    whole = in_turns(measured, noisy(rounds), noisy(rounds, 1, slower=1.0))
    a, b = whole.rows
    assert b.measurement is not None
    found = only(replace(whole, rows=(a, replace(b, measurement=replace(b.measurement, **changes)))))
    assert found.verdicts == ()
    assert str(found.not_comparable).startswith(f"not comparable: {reason}")


def test_a_side_without_a_measurement(measured: Report) -> None:
    whole = in_turns(measured, noisy(9), noisy(9, 1))
    a, b = whole.rows
    found = only(replace(whole, rows=(a, replace(b, measurement=None, error="out of memory"))))
    assert found.not_comparable == "not comparable: side B was not measured: out of memory"


def test_rows_that_took_no_turns_get_the_command_that_makes_them(measured: Report) -> None:
    (row,) = measured.rows
    other = replace(
        measured,
        request={**measured.request, "threads": 1},
        rows=(replace(row, point=replace(row.point, weights="int8", batch=2)),),
    )
    found = only(measured, other)
    assert found.verdicts == ()
    assert set(found.medians) == {"in all", "first token", "per token"}
    reason = str(found.not_comparable)
    assert reason.startswith("not comparable: they were not measured in turns; this does: anthesis bench ")
    words = shlex.split(reason.partition("this does: ")[2])
    assert words[-2] == "--against"
    assert set(words[-1].split(",")) == {"weights=int8", "batch=2", "threads=1"}
    assert str(only(measured, measured).not_comparable).endswith(" --against same")


def test_rows_of_two_machines_can_not_take_turns(measured: Report) -> None:
    other = replace(measured, machine=replace(measured.machine, processor="Another"))
    assert "two machines, which can't take turns" in str(only(measured, other).not_comparable)


def test_a_difference_that_against_can_not_say(measured: Report) -> None:
    for change in ({"max_new_tokens": 6}, {"prompt": "text"}):
        other = replace(measured, request={**measured.request, **change})
        assert "`anthesis bench ... --against ...` does that" in str(only(measured, other).not_comparable)


def test_rows_of_sweeps_stand_beside_those_of_the_same_point(measured: Report) -> None:
    (row,) = measured.rows
    rows = [replace(row, point=replace(row.point, batch=batch)) for batch in (1, 2, 4)]
    left, right = replace(measured, rows=tuple(rows[:2])), replace(measured, rows=tuple(rows[1:]))
    (found,) = compare([("left", left), ("right", right)])
    assert (found.a, found.b) == (
        "batch 2, weights native, tp 1, row 2 of left",
        "batch 2, weights native, tp 1, row 1 of right",
    )
    assert len(compare([("left", left)])) == 1


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_verdicts_or_one_document(measured: Report, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(in_turns(measured, noisy(12), noisy(12, 1, slower=0.5)).document()))
    lines = succeed("compare", str(path), str(path)).splitlines()
    assert lines[0] == f"A: batch 1, weights native, tp 1, row 1 of {path}"
    assert len(lines) == 5
    assert lines[2].startswith("  in all      ")
    assert ": B is 0.6" in lines[2]
    document = json.loads(succeed("compare", str(path), "--json"))
    (comparison,) = document["comparisons"]
    assert (document["kind"], comparison["sessions"], comparison["not_comparable"]) == ("compare", ["s"], None)
    assert [verdict["outcome"] for verdict in comparison["verdicts"]] == ["slower"] * 3
    assert lines[2].endswith(comparison["verdicts"][0]["text"])


def test_the_command_does_not_compare_what_took_no_turns(measured: Report, tmp_path: Path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    for file in (path, other):
        file.write_text(json.dumps(measured.document()))
    lines = succeed("compare", str(path), str(other)).splitlines()
    assert lines[-1].startswith("  not comparable: they were not measured in turns; this does: anthesis bench ")
    assert succeed("compare", str(path)) == "there are no two rows to compare\n"


def test_the_command_refuses_what_it_can_not_read(tmp_path: Path) -> None:
    assert "missing.json can't be read" in fail("compare", str(tmp_path / "missing.json"))
