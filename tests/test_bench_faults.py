"""Faults planted into what is measured and into how: each shows in the figures, or makes the row invalid."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anthesis import LLM
from anthesis.bench import Measurement, Request, measure
from anthesis.bench.audit import (
    bandwidth_moved,
    idle_ends,
    marks,
    miscounted,
    still_at_work,
    too_fast,
    unaccounted,
    wrong_bytes,
    wrong_rates,
)
from anthesis.bench.derive import decode_s, prefill_s, speed
from anthesis.bench.limit import limit, work_of
from anthesis.bench.measure import Session
from anthesis.bench.measurement import Run, Warmup
from anthesis.bench.result import Point
from anthesis.devices import OPENERS
from anthesis.devices.cpu.device import CpuDevice, CpuExecutable
from anthesis.devices.reference import ReferenceDevice
from anthesis.errors import AnthesisError
from anthesis.program.attend import Attend
from anthesis.program.cost import cost
from anthesis.program.ir import Array, Arrays, Program, Step
from anthesis.program.ops import Linear
from command_line import tiny_model

NEW, RUNS = 5, 3
POINT = Point(batch=2, weights="native", tp=1)
REQUEST = Request(max_new_tokens=NEW, warmup=1, runs=RUNS, min_s=0)
SLEEP_S = 0.02

Run1 = Callable[[Arrays], dict[str, Array]]


class ChangedDevice(ReferenceDevice):
    """The reference device, whose steps are run by a function of ours that is given the real one.

    Args:
        change: makes what is called in place of the executable's `run`.
    """

    def __init__(self, change: Callable[[Run1], Run1]) -> None:
        super().__init__()
        self._change = change

    def compile(self, program: Program, weights: Mapping[str, Array], cache: dict[str, Array]) -> Any:
        executable = super().compile(program, weights, cache)
        executable.run = self._change(executable.run)  # type: ignore[method-assign]
        return executable


@contextmanager
def opened(tmp_path: Path, device: Any = None) -> Iterator[LLM]:
    """A tiny model, on a device of ours in place of the reference one."""
    with pytest.MonkeyPatch.context() as patched:
        if device is not None:
            patched.setitem(OPENERS, "reference", lambda threads, seat, invariant: device)
        with LLM(tiny_model(tmp_path), device="reference") as llm:
            yield llm


def sleeping_in_decode(run: Run1) -> Run1:
    """Steps with a row for each sequence, so no prompt, take longer."""

    def slower(inputs: Arrays) -> dict[str, Array]:
        if len(inputs["tokens"]) == POINT.batch:
            time.sleep(SLEEP_S)
        return run(inputs)

    return slower


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """Nothing planted: nothing may be found."""
    with opened(tmp_path_factory.mktemp("sound")) as llm:
        return measure(llm, REQUEST, POINT)


def test_nothing_speaks_against_a_sound_run(sound: Measurement) -> None:
    assert sound.invalid == ()
    assert sound.timed_s is not None and sound.between_s is not None
    assert sound.between_s < sound.timed_s
    assert sound.limit is not None and sound.limit.step_bytes is not None


def test_a_sleep_in_decode_is_in_the_decode_clock_and_in_no_other(tmp_path: Path, sound: Measurement) -> None:
    with opened(tmp_path, ChangedDevice(sleeping_in_decode)) as llm:
        slow = measure(llm, REQUEST, POINT)
    assert slow.invalid == ()
    assert slow.speed.between_tokens_s is not None
    assert slow.speed.between_tokens_s.min >= SLEEP_S
    for run in slow.runs:
        assert decode_s(run) >= (NEW - 1) * SLEEP_S
        assert run.total_s >= (NEW - 1) * SLEEP_S
    assert min(map(prefill_s, slow.runs)) < SLEEP_S
    assert slow.traffic is not None
    assert slow.traffic.step_s.median >= SLEEP_S
    assert slow.speed.decode_tokens_per_s is not None
    assert slow.speed.decode_tokens_per_s.max <= POINT.batch / SLEEP_S


def test_a_sleep_that_no_clock_has_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = Session._once

    def stopping_early(self: Session) -> Any:
        found = once(self)
        time.sleep(SLEEP_S)
        return found

    monkeypatch.setattr(Session, "_once", stopping_early)
    with opened(tmp_path) as llm:
        (reason,) = measure(llm, REQUEST, POINT).invalid
    assert "from the first timed run to the last are in no clock" in reason


def test_time_in_two_clocks_is_found() -> None:
    run = Run(total_s=1.0, token_s=((0.5, 1.0),), read_bytes_per_s=())
    assert list(unaccounted([run, run], 2.5, 0.5)) == []
    (reason,) = unaccounted([run, run], 2.1, 0.5)
    assert reason == "400 ms of the 2.10 s from the first timed run to the last are in two clocks"


def test_a_skipped_synchronise_is_found(tmp_path: Path) -> None:
    class Deferring(ChangedDevice):
        """Gives tokens before its work is done, as a device does whose results nobody waits for."""

        busy_until = 0.0

        def __init__(self) -> None:
            super().__init__(self._defer)

        def _defer(self, run: Run1) -> Run1:
            def early(inputs: Arrays) -> dict[str, Array]:
                self.busy_until = max(self.busy_until, time.perf_counter()) + SLEEP_S
                return run(inputs)

            return early

        def synchronize(self) -> None:
            time.sleep(max(0.0, self.busy_until - time.perf_counter()))

    with opened(tmp_path, Deferring()) as llm:
        found = measure(llm, REQUEST, POINT)
    (reason,) = found.invalid
    assert reason.startswith("the device was still at work when the clock was stopped, for ")
    assert reason.endswith(" (median): times end too early")
    assert all(run.synchronise_s > SLEEP_S for run in found.runs)


def test_a_process_that_waits_once_is_no_fault_of_the_clock() -> None:
    runs = [Run(total_s=0.1, token_s=((0.05, 0.1),), read_bytes_per_s=(), synchronise_s=s) for s in (0.0, 0.02, 1e-5)]
    assert list(still_at_work(runs)) == []
    assert len(list(still_at_work(runs[1:2]))) == 1


def test_steps_that_are_faster_than_memory_fail_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that nobody waits for at all: its tokens are those of the warm-up, and it computes nothing."""
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 1024, "n_layer": 4, "n_head": 16, "vocab_size": 96}
    config.write_text(json.dumps({"model_type": "bloom", **sizes}))
    known: dict[bytes, dict[str, Array]] = {}
    compiled = CpuDevice.compile

    class Remembering:
        def __init__(self, executable: CpuExecutable) -> None:
            self._executable = executable

        def run(self, inputs: Arrays) -> dict[str, Array]:
            key = b"".join(inputs[name].tobytes() for name in ("tokens", "positions"))
            if key not in known:
                known[key] = self._executable.run(inputs)
            return known[key]

    monkeypatch.setattr(CpuDevice, "compile", lambda self, *args: Remembering(compiled(self, *args)))
    request = replace(REQUEST, max_new_tokens=8)
    with LLM(f"random:{config}", device="cpu") as llm:
        invalid = measure(llm, request, replace(POINT, batch=1)).invalid
    assert any(reason.startswith("decoding took ") and "the least possible" in reason for reason in invalid)


def test_the_limit_allows_for_noise_and_no_more(tmp_path: Path) -> None:
    run = Run(total_s=3.0, token_s=((1.0, 2.0, 3.0),), read_bytes_per_s=(1e9, 1.2e9))
    with opened(tmp_path) as llm:
        work = work_of(llm, run, 4, 3)
    least = work.least(work.decode, 1.2e9, {})  # of the fastest pass
    assert least.total_s is not None and least.bound is None
    steps = {share: least.total_s / 2 / share for share in (0.9, 1.04, 1.06)}
    runs = {share: [replace(run, token_s=((1.0, 1 + s, 1 + 2 * s),))] for share, s in steps.items()}
    assert {share: len(list(too_fast([work], found))) for share, found in runs.items()} == {0.9: 0, 1.04: 0, 1.06: 1}
    found = limit([work], runs[0.9])
    assert found.share_of_step_floor is not None
    assert found.share_of_step_floor.median == pytest.approx(0.9 * 1.2 / 1.1)  # of the median pass


def test_a_token_too_few_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = LLM.generate

    def one_less(self: LLM, *args: Any, **options: Any) -> Any:
        return generate(self, *args, **{**options, "max_new_tokens": options["max_new_tokens"] - 1})

    monkeypatch.setattr(LLM, "generate", one_less)
    with opened(tmp_path) as llm, pytest.raises(AnthesisError, match=f"generated {NEW - 1} tokens instead of {NEW}"):
        measure(llm, REQUEST, POINT)


@pytest.mark.parametrize("change", [-1, 1])
def test_tokens_that_were_counted_wrongly_are_found(
    change: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miscounting(runs: Any, prompt_tokens: int) -> Any:
        found = speed(runs, prompt_tokens)
        return replace(found, generated_tokens=found.generated_tokens + change)

    monkeypatch.setattr(sys.modules[measure.__module__], "speed", miscounting)
    with opened(tmp_path) as llm:
        (reason,) = measure(llm, REQUEST, POINT).invalid
    asked = POINT.batch * NEW
    assert reason == f"{asked + change} tokens were counted in a run, and {asked} were asked for"


@pytest.mark.parametrize(
    ("token_s", "message"),
    [
        (((0.1, 0.2), (0.1, 0.2, 0.3)), "timed run 1 has times of 5 tokens, and 6 were asked for"),
        (((0.1, 0.2, 0.3), (0.1, 0.4, 0.3)), "timed run 1 has a token before the one in front of it"),
        (((0.1, 0.2, 0.3), (0.1, 0.2, 1.1)), "timed run 1 has tokens after its end"),
    ],
)
def test_times_that_contradict_the_count_are_found(
    token_s: tuple[tuple[float, ...], ...], message: str, sound: Measurement
) -> None:
    run = Run(total_s=1.0, token_s=token_s, read_bytes_per_s=())
    said = replace(sound.speed, generated_tokens=6, tokens_per_s=replace(sound.speed.tokens_per_s, median=6.0))
    assert list(miscounted([run], said, 2, 3)) == [message]


def test_a_rate_that_is_not_tokens_by_time_is_found(sound: Measurement) -> None:
    per_s = sound.speed.tokens_per_s
    said = replace(sound.speed, tokens_per_s=replace(per_s, median=per_s.median * NEW / (NEW - 1)))
    (reason,) = wrong_rates(sound.runs, said, 7)
    assert " tokens/s in all are not the tokens by their time, " in reason


@pytest.mark.parametrize(
    ("op", "field", "what"), [(Linear, "weight_bytes", "weights"), (Attend, "cache_bytes", "cache")]
)
@pytest.mark.parametrize("factor", [0.5, 2])
def test_bytes_that_were_counted_wrongly_are_found(
    op: Any, field: str, what: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = op.cost

    def wrong(self: Any, values: Any, step: Any) -> Any:
        found = cost(self, values, step)
        return replace(found, **{field: int(getattr(found, field) * factor)})

    monkeypatch.setattr(op, "cost", wrong)
    with opened(tmp_path) as llm:
        invalid = measure(llm, REQUEST, POINT).invalid
    assert any(reason.startswith("rank 0 counts ") and what in reason for reason in invalid)


def test_a_bandwidth_that_moved_marks_the_row() -> None:
    def run(bandwidth: float) -> Run:
        return Run(total_s=1.0, token_s=((0.5, 1.0),), read_bytes_per_s=(0.1 * bandwidth, bandwidth, 9 * bandwidth))

    settled = Warmup(run_s=(1.0, 1.0, 1.0), settled=True)
    steady, moving = [run(90.0), run(108.0), run(100.0)], [run(89.0), run(110.0), run(100.0)]
    assert bandwidth_moved(steady) == pytest.approx(0.18)
    assert marks(settled, bandwidth_moved(steady), True, 10.0, 10.0) == ()
    assert marks(settled, bandwidth_moved(moving), True, 10.0, 10.0) == (
        "the read bandwidth moved by 21% during the runs",
    )
    assert bandwidth_moved([run(90.0)]) is None


def test_warming_up_that_did_not_settle_and_runs_that_differ_are_marked() -> None:
    unsettled, few = Warmup(run_s=(1.0, 2.0, 3.0), settled=False), Warmup(run_s=(1.0,), settled=False)
    assert marks(unsettled, None, False, 10.0, 10.0) == (
        "no three runs in a row agreed within 5% in 3 warm-up runs",
        "the runs did not all generate the same tokens",
    )
    assert marks(few, None, True, 0.5, 10.0) == (
        "too few warm-up runs to tell whether it settled: 1, and 3 must agree",
        "all timed runs took 500 ms together, and 10.0 s were asked for",
    )


@pytest.mark.parametrize(
    ("name", "factor", "what"),
    [
        ("prefill_tokens_per_s", 8 / 7, "of the prompts"),
        ("decode_tokens_per_s", NEW / (NEW - 1), "of the decoding"),
    ],
)
def test_rates_of_a_token_too_many_are_found(name: str, factor: float, what: str, sound: Measurement) -> None:
    found = getattr(sound.speed, name)
    said = replace(sound.speed, **{name: replace(found, median=found.median * factor)})
    (reason,) = wrong_rates(sound.runs, said, 7)
    assert what in reason
    assert list(wrong_rates(sound.runs, sound.speed, 7)) == []


def test_a_clock_of_tokens_that_begins_late_or_ends_early_is_found() -> None:
    def runs(shift_s: float) -> list[Run]:
        times = tuple(0.1 * token - shift_s for token in range(1, 11))
        return [Run(total_s=1.002, token_s=(times,), read_bytes_per_s=())] * 3

    assert list(idle_ends(runs(0.0))) == []
    assert list(idle_ends(runs(0.02))) == []
    (reason,) = idle_ends(runs(0.04))
    assert reason.startswith("42.0 ms of a run, 4% of it, come after its last token")


def test_the_limit_of_a_window_is_that_of_each_step(tmp_path: Path) -> None:
    """The mean of min(context, window) is below min(mean context, window)."""
    config = {"model_type": "mistral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 96, "sliding_window": 16}
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    prompt, new = 4, 41
    run = Run(total_s=50.0, token_s=(tuple(float(i) for i in range(1, new + 1)),), read_bytes_per_s=())
    with LLM(f"random:{tmp_path / 'config.json'}", device="reference", weights="bf16") as llm:
        work = work_of(llm, run, prompt, new)
        (program,) = llm.loaded.programs("argmax")
    steps = [Step(context=prompt + token) for token in range(1, new)]
    assert [nbytes for ((nbytes, _),) in work.decode] == [
        cost(program, step).weight_bytes + cost(program, step).cache_bytes for step in steps
    ]


def test_the_first_sequences_of_long_prompts_are_not_in_the_last_steps(tmp_path: Path) -> None:
    # the second sequence has its first token when the first one has its second
    run = Run(total_s=5.0, token_s=((1.0, 2.0, 3.0, 4.0), (2.5, 3.5, 4.5, 5.0)), read_bytes_per_s=())
    with opened(tmp_path) as llm:
        work = work_of(llm, run, 10, 4)
        (program,) = llm.loaded.programs("argmax")
    both = [Step(rows=2, logit_rows=2, sequences=2, context=context) for context in (11, 12, 13)]
    expected = [
        cost(program, both[0]).flops + cost(program, Step(context=12)).flops - cost(program, Step(context=11)).flops,
        cost(program, both[1]).flops + cost(program, Step(context=13)).flops - cost(program, Step(context=12)).flops,
        cost(program, Step(context=13)).flops,
    ]
    assert [flops for ((_, flops),) in work.decode] == expected


def test_ranks_on_several_machines_read_at_the_same_time(tmp_path: Path) -> None:
    run = Run(total_s=3.0, token_s=((1.0, 2.0, 3.0),), read_bytes_per_s=())
    with opened(tmp_path) as llm:
        work = work_of(llm, run, 4, 3)
    assert work.machines == 1
    one, two = (replace(work, machines=count).least(work.decode, 1e9, {"bf16": 1e9}) for count in (1, 2))
    assert one.total_s is not None
    assert two.total_s == pytest.approx(one.total_s / 2)


@pytest.mark.parametrize("model", ["bloom-560m", "bloomz-7b1", "llama-3.2-1b", "gpt2"])
def test_the_bytes_of_real_shapes_are_right(model: str) -> None:
    with LLM(f"random:{model}", weights="int8", load=False) as llm:
        assert list(wrong_bytes(llm.loaded.programs("argmax"), 4)) == []
