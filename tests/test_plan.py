"""Plans against figures computed by hand from the models' sizes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from anthesis import native
from anthesis.devices import DEVICES, OPENERS
from anthesis.devices.bandwidth import ReadBandwidth
from anthesis.devices.datasheets import DATASHEETS
from anthesis.devices.device import DeviceInfo
from anthesis.devices.reference import ReferenceDevice
from anthesis.errors import RequestError, UnsupportedError
from anthesis.plan import find_hardware, make_plan
from anthesis.plan.plan import NEW_TOKENS, PROMPT_TOKENS
from anthesis.program.ir import BLOCK_TOKENS

PARAMETERS_176B = 176_247_271_424
CACHE_BYTES_PER_TOKEN_176B = 4_014_080
HIDDEN, LAYERS, HEADS, VOCAB = 14336, 70, 112, 250880
GAUDI2 = DATASHEETS["gaudi2"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "anthesis", "plan", *arguments], capture_output=True, text=True)


def model(directory: Path, **changes: object) -> str:
    """MODEL of a small Llama: 4 query heads that share 2 key-value heads, at most 256 tokens."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 256, "tie_word_embeddings": False}
    path = directory / "config.json"
    path.write_text(json.dumps({"model_type": "llama", **sizes, **more, **changes}))
    return f"random:{path}"


def _children_s() -> float:
    """Processor time of the commands so far: what else keeps the machine busy does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bloom_vector_elements(ranks: int) -> int:
    """Biases and norms of a rank: of column splits a share, of row splits and norms all."""
    return 4 * HIDDEN + LAYERS * (4 * HIDDEN + (3 * HIDDEN + 4 * HIDDEN) // ranks + 2 * HIDDEN)


def test_bloomz_on_eight_gaudi2_needs_what_hand_computation_says() -> None:
    plan = make_plan("random:bloomz", device="gaudi2", tp=8)
    assert plan.parameters == PARAMETERS_176B
    assert plan.cache_bytes_per_token == CACHE_BYTES_PER_TOKEN_176B
    matrices = VOCAB * HIDDEN + LAYERS * 12 * HIDDEN**2
    assert plan.rank_memory.weight_bytes == 2 * matrices // 8 + 4 * bloom_vector_elements(8)
    assert plan.job.context_tokens == 2048  # ALiBi: the model has no limit
    assert plan.rank_memory.cache_bytes == (2048 + BLOCK_TOKENS) * CACHE_BYTES_PER_TOKEN_176B // 8
    assert plan.total_memory.weight_bytes == 8 * plan.rank_memory.weight_bytes
    assert plan.fits
    assert plan.weight_kinds == ("bf16",)
    assert plan.is_random


def test_bloomz_exchanges_twice_per_layer_for_the_embedding_and_for_the_best_token() -> None:
    reduce, best = make_plan("random:bloomz", device="gaudi2", tp=8).exchanges
    assert (reduce.kind, reduce.count, reduce.payload_bytes) == ("all_reduce", 2 * LAYERS + 1, 4 * HIDDEN)
    assert (best.kind, best.count, best.payload_bytes) == ("all_reduce_best", 1, 8)
    assert reduce.moved_bytes == pytest.approx(2 * 7 / 8 * 4 * HIDDEN)
    assert make_plan("random:bloomz-560m", device="gaudi2").exchanges == ()


def test_bloomz_floor_is_bytes_over_bandwidth_plus_payload_over_links() -> None:
    plan = make_plan("random:bloomz", device="gaudi2", tp=8)
    context = 7 + 50
    cache_bytes = (context + 1) * CACHE_BYTES_PER_TOKEN_176B // 8
    embedding_row = 2 * HIDDEN
    read = plan.rank_memory.weight_bytes + embedding_row + cache_bytes
    floor = plan.token_floor
    assert floor.read_bytes == read
    assert floor.memory_s == pytest.approx(read / GAUDI2.read_bytes_per_s)
    assert floor.memory_s == pytest.approx(0.0180, rel=0.01)
    assert GAUDI2.bf16_flops_per_s is not None
    assert floor.compute_s == pytest.approx(2 * PARAMETERS_176B / 8 / GAUDI2.bf16_flops_per_s, rel=0.01)
    sent = 2 * 7 / 8 * (141 * 4 * HIDDEN + 8)
    assert floor.link_bytes == pytest.approx(sent)
    assert floor.link_s == pytest.approx(sent / GAUDI2.link_bytes_per_s)
    assert floor.total_s == pytest.approx(max(floor.memory_s, floor.compute_s) + floor.link_s)
    assert floor.bound == "memory"
    assert plan.prefill_floor.total_s is not None
    assert plan.job_floor_s == pytest.approx(plan.prefill_floor.total_s + 99 * floor.total_s)
    # below what was published for this model and these cards, as a floor must be, and not by an order of magnitude
    assert 1.0 < plan.job_floor_s < 3.717


@pytest.mark.parametrize(("tp", "fits"), [(4, False), (5, True)])
def test_the_fewest_devices_are_found(tp: int, fits: bool) -> None:
    plan = make_plan("random:bloomz", device="gaudi2", tp=tp)
    assert plan.fits is fits
    assert plan.smallest_tp == 5
    usable = GAUDI2.memory_bytes - plan.reserve_bytes
    assert (plan.rank_memory.total_bytes <= usable) is fits
    assert plan.reserve_bytes == GAUDI2.memory_bytes // 10


def test_the_search_goes_on_where_the_sum_of_all_memory_would_do() -> None:
    # 361 GB of weights and cache are less than 17 times 21.6 GB, but of 112 heads some ranks take 7: a 16th of all
    fits = {tp: make_plan("random:bloomz", device="l4", tp=tp).fits for tp in (17, 18)}
    assert fits == {17: False, 18: True}
    assert make_plan("random:bloomz", device="l4").smallest_tp == 18


def test_no_number_of_devices_may_be_enough() -> None:
    plan = make_plan("random:bloomz-560m", device="gaudi1", context=2_000_000, batch=200)
    assert not plan.fits
    assert plan.smallest_tp is None


def test_a_large_batch_computes_longer_than_it_reads() -> None:
    plan = make_plan("random:bloomz-7b1", device="gaudi2", context=128, batch=512)
    assert plan.token_floor.bound == "compute"
    assert plan.token_floor.total_s == plan.token_floor.compute_s
    # the same arithmetic at one sequence is bound by memory, and a token of the batch costs less
    alone = make_plan("random:bloomz-7b1", device="gaudi2", context=128)
    assert alone.token_floor.bound == "memory"
    assert plan.token_floor.total_s / 512 < alone.token_floor.total_s  # type: ignore[operator]


def test_slow_links_can_bound_a_small_model() -> None:
    plan = make_plan("random:bloomz-560m", device="l4", tp=16, batch=256, context=128)
    assert plan.token_floor.bound == "links"
    assert plan.token_floor.link_s == pytest.approx(
        sum(e.count * e.moved_bytes for e in plan.exchanges) / DATASHEETS["l4"].link_bytes_per_s
    )


def test_weights_change_the_bytes(tmp_path: Path) -> None:
    bf16 = make_plan("random:bloomz-560m", device="h100")
    int8 = make_plan("random:bloomz-560m", device="h100", weights="int8")
    int4 = make_plan("random:bloomz-560m", device="h100", weights="int4")
    assert int8.weight_kinds == ("int8",)
    assert int8.rank_memory.weight_bytes == pytest.approx(bf16.rank_memory.weight_bytes / 2, rel=0.01)
    assert int4.rank_memory.weight_bytes == pytest.approx(bf16.rank_memory.weight_bytes * 4.5 / 16, rel=0.01)
    fp32 = make_plan("random:bloomz-560m", device="h100", weights="fp32")
    assert (bf16.cache_dtype, fp32.cache_dtype) == ("bf16", "fp32")
    assert fp32.cache_bytes_per_token == 2 * bf16.cache_bytes_per_token


def test_a_peak_counts_only_for_the_weights_that_reach_it() -> None:
    h100 = find_hardware("h100")
    assert h100.flops_per_s(["bf16"]) == h100.bf16_flops_per_s
    assert h100.flops_per_s(["fp8"]) == h100.fp8_flops_per_s
    assert h100.flops_per_s(["int4m", "bf16"]) == h100.int8_flops_per_s
    assert find_hardware("gaudi1").flops_per_s(["bf16"]) is None


def test_uneven_shares_plan_for_the_rank_that_needs_most(tmp_path: Path) -> None:
    plan = make_plan(model(tmp_path), device="l4", tp=3, context=128)
    # of 4 heads the last of 3 ranks has 2, of 2 key-value heads the one they read, of 100 rows 34, of 96 columns 32
    head, wide = 16, 64
    attention = wide * head * (2 + 1 + 1 + 2)
    largest = 2 * (2 * 34 * wide + 3 * (attention + 3 * wide * 32)) + 4 * wide * (3 * 2 + 1)
    assert plan.rank_memory.weight_bytes == largest
    assert plan.total_memory.weight_bytes < 3 * largest


def test_context_is_the_models_or_2048(tmp_path: Path) -> None:
    assert make_plan(model(tmp_path), device="l4").job.context_tokens == 256
    assert make_plan("random:bloomz-560m", device="l4").job.context_tokens == 2048
    assert make_plan("random:bloomz-560m", device="l4", prompt_tokens=3000).job.context_tokens == 3100
    assert make_plan("random:bloomz-560m", device="l4", context=107).job.context_tokens == 107


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 0}, "tp is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"context": 257}, "made for at most 256"),
        ({"context": 106}, "107 tokens together and the context is 106"),
        ({"prompt_tokens": 200}, "300 tokens together and the context is 256"),
        ({"tp": 5}, "4 pieces of heads; 1 to 4 ranks work"),
        ({"weights": "int3"}, "unknown weight kind"),
        ({"cache": "int8"}, "unknown cache type"),
        ({"device": "gaudi9"}, "gaudi1, gaudi2, gaudi3, a100-40gb"),
    ],
)
def test_what_can_not_be_planned_is_said(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_plan(model(tmp_path), **{"device": "l4", **changes})  # type: ignore[arg-type]


def test_this_machine_is_measured_and_its_ranks_share_it(tmp_path: Path) -> None:
    plan = make_plan(model(tmp_path), tp=2)
    hardware = plan.hardware
    assert hardware.memory_is_shared
    assert "measured" in hardware.figures
    assert hardware.read_bytes_per_s is not None
    assert 1e8 < hardware.read_bytes_per_s < 1e13
    assert plan.token_floor.read_bytes > plan.kinds_weight_bytes  # embedding and head are apart: two rows more
    assert plan.token_floor.memory_s == pytest.approx(plan.token_floor.read_bytes / hardware.read_bytes_per_s)
    if hardware.name == "cpu" and native.multiply_add_peak("bf16", 1, 0) is not None:
        assert hardware.bf16_flops_per_s is not None
        assert 1e8 < hardware.bf16_flops_per_s < 1e15
        assert plan.token_floor.compute_s == pytest.approx(plan.token_floor.flops / hardware.bf16_flops_per_s)
    else:
        assert plan.token_floor.compute_s is None
    assert plan.token_floor.link_s is None


def test_without_the_extension_the_bandwidth_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.extension.cache_clear()
    monkeypatch.setitem(sys.modules, "anthesis._native", None)
    monkeypatch.delattr("anthesis._native", raising=False)
    try:
        plan = make_plan(model(tmp_path), device="reference")
    finally:
        native.extension.cache_clear()
    assert plan.hardware.read_bytes_per_s is None
    assert "unknown" in plan.hardware.figures
    assert plan.token_floor.total_s is plan.job_floor_s is None
    assert plan.token_floor.bound == "unknown"
    assert plan.fits


@pytest.mark.parametrize("device", [None, "auto", "cpu", "reference", "reference-fp64"])
@pytest.mark.parametrize("weights", ["bf16", "int4", "fp32"])
def test_a_device_here_is_planned_as_it_holds_things(device: str | None, weights: str) -> None:
    plan = make_plan("random:bloomz-560m", device=device, weights=weights, context=128)
    sheet = make_plan("random:bloomz-560m", device="h100", weights=weights, context=128)
    name = device if device in ("reference", "reference-fp64") else "cpu"
    itemsize = {"cpu": None, "reference": 4, "reference-fp64": 8}[name]
    assert plan.hardware.name == name
    held = sheet.rank_memory.weight_bytes if itemsize is None else itemsize * plan.parameters
    assert plan.rank_memory.weight_bytes == held
    cache_itemsize = (itemsize or 4) if weights == "fp32" else 2
    assert plan.cache_bytes_per_token == 2 * 24 * 1024 * cache_itemsize
    assert plan.rank_memory.cache_bytes == 3 * BLOCK_TOKENS * plan.cache_bytes_per_token
    # the floors are about the kinds, whoever holds them
    assert plan.kinds_weight_bytes == sheet.kinds_weight_bytes == sheet.rank_memory.weight_bytes
    assert plan.token_floor.read_bytes == sheet.token_floor.read_bytes


def test_what_the_reference_device_holds_is_what_is_planned(tmp_path: Path) -> None:
    from anthesis import LLM

    name = model(tmp_path)
    with LLM(name, device="reference") as llm:
        held = sum(weight.nbytes for weight in llm.loaded._weights.values())
    assert make_plan(name, device="reference").rank_memory.weight_bytes == held


def test_the_command_says_how_the_device_holds_the_weights(tmp_path: Path) -> None:
    shown = command("random:bloomz-7b1", "--device", "reference").stdout
    assert "28.3 GB as reference holds them, dequantised (14.1 GB as bf16)" in shown
    assert "of weights read as bf16: reference reads more" in shown
    assert "holds them" not in command("random:bloomz-7b1", "--device", "h100").stdout
    assert "holds them" not in command(model(tmp_path), "--device", "reference", "--weights", "fp32").stdout


def test_a_device_that_is_not_there_is_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.extension.cache_clear()
    monkeypatch.setitem(sys.modules, "anthesis._native", None)
    monkeypatch.delattr("anthesis._native", raising=False)
    try:
        with pytest.raises(UnsupportedError, match="native extension of anthesis can't be loaded"):
            make_plan(model(tmp_path), device="cpu")
    finally:
        native.extension.cache_clear()


def test_a_card_of_this_machine_has_memory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card(ReferenceDevice):
        def info(self) -> DeviceInfo:
            return replace(super().info(), name="cuda", description="a card", uses_host_memory=False)

        def read_bandwidth(self) -> ReadBandwidth:
            return ReadBandwidth((1e12, 2e12, 4e12), "by itself")

        def multiply_add_peaks(self) -> dict[str, float]:
            return {"bf16": 1e14}

    monkeypatch.setitem(OPENERS, "cuda", lambda threads, seat, invariant: Card())
    plan = make_plan(model(tmp_path), device="cuda", tp=2)
    hardware = plan.hardware
    assert (hardware.name, hardware.description, hardware.memory_is_shared) == ("cuda", "a card", False)
    assert (hardware.read_bytes_per_s, hardware.bf16_flops_per_s, hardware.int8_flops_per_s) == (2e12, 2e14, None)
    assert "measured, median of 3 samples (by itself)" in hardware.figures
    assert plan.rank_memory.weight_bytes > plan.kinds_weight_bytes / 2  # as this device holds them


def test_data_sheets_are_plausible() -> None:
    assert not set(DATASHEETS) & {"auto", *DEVICES}
    for name, sheet in DATASHEETS.items():
        assert name == sheet.name
        assert 16e9 <= sheet.memory_bytes <= 300e9
        assert 0.1e12 < sheet.read_bytes_per_s < 10e12
        assert sheet.link_bytes_per_s < sheet.read_bytes_per_s
        assert sheet.source
        for faster in (sheet.fp8_flops_per_s, sheet.int8_flops_per_s):
            assert faster is None or (sheet.bf16_flops_per_s is not None and faster >= sheet.bf16_flops_per_s)


def test_equal_layers_are_listed_once(tmp_path: Path) -> None:
    listing = make_plan(model(tmp_path, num_hidden_layers=9), device="l4", tp=2).listing
    assert "layer i = 0:" in listing
    assert "layers i = 1 to 8, 8 equal ones:" in listing
    assert listing.count("= attend(") == 2
    assert "layers.i-1.mlp.sum" in listing
    assert "all_reduce_best" in listing.splitlines()[-1]


def test_operations_add_up_to_the_step(tmp_path: Path) -> None:
    plan = make_plan("random:bloomz-560m", device="gaudi2", tp=4)
    assert sum(c.weight_bytes + c.cache_bytes for c in plan.operations.values()) == plan.token_floor.read_bytes
    assert sum(c.flops for c in plan.operations.values()) == plan.token_floor.flops
    assert sum(c.sent_bytes for c in plan.operations.values()) == sum(e.count * e.payload_bytes for e in plan.exchanges)


@pytest.mark.timed
def test_the_command_answers_quickly_and_can_be_pasted() -> None:
    seconds = []
    for _ in range(3):
        before = _children_s()
        result = command("random:bloomz", "--device", "gaudi2", "--tp", "8")
        seconds.append(_children_s() - before)
    assert result.returncode == 0, result.stderr
    assert "176.2 B parameters" in result.stdout
    assert "8 x gaudi2" in result.stdout
    assert "verdict            fits" in result.stdout
    assert "141 x 57,344 B" in result.stdout
    assert "18.1 ms" in result.stdout
    assert "\x1b" not in result.stdout
    assert min(seconds) < 2  # the best of a few, so that a busy machine does not fail it


def test_links_between_machines_are_said_not_to_count() -> None:
    assert "between machines   links not counted" in command("random:bloomz", "--device", "gaudi2", "--tp", "16").stdout
    assert "between machines" not in command("random:bloomz", "--device", "gaudi2", "--tp", "8").stdout


def test_where_figures_come_from_is_wrapped() -> None:
    lines = command("random:bloomz", "--device", "gaudi2").stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("  figures from "))
    assert lines[first + 1].startswith(" " * 21)
    assert max(len(line) for line in lines[first : first + 2]) <= 100
    assert " ".join(line[21:] for line in lines[first : first + 2]) == f"data sheet: {GAUDI2.source}"


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    arguments = (model(tmp_path), "--device", "l4", "--tp", "2", "--json")
    document = json.loads(command(*arguments).stdout)
    assert (document["schema_version"], document["kind"], document["tp"]) == (1, "plan", 2)
    memory = document["rank_memory"]
    assert memory["total_bytes"] == memory["weight_bytes"] + memory["cache_bytes"] + memory["buffer_bytes"]
    assert "operations" not in document
    with_ops = json.loads(command(*arguments, "--ops").stdout)
    assert {"linear", "attend", "all_reduce"} <= set(with_ops["operations"])


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    result = command(model(tmp_path), "--device", "l4", "--tp", "5")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "1 to 4 ranks work" in result.stderr


def test_the_command_lines_defaults_are_the_librarys() -> None:
    from inspect import signature

    from anthesis.cli.plan import plan

    defaults = {name: parameter.default for name, parameter in signature(plan).parameters.items()}
    assert (defaults["prompt_tokens"], defaults["max_new_tokens"]) == (PROMPT_TOKENS, NEW_TOKENS)
