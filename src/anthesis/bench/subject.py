"""What was measured, and where: the model, how it was run, the device and the computer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Product:
    """The products of one kind in the program of a step, over all layers.

    Attributes:
        weights: kind of the matrices.
        inputs: what the device rounds the other operand to: "bf16", "int8 in groups of 32", ...
        count: how many there are, on rank 0.
    """

    weights: str
    inputs: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """What was measured.

    Attributes:
        description: for people.
        is_random: the weights are made up.
        family: of the model.
        parameters: elements of all weights.
        weight_kinds: kinds of the matrices, as loaded.
        cache_dtype: of the key-value cache.
        source: where the weights come from: a hub id, a file or directory by its name, or "random"; None in results of
            versions that did not say.
        fingerprint: of configuration, weights and tokenizer, sampled (`LLM.fingerprint`); random weights of one shape
            have the same, whatever their seed.
        products: what is multiplied with what.
    """

    description: str
    is_random: bool
    family: str
    parameters: int
    weight_kinds: tuple[str, ...]
    cache_dtype: str
    source: str | None = None
    fingerprint: str | None = None
    products: tuple[Product, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How it was run, defaults filled in.

    Attributes:
        prompt: the text, or None where token ids were made up.
        prompt_token_ids: of each sequence.
        new_tokens: asked for, for each sequence.
        ignore_eos: always true: every run generates exactly `new_tokens`.
        temperature: always 0: greedy.
        threads: of each rank, asked for; or None for the device's choice.
        max_context: of the model or as asked for; None: without limit.
        prefill_chunk: most prompt rows in one step.
        seed: of random weights.
        pp: stages of layers.
        speculate: where drafts came from: "lookup", or a model as it was asked for; None: there were none.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    new_tokens: int
    ignore_eos: bool
    temperature: float
    threads: int | None
    max_context: int | None
    prefill_chunk: int
    seed: int
    pp: int = 1
    speculate: str | None = None


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where it ran.

    Attributes:
        name: as in `--device`, never "auto".
        description: of the processor or card.
        arithmetic: dtypes of sums and inputs.
        batch_invariant: a prompt's logits are the same bits in any batch.
        kernels: which ones were used: "avx512", "triton 3.6.0", ...; None in results of versions that did not say.
    """

    name: str
    description: str
    arithmetic: str
    batch_invariant: bool
    kernels: str | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The computer.

    Attributes:
        processor: its name.
        usable_cores: by affinity and control groups.
        memory_bytes: installed.
        available_memory_bytes: when the measurement began.
        os: name and version.
    """

    processor: str
    usable_cores: int
    memory_bytes: int
    available_memory_bytes: int
    os: str
