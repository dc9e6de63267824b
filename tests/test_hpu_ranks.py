"""Ranks on Gaudi cards, over a stand-in for their software whose "hccl" goes through gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anthesis import LLM
from anthesis.devices.accelerator.exchange import Exchange
from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.accelerator.operations import Attention, Operations
from anthesis.devices.accelerator.step import Step
from anthesis.models import trace
from anthesis.parallel.gaudi import LAZY_VARIABLE
from anthesis.program.attend import alibi_slopes
from anthesis.program.fuse import fuse
from anthesis.program.partition import partition
from anthesis.quantize import WEIGHT_KINDS
from gaudi_software import STAND_IN
from programs import config_of
from rank_processes import script
from rank_threads import communicators

CPU = torch.device("cpu")
BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4}

COMPLETING = """
import json, sys
import numpy as np
from anthesis import LLM
sampling = json.loads(sys.argv[2])
with LLM(sys.argv[1], tp=2, device="hpu", weights="fp32", cache_memory=2**26) as llm:
    results = llm.generate([[5, 6, 7], [8] * 20], max_new_tokens=12, ignore_eos=True, **sampling)
    counters = llm.loaded.device.counters()
    np.save(sys.argv[3], llm.logits(list(range(80))))
print(json.dumps([[result.token_ids for result in results], counters.captures, counters.compilations]))
"""


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.1, "seed": 4, "logprobs": 2}], ids=str)
@pytest.mark.slow
def test_two_ranks_give_the_tokens_of_one_processor(tmp_path: Path, sampling: dict[str, Any]) -> None:
    """Of a model with ALiBi: each rank attends with its own heads' slopes."""
    (tmp_path / "config.json").write_text(json.dumps({**BLOOM, "vocab_size": 500}))
    model = f"random:{tmp_path / 'config.json'}"
    with LLM(model, device="cpu", weights="fp32") as llm:
        expected = llm.generate([[5, 6, 7], [8] * 20], max_new_tokens=12, ignore_eos=True, **sampling)
        logits = llm.logits(list(range(80)))
    variables = {"PYTHONPATH": str(STAND_IN), "GAUDI_STAND_IN_LOG": str(tmp_path), LAZY_VARIABLE: "1"}
    with script(tmp_path, COMPLETING, model, json.dumps(sampling), str(tmp_path / "logits.npy"), **variables) as ranks:
        assert ranks.end(within_s=120) == 0, ranks.err
        tokens, captures, compilations = json.loads(ranks.out)
    assert tokens == [result.token_ids for result in expected]
    assert captures == compilations > 0
    assert np.abs(np.load(tmp_path / "logits.npy") - logits).max() < 1e-5 * np.abs(logits).max()
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [
        {
            "HLS_MODULE_ID": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "PT_HPU_LAZY_MODE": "1", "PT_HPU_ENABLE_LAZY_COLLECTIVES": "true",
        }
        for rank in (0, 1)
    ]  # fmt: skip


class Recording(Operations):
    """Notes what attention is given."""

    def __init__(self) -> None:
        self.seen: list[Attention] = []

    def attend(self, attention, q, k, v, cache, inputs, size):
        self.seen.append(attention)
        return q


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_slopes_go_by_the_share_not_by_the_number_of_the_process(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second stage's processes have other numbers than their shares."""
    monkeypatch.setenv("RANK", str(4 + (rank + 1) % 4))
    config = config_of({**BLOOM, "hidden_size": 96, "n_head": 12, "vocab_size": 97})
    program = fuse(partition(trace(config, "cache"), rank, 4))
    operations = Recording()
    weights = {
        v.name: zeros if len(v.static_shape) == 1 else Matrix(WEIGHT_KINDS["fp32"], v.static_shape, zeros)
        for v in program.of_kind("weight")
        for zeros in [torch.zeros(v.static_shape)]
    }
    ranks = Exchange(communicators(4)[rank])  # which nothing here goes through
    step = Step(program, weights, {c.name: torch.zeros(1) for c in program.of_kind("cache")}, operations, ranks, CPU)
    held = dict.fromkeys((name for op in program.ops for name in op.reads()), torch.zeros(1, 24))
    for instruction in step.instructions:
        if instruction.ops[-1].kind == "attend":
            instruction.call(held, None)
    slopes = [attention.slopes.numpy() for attention in operations.seen]
    assert len(slopes) == config.num_layers
    assert all(np.array_equal(s, alibi_slopes(12)[3 * rank : 3 * rank + 3].astype(np.float32)) for s in slopes)
