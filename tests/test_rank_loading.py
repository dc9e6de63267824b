"""What the ranks of a model read and hold: their shares, whatever the checkpoint, and little more while they load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anthesis import LLM
from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.convert import write_packed
from anthesis.engine.loaded import LoadedModel
from anthesis.program.cost import kind_bytes
from rank_threads import Rank, spread

CONFIG = {
    "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip
LARGE = {
    "model_type": "bloom", "hidden_size": 1024, "n_layer": 6, "n_head": 16, "vocab_size": 20_000, "dtype": "bfloat16",
}  # fmt: skip
BASE_BYTES = 150e6
"""A rank with no model: the interpreter, NumPy and the libraries that are read; 70 MB here."""


def convert(name: str, directory: Path, weights: str) -> None:
    """Writes a packed directory."""
    with open_checkpoint(name, weights=weights) as checkpoint:
        write_packed(checkpoint, directory, weights)


def shape(directory: Path, config: dict[str, object]) -> str:
    """The name of random weights of this shape."""
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return f"random:{path}"


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4m"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_packed_checkpoint_opens_for_any_number_of_ranks(tmp_path: Path, weights: str, ranks: int) -> None:
    name = shape(tmp_path, CONFIG)
    convert(name, tmp_path / "packed", weights=weights)

    def logits(rank: Rank) -> np.ndarray:
        return rank.logits([3, 1, 4, 1, 5, 9, 2, 6])

    made = spread(name, ranks, logits, weights=weights)
    read = spread(tmp_path / "packed", ranks, logits)
    assert all(np.array_equal(a, b) for a, b in zip(made, read, strict=True)), "values depend on where a share begins"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (1, 2), (3, 1)], ids=str)
def test_a_rank_holds_its_share_and_one_tensor(tmp_path: Path, layout: tuple[int, int]) -> None:
    """The most that each process ever held, mapped pages included, while it loaded a packed model of 190 MB."""
    convert(shape(tmp_path, LARGE), tmp_path / "packed", weights="bf16")
    tp, pp = layout
    script = (
        "import json, sys\nfrom anthesis import LLM\n"
        "with LLM(sys.argv[1], tp=int(sys.argv[2]), pp=int(sys.argv[3]), device='cpu', cache_memory=2**26) as llm:\n"
        "    llm.generate([[1, 2, 3]], max_new_tokens=2)\n"
        "    held = llm.loaded.device.held_bytes\n"
        "    programs = llm.loaded.programs('argmax')\n"
        "    shares = [sum(held(w) for w in program.of_kind('weight')) for program in programs]\n"
        "    print(json.dumps([llm.loaded.peak_memory_bytes(), shares]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "packed"), str(tp), str(pp)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peaks, shares = json.loads(done.stdout)
    with open_checkpoint(str(tmp_path / "packed")) as checkpoint:
        model = LoadedModel(checkpoint, checkpoint.config, _cpu())
        whole = sum(kind_bytes(weight) for weight in model.traced.of_kind("weight"))
        largest = max(kind_bytes(weight) for weight in model.traced.of_kind("weight"))
    base = BASE_BYTES + (150e6 if pp > 1 else 0)  # and PyTorch, which stages hand over their rows by
    assert len(peaks) == tp * pp
    for peak, share in zip(peaks, shares, strict=True):
        assert share < 1.1 * (whole / (tp * pp) + largest)
        assert share < peak < share + largest + base


def test_one_process_holds_its_model_and_no_more() -> None:
    """Of the default model, whose file of 98 MB is mapped: what was read of it does not count twice."""
    script = "from anthesis import LLM\nwith LLM(device='cpu') as llm: print(llm.loaded.peak_memory_bytes()[0])\n"
    peak = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout)
    with LLM(load=False, device="cpu") as llm:
        share = sum(llm.loaded.device.held_bytes(w) for w in llm.loaded.traced.of_kind("weight"))
    assert share < peak < share + BASE_BYTES


def _cpu():
    from anthesis.devices.cpu import CpuDevice

    return CpuDevice(1)
