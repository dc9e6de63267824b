"""Adapters as files: what is refused, and by which words; and what commands say of a model with an adapter.

What comes of those that are merged is compared with peft in parity/test_adapters.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from anthesis import LLM
from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.adapter_config import AdapterConfig
from anthesis.errors import CheckpointError, ConfigError, RequestError, UnsupportedError
from anthesis.models import families, trace
from command_line import anthesis, fail, succeed, tiny_model
from text_model import CONFIG, text_model

Q = "base_model.model.model.layers.0.self_attn.q_proj"
HIDDEN = CONFIG["hidden_size"]
RANK = 3
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "base_model_name_or_path": "someone/base"}


def factors(module: str = Q, rows: int = HIDDEN, width: int = HIDDEN, rank: int = RANK) -> dict[str, np.ndarray]:
    """Those of one module."""
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.standard_normal(shape, np.float32) / 4  # noqa: E731
    return {f"{module}.lora_A.weight": draw(rank, width), f"{module}.lora_B.weight": draw(rows, rank)}


def write_adapter(
    directory: Path, tensors: dict[str, np.ndarray] | None = None, config: dict[str, Any] | None = None
) -> Path:
    """An adapter directory; left out: of a query matrix."""
    directory.mkdir(exist_ok=True)
    save_file(factors() if tensors is None else tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({**PLAIN, **(config or {})}))
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return text_model(tmp_path_factory.mktemp("models") / "base")


def opened(base: Path, adapter: Path) -> None:
    with open_checkpoint(str(base), adapter=str(adapter)) as checkpoint:
        values = trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight")
        checkpoint.check(values)
        for value in values:
            checkpoint.load(value)


def test_the_sum_is_what_the_paper_says(base, tmp_path):
    write_adapter(tmp_path)
    with open_checkpoint(str(base)) as plain, open_checkpoint(str(base), adapter=str(tmp_path)) as adapted:
        for value in trace(plain.config, "argmax", plain.kind_of).of_kind("weight"):
            before, after = plain.load(value).values, adapted.load(value).values
            if value.name == "layers.0.attention.q.weight":
                a, b = factors().values()
                before = (before + b.astype(np.float64) @ a.astype(np.float64) * (6 / RANK)).astype(np.float32)
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, "the adapter is of peft_type 'IA3'; LORA is what can be merged"),
        ({"peft_type": None}, UnsupportedError, "peft_type None"),
        (
            {"trainable_token_indices": [1, 2]},
            UnsupportedError,
            "trainable_token_indices = [1, 2], which is not merged",
        ),
        ({"layer_replication": [[0, 1], [0, 1]]}, UnsupportedError, "layer_replication"),
        ({"alora_invocation_tokens": [5]}, UnsupportedError, "alora_invocation_tokens"),
        ({"target_parameters": ["q_proj.weight"]}, UnsupportedError, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, UnsupportedError, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, UnsupportedError, "init_lora_weights = 'olora'"),
        ({"use_dora": True}, CheckpointError, "use_dora = True, and model.layers.0.self_attn.q_proj has no lora_magni"),
        ({"r": 4}, CheckpointError, f"lora_A.weight has the shape [{RANK}, {HIDDEN}], not [4, {HIDDEN}]"),
        ({"rank_pattern": {"q_proj": 5}}, CheckpointError, f"not [5, {HIDDEN}]"),
        ({"r": 0}, ConfigError, "r = 0; an integer of at least 1 is needed"),
        ({"r": "3"}, ConfigError, "r = '3'"),
        ({"lora_alpha": float("inf")}, ConfigError, "lora_alpha = inf"),
        ({"lora_alpha": "6"}, ConfigError, "lora_alpha = '6'"),
        (
            {"alpha_pattern": {"q_proj": "x"}},
            ConfigError,
            "has an alpha_pattern for model.layers.0.self_attn.q_proj = 'x'; a number",
        ),
        (
            {"rank_pattern": {"q_proj": 2.5}},
            ConfigError,
            "has a rank_pattern for model.layers.0.self_attn.q_proj = 2.5; an integer",
        ),
        ({"rank_pattern": ["q_proj"]}, ConfigError, "an object is needed"),
        ({"rank_pattern": {"(": 3}}, CheckpointError, "no regular expression"),
        ({"rank_pattern": {"((a+)+)+": 3}}, UnsupportedError, "too intricate"),
        ({"rank_pattern": {".*.*.*.*.*x": 3}}, UnsupportedError, "too intricate"),
        ({"rank_pattern": {f".*{i}": 3 for i in range(40)}}, UnsupportedError, "too intricate"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(base, tmp_path, config, kind, message):
    write_adapter(tmp_path, config=config)
    with pytest.raises(kind, match=re.escape(message)) as caught:
        opened(base, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 600


V = "base_model.model.model.layers.0.self_attn.v_proj"
LACKS_B = {f"{Q}.lora_A.weight": np.ones((RANK, HIDDEN), np.float32)}
NOT_FINITE = {**factors(), f"{Q}.lora_B.weight": np.full((HIDDEN, RANK), np.nan, np.float32)}
TOO_LARGE = {name: np.full_like(tensor, 1e30) for name, tensor in factors().items()}
EMBED = "base_model.model.model.embed_tokens"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensors, so it changes nothing"),
        (LACKS_B, f"is incomplete: of model.layers.0.self_attn.q_proj it holds only {Q}.lora_A.weight"),
        (
            factors(Q.replace("layers.0", "layers.7")),
            "no use for, so it was made for another model, or by another meth",
        ),
        (factors(Q.replace("q_proj", "qkv_proj")), "self_attn.qkv_proj.lora_A.weight"),
        ({**factors(), f"{Q}.ia3_l": np.ones((HIDDEN, 1), np.float32)}, f"{Q}.ia3_l"),
        ({name.removeprefix("base_model."): tensor for name, tensor in factors().items()}, "has no use for"),
        ({**factors(), f"{Q}.lora_B.bias": np.ones(HIDDEN, np.float32)}, f"{Q}.lora_B.bias"),
        ({"base_model.model.score.weight": np.ones((2, HIDDEN), np.float32)}, "base_model.model.score.weight"),
        (factors(width=HIDDEN + 1), f"[{RANK}, {HIDDEN + 1}], not [{RANK}, {HIDDEN}]"),
        (factors(rows=HIDDEN * 2), f"[{HIDDEN * 2}, {RANK}], not [{HIDDEN}, {RANK}]"),
        (factors(V, rows=HIDDEN), f"[{HIDDEN}, {RANK}], not [{HIDDEN // 2}, {RANK}]"),
        ({name: tensor.reshape(-1) for name, tensor in factors().items()}, f"[{RANK * HIDDEN}], not"),
        ({name: tensor.astype(np.float64) for name, tensor in factors().items()}, "stored as F64, which is not read"),
        ({f"{EMBED}.weight": np.ones((7, HIDDEN), np.float32)}, f"{EMBED}.weight has the shape [7, {HIDDEN}], not ["),
        (NOT_FINITE, f"{Q}.lora_B.weight holds NaN or infinity, so it is damaged"),
        (TOO_LARGE, "makes NaN or infinity of elements of layers.0.self_attn.q_proj.weight"),
    ],
    ids=range(16),
)
def test_tensors_that_are_refused(base, tmp_path, tensors, message):
    write_adapter(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        opened(base, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_magnitude_that_is_not_asked_for_is_refused(base, tmp_path):
    write_adapter(tmp_path, {**factors(), f"{Q}.lora_magnitude_vector": np.ones(HIDDEN, np.float32)})
    with pytest.raises(
        CheckpointError, match=r"use_dora = False, and model\.layers\.0\.self_attn\.q_proj has a lora_magn"
    ):
        opened(base, tmp_path)


def test_dora_on_an_embedding_is_refused_by_name(base, tmp_path):
    vocabulary = len(load_file(base / "model.safetensors")["model.embed_tokens.weight"])
    tensors = {
        f"{EMBED}.lora_embedding_A": np.ones((RANK, vocabulary), np.float32),
        f"{EMBED}.lora_embedding_B": np.ones((HIDDEN, RANK), np.float32),
        f"{EMBED}.lora_magnitude_vector": np.ones(HIDDEN, np.float32),
    }
    write_adapter(tmp_path, tensors, {"use_dora": True})
    with pytest.raises(UnsupportedError, match=r"DoRA on the embedding model\.embed_tokens"):
        opened(base, tmp_path)


def test_places_without_an_adapter(base, tmp_path):
    with pytest.raises(RequestError, match="no such directory; `hf download NAME --local-dir DIR` fetches"):
        open_checkpoint(str(base), adapter=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match=r"is not an adapter: it needs adapter_config\.json, and adapter_model"):
        open_checkpoint(str(base), adapter=str(base))
    with pytest.raises(RequestError, match="an adapter belongs to the weights it was trained with"):
        open_checkpoint(tiny_model(tmp_path), adapter=str(write_adapter(tmp_path / "adapter")))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(str(base), adapter=str(tmp_path / "adapter"))


def test_what_is_odd_is_said(base, tmp_path, recwarn):
    opened(base, write_adapter(tmp_path / "a", config={"base_model_name_or_path": "/elsewhere/Base/"}))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"was trained on meta/Other-7B, and is merged into base$"):
        opened(base, write_adapter(tmp_path / "b", config={"base_model_name_or_path": "meta/Other-7B"}))
    with pytest.warns(UserWarning, match=r"use_tomorrow is not known here and has no effect"):
        opened(base, write_adapter(tmp_path / "c", config={"use_tomorrow": True, "not_used": None}))


def test_patterns_are_those_of_peft(tmp_path):
    """The first that matches the end of a name at a dot counts; compared with peft's own choice."""
    other = pytest.importorskip("peft.utils.other")
    patterns = {"k_proj": 2, r"layers\.1\..*q_proj": 3, "^model.layers.0.mlp.up_proj": 4, "proj": 5, "layers.[01].x": 6}
    write_adapter(tmp_path, config={"rank_pattern": patterns, "r": 8})
    config = AdapterConfig(tmp_path)
    names = [f"model.layers.{i}.self_attn.{m}" for i in (0, 1, 11) for m in ("q_proj", "k_proj", "qk_proj")]
    names += ["model.layers.0.mlp.up_proj", "x.model.layers.0.mlp.up_proj", "model.layers.1.x", "lm_head"]
    for name in names:
        assert config.rank(name) == patterns.get(other.get_pattern_key(patterns.keys(), name), 8)
    assert {config.rank(name) for name in names} == {2, 3, 4, 6, 8}


def test_every_family_can_have_a_head_of_its_own():
    assert all("tied_head" in family.config_type.__dataclass_fields__ for family in families())


def test_commands_take_an_adapter_and_tell_of_it(base, tmp_path):
    adapter = str(write_adapter(tmp_path / "poet", {name: 4 * tensor for name, tensor in factors().items()}))
    request = [str(base), "--device", "reference", "--prompt-ids", "5,6,7", "-n", "6", "--ignore-eos", "--json"]
    plain, adapted = (json.loads(succeed("generate", *request, *more)) for more in ((), ("--adapter", adapter)))
    assert plain["model"] == "base"
    assert adapted["model"] == "base + adapter poet"
    tokens = [document["completions"][0]["token_ids"] for document in (plain, adapted)]
    assert tokens[0] != tokens[1]

    succeed("convert", str(base), str(tmp_path / "packed"), "--adapter", adapter)
    with LLM(str(tmp_path / "packed"), device="reference") as packed:
        assert packed.description == "base + adapter poet"
        assert packed.generate([5, 6, 7], max_new_tokens=6, ignore_eos=True)[0].token_ids == tokens[1]
    said = fail("generate", *request, "--adapter", str(tmp_path / "none"))
    assert said.endswith("`hf download NAME --local-dir DIR` fetches one of the Hub")


def test_a_data_set_is_not_continued_with_another_adapter(base, tmp_path):
    first, second = (str(write_adapter(tmp_path / name)) for name in ("first", "second"))
    rows, output = tmp_path / "rows.txt", tmp_path / "out.jsonl"
    rows.write_text("one\ntwo\n")
    request = ["complete", str(base), str(rows), "-o", str(output), "-n", "3", "--device", "reference"]
    succeed(*request, "--limit", "1", "--adapter", first)
    refused = anthesis(*request, "--adapter", second)
    assert refused.returncode == 2
    assert "model.description was 'base + adapter first' and is 'base + adapter second' now" in refused.stderr


@pytest.mark.slow
def test_bench_and_evaluate_measure_the_model_with_the_adapter(base, tmp_path):
    adapter = str(write_adapter(tmp_path / "poet"))
    shared = [str(base), "--adapter", adapter, "--device", "reference", "--json"]
    quick = ["-n", "4", "--prompt-tokens", "4", "--runs", "1", "--warmup", "0", "--seconds", "0"]
    bench = json.loads(anthesis("bench", *shared, *quick).stdout)
    model = bench["rows"][0]["measurement"]["model"]
    assert (model["description"], model["source"]) == ("base + adapter poet", "directory base + adapter poet")
    text = tmp_path / "text"
    text.write_text("ab " * 40)
    evaluation = json.loads(succeed("evaluate", *shared, "--text", str(text), "--window", "16"))
    assert evaluation["model"]["description"] == "base + adapter poet"
    assert f"--adapter {adapter}" in evaluation["command"]


def test_the_example(base, tmp_path):
    adapter = write_adapter(tmp_path / "poet", {name: 4 * tensor for name, tensor in factors().items()})
    script = Path(__file__).resolve().parent.parent / "examples" / "adapter.py"
    assert len(script.read_text().splitlines()) <= 40
    command = [sys.executable, str(script), str(base), str(adapter)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^base: .*\n^base \+ adapter poet: ", result.stdout, re.MULTILINE)
