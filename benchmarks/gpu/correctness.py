"""Small models on the card beside the same on the reference device, before anything is timed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from anthesis import LLM
from anthesis.checkpoint.random import RandomWeight
from anthesis.devices import open_device
from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.cuda import CudaDevice
from anthesis.models import family_of_config, trace
from anthesis.quantize import weight_kind

KINDS = ("fp32", "bf16", "int8", "int4", "int4-g128", "fp8")
GREEDY_TOKENS = 32
PROMPT_TOKENS = 70
"""More than a block of the cache."""

EXACT = 1e-4
"""Of the largest logit: what the order of float32 sums may change."""

ROUNDED = 0.015
"""The same where inputs of products are rounded to bf16."""


@dataclass(frozen=True)
class _Model:
    name: str
    config: dict[str, Any]
    kinds: tuple[str, ...]


_LLAMA = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1003,
}  # fmt: skip


def _bloom(hidden: int, heads: int) -> dict[str, Any]:
    return {"model_type": "bloom", "hidden_size": hidden, "n_layer": 2, "n_head": heads, "vocab_size": 1003}


MODELS = (
    _Model("bloom, heads of 64", _bloom(256, 4), KINDS),
    _Model("bloom, heads of 80", _bloom(320, 4), ("bf16", "int4")),  # BLOOM-3B's
    _Model("bloom, heads of 128", _bloom(512, 4), ("bf16", "int4-g128")),
    _Model("llama, heads of 128", _LLAMA, KINDS),
)


def check() -> Iterator[dict[str, Any]]:
    """Logits, greedy tokens, and random weights; one entry for each model and kind, and one for each kind of weight."""
    found: dict[str, Any] = {"random_weights": [], "models": []}
    for kind in KINDS:
        found["random_weights"].append({"kind": kind, **_tried(lambda kind=kind: {"equal": same_weights(kind)})})
        yield found
    with tempfile.TemporaryDirectory() as directory:
        for model in MODELS:
            write_checkpoint(Path(directory), model.config)
            for kind in model.kinds:
                result = _tried(lambda kind=kind: compare(directory, kind))
                found["models"].append({"model": model.name, "kind": kind, **result})
                yield found


def _tried(check_one: Any) -> dict[str, Any]:
    """Its result, or its error: one kind that does not work says nothing of the others."""
    try:
        result: dict[str, Any] = check_one()
    except Exception as error:  # noqa: BLE001 (whatever a kernel may raise)
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    return result


def write_checkpoint(directory: Path, raw: dict[str, Any]) -> None:
    """A checkpoint whose groups of weights differ, and with them their scales, which those of `random:` do not.

    Args:
        directory: where to.
        raw: of config.json.
    """
    (directory / "config.json").write_text(json.dumps(raw))
    family = family_of_config(raw)
    config, rng = family.read_config(raw), np.random.default_rng(0)
    sources, stored = family.sources(config), dict[str, Any]()
    for value in trace(config, "argmax", lambda name, shape: "fp32").of_kind("weight"):
        source, shape = sources[value.name], value.static_shape
        rows = np.arange(shape[0]) if source.rows is None else source.rows
        array = stored.setdefault(source.name, np.zeros((0, *shape[1:]), np.float32))
        if len(array) <= rows.max():
            more = np.zeros((rows.max() + 1 - len(array), *shape[1:]), np.float32)
            array = stored[source.name] = np.concatenate([array, more])
        array[rows] = rng.normal(0, 0.4 if len(shape) == 1 else 1.5 * shape[1] ** -0.5, shape)
    save_file(stored, directory / "model.safetensors")


def same_weights(kind: str) -> bool:
    """Whether parts of random weights made on the card are those made on the host, bit by bit."""
    device = open_device("cuda")
    assert isinstance(device, CudaDevice)
    matrix = RandomWeight(3, "layers.0.mlp.up.weight", (600, 1024), (100, 256), (300, 512), weight_kind(kind))
    vector = RandomWeight(3, "layers.0.mlp.up.bias", (600,), (100,), (300,), weight_kind("fp32"))
    made, packed = device.make(matrix, frozenset()), device.pack(matrix.on_host(), frozenset())
    assert isinstance(made, Matrix)
    assert isinstance(packed, Matrix)
    pairs = list(zip(made.tensors, packed.tensors, strict=True))
    pairs.append((device.make(vector, frozenset()), device.pack(vector.on_host(), frozenset())))
    return all(torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs)


def compare(model: str, kind: str) -> dict[str, Any]:
    """The same model on the card and on the reference device.

    Args:
        model: as `LLM` takes it.
        kind: of the matrices.

    Returns:
        The largest difference of logits as a share of the largest logit, for a prompt of several blocks; whether it is
        small enough; how many greedy tokens are the same from the first on, of how many; and where they part, by how
        much the reference device preferred its own token, as a share of its largest logit.
    """
    with LLM(model, weights=kind, device="cuda") as card, LLM(model, weights=kind, device="reference") as reference:
        prompt = card.made_up_prompt(PROMPT_TOKENS)
        ours, truth = card.logits(prompt), reference.logits(prompt)
        (own,), (true,) = (
            llm.generate([prompt[:7]], max_new_tokens=GREEDY_TOKENS, ignore_eos=True) for llm in (card, reference)
        )
        pairs = zip(own.token_ids, true.token_ids, strict=True)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        lead = None
        if same < GREEDY_TOKENS:
            scores = reference.logits([*prompt[:7], *true.token_ids[:same]])[-1]
            chosen, instead = true.token_ids[same], own.token_ids[same]
            lead = float((scores[chosen] - scores[instead]) / np.abs(scores).max())
    difference = float(np.abs(ours - truth).max() / np.abs(truth).max())
    bound = EXACT if kind == "fp32" else ROUNDED
    return {
        "difference": difference if np.isfinite(difference) else None,
        "bound": bound,
        "fine": bool(np.isfinite(ours).all() and difference < bound and (lead is None or lead < bound)),
        "same_tokens": same,
        "tokens": GREEDY_TOKENS,
        "lead_where_they_part": lead,
    }
