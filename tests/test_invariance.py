"""The same bits alone, in any batch and in chunks of any size, and with the program fused or not.

Equality of float32 bits everywhere, never closeness.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import BloomConfig, LlamaConfig, MistralConfig

from anthesis import LLM
from anthesis.cores import usable_cores
from anthesis.engine.engine import Engine
from anthesis.engine.step_time import SIZES as SIZES_OF_STEPS
from anthesis.engine.step_time import StepTimes
from anthesis.models import trace
from anthesis.program.fuse import fuse
from anthesis.program.widen import widen
from cpu_variants import KERNELS, VARIABLE
from decoding_ways import decoded, reused
from parity.truth import VOCABULARY, prompts, random_model, save

SIZES = {"num_hidden_layers": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 512}
CONFIGS = {
    "bloom": BloomConfig(hidden_size=96, n_head=12, n_layer=2, vocab_size=VOCABULARY),
    "llama": LlamaConfig(
        **SIZES, hidden_size=96, intermediate_size=224, num_attention_heads=6, num_key_value_heads=3, head_dim=22,
        tie_word_embeddings=True,
    ),
    "mistral": MistralConfig(
        **SIZES, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=1, sliding_window=70
    ),
}  # fmt: skip
GROUPED = LlamaConfig(
    **SIZES, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, attention_bias=True
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny models, by name."""
    root = tmp_path_factory.mktemp("models")
    configs = CONFIGS | {"grouped": GROUPED}
    return {name: save(random_model(config), root / name) for name, config in configs.items()}


@pytest.fixture(params=["reference", *KERNELS])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference device, and the CPU device with each set of kernels."""
    if request.param == "reference":
        return "reference"
    monkeypatch.setenv(VARIABLE, request.param)
    return "cpu"


def open_llm(directory: Path | None, device: str, **options: Any) -> LLM:
    return LLM(None if directory is None else str(directory), device=device, **options)


def scheduled_logits(
    llm: LLM, texts: Sequence[Sequence[int]], steps: Sequence[Sequence[tuple[int, int]]], blocks: Sequence[int]
) -> list[NDArray[np.float32]]:
    """The logits of texts whose rows are computed in the given steps.

    Args:
        llm: the model.
        texts: token ids.
        steps: for each step which texts take part, in which order, each with how many rows.
        blocks: the cache blocks 1, 2, ... in the order in which the texts take them.

    Returns:
        For each text (T, V) float32.
    """
    needed = [-(-len(text) // 64) for text in texts]
    cache = llm.loaded.allocate(len(blocks) + 1)
    table = np.zeros((len(texts), max(needed)), np.int32)
    free = iter(blocks)
    for slot, count in enumerate(needed):
        table[slot, :count] = [next(free) for _ in range(count)]
    executable = llm.loaded.compile("logits", 0, cache)
    done = [0] * len(texts)
    found: list[list[NDArray[np.float32]]] = [[] for _ in texts]
    for step in steps:
        tokens, positions, slots = [], [], []
        segments = np.zeros((len(texts), 3), np.int32)
        for i, (slot, rows) in enumerate(step):
            segments[i] = len(tokens), rows, done[slot]
            tokens += texts[slot][done[slot] : done[slot] + rows]
            positions += range(done[slot], done[slot] + rows)
            slots += [slot] * rows
        inputs = {"tokens": tokens, "positions": positions, "slots": slots, "logit_rows": range(len(tokens))}
        arrays = {name: np.array(values, np.int32) for name, values in inputs.items()}
        logits = executable.run({**arrays, "segments": segments, "block_table": table})["logits"]
        for (slot, rows), (first, *_) in zip(step, segments, strict=False):
            found[slot].append(logits[first : first + rows])
            done[slot] += rows
    assert done == [len(text) for text in texts]
    return [np.concatenate(parts) for parts in found]


def same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    assert found.dtype == expected.dtype == np.float32
    return found.tobytes() == expected.tobytes()


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[int], list[list[tuple[int, int]]], list[int]]:
    """Lengths of texts, steps that compute them in chunks together, and an order of cache blocks."""
    lengths = draw(st.lists(st.integers(1, 140), min_size=1, max_size=4))
    left, steps = list(lengths), []
    while any(left):
        waiting = draw(st.permutations([i for i, count in enumerate(left) if count]))
        chosen = waiting[: draw(st.integers(1, len(waiting)))]
        sizes = st.sampled_from([1, 2, 7, 16, 33, 64, 140])
        step = [(i, min(left[i], draw(sizes))) for i in chosen]
        for i, rows in step:
            left[i] -= rows
        steps.append(step)
    count = sum(-(-length // 64) for length in lengths)
    return lengths, steps, list(draw(st.permutations(range(1, count + 1))))


@pytest.mark.parametrize("cache", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_any_schedule(models, device, name, cache):
    """With as many threads as there are cores, against one thread and a text at a time."""
    texts = prompts((140,) * 4)
    with open_llm(models[name], device, cache=cache, threads=1) as llm:
        alone = [llm.logits(text) for text in texts]
    with open_llm(models[name], device, cache=cache) as llm:

        @given(schedules())
        @settings(max_examples=15, deadline=None)
        def check(schedule):
            lengths, steps, blocks = schedule
            cut = [text[:length] for text, length in zip(texts, lengths, strict=False)]
            for i, found in enumerate(scheduled_logits(llm, cut, steps, blocks)):
                assert same_bits(found, alone[i][: lengths[i]])

        check()


@pytest.mark.parametrize(("name", "weights"), [("bloom", "native"), ("grouped", "int8"), ("llama", "bf16")])
def test_many_sequences(models, device, name, weights):
    """More than the 64 that `complete` has on their way, each with rows of its own in every step."""
    texts = prompts(tuple(5 + i % 4 for i in range(67)))
    with open_llm(models[name], device, weights=weights) as llm:
        alone = [llm.logits(text) for text in texts]
        every = range(len(texts))
        steps = [[(i, 2) for i in every], *([(i, 1) for i in every if 2 + n < len(texts[i])] for n in range(6))]
        for found, expected in zip(scheduled_logits(llm, texts, steps, range(1, 68)), alone, strict=True):
            assert same_bits(found, expected)


KINDS = ["native", "bf16", "fp16", "int8", "int8-g32", "int4", "int4m", "int4-g64", "int4m-g128", "fp8"]


@pytest.mark.parametrize("weights", KINDS)
def test_chunks_by_weight_kind(models, device, weights):
    """Separately opened, so that the weights also stand at other addresses."""
    if (device, weights) == ("cpu", "fp8"):
        pytest.skip("no kernels")
    (text,) = prompts((150,))
    found = []
    for i, chunk in enumerate((256, 1, 7, 64)):
        threads = 1 + i % usable_cores()
        with open_llm(models["grouped"], device, weights=weights, prefill_chunk=chunk, threads=threads) as llm:
            found.append((llm.logits(text), llm.score(text)))
    for logits, scores in found[1:]:
        assert same_bits(logits, found[0][0])
        assert same_bits(scores, found[0][1])


@pytest.mark.parametrize(
    ("name", "weights"),
    [*((name, "native") for name in CONFIGS), ("bloom", "int8"), ("grouped", "int4m"), ("mistral", "int4")],
)
def test_fused_and_unfused(models, device, name, weights):
    (text,) = prompts((70,))
    with open_llm(models[name], device, weights=weights) as llm:
        fused = scheduled_logits(llm, [text], [[(0, 70)]], [1, 2])[0]

        def unfused(finish: Any, top: int, cache: Any) -> Any:
            kinds = llm.loaded._kinds
            program = trace(llm.config, finish, lambda name, shape: kinds[name], llm.loaded.cache_dtype)
            assert len(fuse(program).ops) < len(program.ops)
            return llm.loaded.device.compile(widen(program), llm.loaded._weights, cache)

        llm.loaded.compile = unfused  # type: ignore[method-assign]
        assert same_bits(scheduled_logits(llm, [text], [[(0, 70)]], [2, 1])[0], fused)


def requests(llm: LLM, texts: Sequence[Sequence[int]], **params: Any) -> list[Any]:
    from anthesis.engine.sampling import SamplingParams

    chosen = [SamplingParams(max_new_tokens=40, ignore_eos=True, logprobs=3, **params) for _ in texts]
    return [
        llm._intake.sequences(text, one, 11 + i, chat=False)[0]
        for i, (text, one) in enumerate(zip(texts, chosen, strict=True))
    ]


SAMPLED = {"temperature": 1.5, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.2}


@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("name", "chunk"), [("bloom", 40), ("llama", 1), ("mistral", 256)])
def test_joined_midway(models, device, name, params, chunk):
    """Tokens and the bits of their log-probabilities, alone and while others come and go."""
    texts = prompts((70, 3, 64, 1, 130))
    with open_llm(models[name], device, prefill_chunk=chunk) as llm:
        engine: Engine = llm._engine
        alone = requests(llm, texts, **params)
        for sequence in alone:
            engine.run([[sequence]], 1)
        together = requests(llm, texts, **params)
        waiting, overlaps, steps = list(together), set(), 0
        while not all(sequence.finished for sequence in together):
            if steps % (25 if chunk == 1 else 9) == 0 and waiting:
                engine.submit([waiting.pop(0)])
            engine.step()
            steps += 1
            overlaps.add(tuple(0 < len(sequence.completion) < 40 for sequence in together))
        assert max(sum(overlap) for overlap in overlaps) >= 2
        assert len(overlaps) > 5
        for one, other in zip(alone, together, strict=True):
            assert one.completion == other.completion
            assert one.logprobs == other.logprobs
        assert len({tuple(sequence.completion) for sequence in alone}) == len(texts)


@pytest.mark.parametrize("name", ["bloom", "mistral"])
def test_every_way_of_decoding(models, device, name):
    """Shared prefixes and drafts change nothing; drafts are as long as they can be."""
    with open_llm(models[name], device, reuse_prefixes=False) as llm:
        expected = decoded(llm)
        assert reused(llm) == 0
    with open_llm(models[name], device, speculate="lookup", prefill_chunk=30) as llm:
        speculation = llm._engine._speculation
        assert speculation is not None
        speculation.times = StepTimes([1e-6] * len(SIZES_OF_STEPS))
        assert decoded(llm) == expected
        assert reused(llm) > 100


def test_the_default_model(device):
    if device == "reference":
        pytest.skip("that takes seconds there, and small models are compared all the same")
    texts = [[1, 4093, 198, 2683, 359, 253], list(range(1000, 1070)), [28] * 3]
    with open_llm(None, device) as llm:
        alone = [llm.logits(text) for text in texts]
        steps = [[(2, 1), (0, 6), (1, 50)], [(1, 3)], [(1, 17), (2, 2)]]
        for found, expected in zip(scheduled_logits(llm, texts, steps, [3, 1, 4, 2]), alone, strict=True):
            assert same_bits(found, expected)
