"""Result files for tests of the report: those of devices that this machine does not have, and made-up evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from anthesis.bench.subject import Device, Machine, Model
from anthesis.evaluate.result import Against, Evaluation, Quality, Text

FIXTURES = Path(__file__).parent / "fixtures"
CUDA, HPU = FIXTURES / "bench-cuda.json", FIXTURES / "bench-hpu.json"


def document(path: Path) -> dict[str, Any]:
    """The JSON document in a file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def evaluation(
    model: Model, *, against: Model | None = None, perplexity: float = 20.0, tokens: int = 1000, device: str = "cuda"
) -> Evaluation:
    """What an evaluation of a model could have found."""
    quality = Quality(perplexity=perplexity, mean_nll=3.0, nll_standard_error=0.01)
    found = None
    if against is not None:
        found = Against(
            model=against, quality=replace(quality, perplexity=19.5), mean_kl=0.0123, kl_standard_error=0.001,
            max_kl=1.5, greedy_agreement=0.954, perplexity_ratio=perplexity / 19.5, log_ratio_standard_error=0.002,
        )  # fmt: skip
    return Evaluation(
        started_at="2026-11-20T12:00:00+00:00",
        request={"model": "m"},
        command="anthesis evaluate m --text prose.txt --weights int8 --against bf16",
        text=Text(name="prose.txt", sha256="a" * 64, scored_tokens=tokens, windows=4, window_tokens=256),
        model=model,
        device=Device(name=device, description="a device", arithmetic="float32", batch_invariant=True),
        machine=Machine(processor="a processor", usable_cores=2, memory_bytes=1, available_memory_bytes=1, os="Linux"),
        versions={"anthesis": "0.1.0"},
        quality=quality,
        against=found,
        took_s=3.0,
    )


def write(path: Path, value: Any) -> Path:
    """A document as a file."""
    path.write_text(json.dumps(value))
    return path
