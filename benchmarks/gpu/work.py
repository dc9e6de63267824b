"""What is measured on a card, in the order of its importance; targets; what others have published of the same work."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

PROMPT_TOKENS = 7
NEW_TOKENS = 100

Step = Literal["environment", "correctness", "row", "profile", "tiles", "peer"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a model with random weights, completing a prompt of 7 tokens with 100.

    Attributes:
        model: the name of its shapes.
        weights: kind of the matrices.
        batch: sequences at once.
        invariant: with operations that compute each row alone.
        target_s: seconds that Anthesis is to stay below.
        target_card: of which the target is; any where it is empty.
        config: a config.json to take instead of the named shapes.
        prompt_tokens, new_tokens: of each sequence.
        warmup, runs: as in `anthesis.bench.Request`.
    """

    model: str
    weights: str
    batch: int = 1
    invariant: bool = False
    target_s: float | None = None
    target_card: str = ""
    config: str | None = None
    prompt_tokens: int = PROMPT_TOKENS
    new_tokens: int = NEW_TOKENS
    warmup: int = 5
    runs: int = 5

    @property
    def name(self) -> str:
        """For people, and the same for no two rows."""
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.model} {self.weights}{batch}{', invariant' if self.invariant else ''}"

    @property
    def source(self) -> str:
        """MODEL as `LLM` takes it."""
        return f"random:{self.config or self.model}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One step of the benchmark, which fails alone.

    Attributes:
        step: what it does.
        seconds: that it takes, roughly.
        rows: that it measures, or that the peer is measured beside.
    """

    step: Step
    seconds: float
    rows: tuple[Row, ...] = ()

    @property
    def name(self) -> str:
        """For people, and the same for no two jobs."""
        return " ".join([self.step, "; ".join(row.name for row in self.rows)]).strip()


@dataclass(frozen=True, kw_only=True)
class Published:
    """Seconds for 100 tokens of one sequence in 16-bit weights, as others have published them.

    Attributes:
        model: the name of its shapes.
        devices: what it ran on.
        seconds: for the same prompt and number of tokens.
    """

    model: str
    devices: str
    seconds: float


PUBLISHED = (
    Published(model="bloomz-7b1", devices="1 Gaudi2", seconds=1.066),
    Published(model="bloomz-7b1", devices="8 Gaudi2", seconds=0.737),
    Published(model="bloomz-7b1", devices="1 A100-80GB", seconds=2.119),
    Published(model="bloomz-176b", devices="8 Gaudi2", seconds=3.717),
    Published(model="bloomz-176b", devices="8 A100-80GB", seconds=4.402),
)
PUBLISHED_SOURCE = (
    "Hugging Face's article of 2023 on BLOOMZ on Habana Gaudi2 (transformers 4.27.1, Optimum Habana, SynapseAI 1.8; "
    "DeepSpeed-inference on A100)"
)

LARGE = Row(model="bloomz-7b1", weights="bf16", target_s=0.54)
SMALL = Row(model="bloomz-560m", weights="bf16", target_s=0.08)
HUGE = Row(model="bloomz-176b", weights="int4-g128", target_s=2.6, target_card="H200", warmup=3, runs=3)

LARGE_INT4 = replace(LARGE, weights="int4-g128", target_s=0.20)
LARGE_FP8 = replace(LARGE, weights="fp8", target_s=0.30)
LARGE_INT8 = replace(LARGE, weights="int8", target_s=None)
EIGHT, MANY = (replace(LARGE, batch=batch, target_s=None) for batch in (8, 32))
SMALL_INT4 = replace(SMALL, weights="int4-g128", target_s=None)
INVARIANT = replace(LARGE, invariant=True, target_s=None)
MIDDLE = Row(model="bloomz-3b", weights="bf16")

JOBS = (
    Job(step="environment", seconds=10),
    Job(step="correctness", seconds=45),
    Job(step="row", seconds=25, rows=(LARGE,)),
    Job(step="row", seconds=20, rows=(LARGE_INT4,)),
    Job(step="row", seconds=20, rows=(LARGE_FP8,)),
    Job(step="row", seconds=15, rows=(SMALL,)),
    Job(step="profile", seconds=40, rows=(LARGE, LARGE_INT4, LARGE_FP8, SMALL)),
    Job(step="row", seconds=60, rows=(HUGE,)),
    Job(step="peer", seconds=50, rows=(SMALL,)),
    Job(step="peer", seconds=80, rows=(LARGE,)),
    Job(step="row", seconds=20, rows=(LARGE_INT8,)),
    Job(step="row", seconds=20, rows=(EIGHT,)),
    Job(step="row", seconds=20, rows=(MANY,)),
    Job(step="row", seconds=15, rows=(SMALL_INT4,)),
    Job(step="row", seconds=20, rows=(INVARIANT,)),
    Job(step="row", seconds=15, rows=(MIDDLE,)),
    Job(step="tiles", seconds=40, rows=(LARGE, LARGE_INT4, LARGE_FP8, LARGE_INT8)),
    Job(step="profile", seconds=25, rows=(LARGE_INT8, EIGHT, MANY, SMALL_INT4, INVARIANT, MIDDLE, HUGE)),
)

TINY = {"model_type": "bloom", "hidden_size": 128, "n_layer": 2, "n_head": 2, "vocab_size": 300}


def tiny(directory: Path) -> tuple[Job, ...]:
    """The same jobs over shapes that a host computes in a moment.

    Args:
        directory: where the configuration is written.
    """
    path = directory / "config.json"
    path.write_text(json.dumps(TINY))
    small = {"config": str(path), "new_tokens": 5, "warmup": 1, "runs": 1}
    return tuple(replace(job, seconds=1, rows=tuple(replace(row, **small) for row in job.rows)) for job in JOBS)
