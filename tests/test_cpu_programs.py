"""Whole programs of random models on the CPU device, against the reference executor in float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anthesis.devices.cpu import CpuDevice
from anthesis.models import trace
from anthesis.program.fuse import fuse
from anthesis.program.reference import execute
from cpu_variants import kernels, on_cpu
from programs import blocks_of, caches, config_of, random_weights, step_inputs

__all__ = ["kernels"]


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """A config.json of some family, of any small sizes.

    Norms have a large epsilon: what divides by nearly nothing is a different number in float32.
    """
    family = draw(st.sampled_from(["bloom", "llama", "mistral", "qwen3", "gpt2"]))
    kv_heads, share = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size, layers = 2 * draw(st.integers(1, 20)), draw(st.integers(1, 2))
    vocabulary = draw(st.integers(3, 200))
    if family == "bloom":
        return {"model_type": "bloom", "hidden_size": kv_heads * share * size, "n_head": kv_heads * share,
                "n_layer": layers, "vocab_size": vocabulary, "layer_norm_epsilon": 0.1,
                "apply_residual_connection_post_layernorm": draw(st.booleans())}  # fmt: skip
    if family == "gpt2":
        return {"model_type": "gpt2", "n_embd": kv_heads * share * size, "n_layer": layers, "n_head": kv_heads * share,
                "n_positions": 256, "vocab_size": vocabulary, "layer_norm_epsilon": 0.1}  # fmt: skip
    hidden = draw(st.integers(4, 70)) if family == "qwen3" else kv_heads * share * size
    return {
        "model_type": family, "hidden_size": hidden, "intermediate_size": draw(st.integers(1, 100)),
        "num_hidden_layers": layers, "num_attention_heads": kv_heads * share, "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary, "head_dim": size, "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": 0.1, "attention_bias": draw(st.booleans()),
        "mlp_bias": family == "llama" and draw(st.booleans()),
        "sliding_window": draw(st.integers(1, 150)) if family == "mistral" else None,
    }  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=models(), seed=st.integers(0, 2**32 - 1), fused=st.booleans(), threads=st.integers(1, 2), data=st.data())
def test_logits(kernels: str, raw: dict[str, Any], seed: int, fused: bool, threads: int, data: st.DataObject) -> None:
    """Two steps, the second with rows of prompts and of completions side by side; the best tokens too."""
    config = config_of(raw)
    kinds: dict[str, str] = {}

    def kind_of(name: str, shape: tuple[int, ...]) -> str:
        drawn = "fp32" if len(shape) == 1 else data.draw(st.sampled_from(["fp32", "fp16"]))
        return kinds.setdefault(name, drawn)

    traced = trace(config, "logits", kind_of, "fp32")
    weights = {
        name: array.astype(np.float16).astype(np.float64) for name, array in random_weights(traced, seed=seed).items()
    }
    program = fuse(traced) if fused else traced
    greedy = trace(config, "argmax", lambda name, shape: kinds[name], "fp32")
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return rng.integers(0, config.vocab_size, count).tolist()

    first = data.draw(st.lists(st.integers(1, 130), min_size=1, max_size=6))
    then = [data.draw(st.sampled_from([1, 1, 1, 5, 40])) for _ in first]
    steps = [
        step_inputs([(slot, 0, tokens(count)) for slot, count in enumerate(first)]),
        step_inputs([(slot, first[slot], tokens(count)) for slot, count in enumerate(then)]),
    ]
    blocks = blocks_of(steps[0])
    arrays = weights | caches(program, blocks)
    executable = on_cpu(program, weights, blocks=blocks, threads=threads)
    chooser = on_cpu(fuse(greedy) if fused else greedy, weights, blocks=blocks, threads=threads)
    for inputs in steps:
        found = executable.run(inputs)["logits"]
        true = execute(program, arrays | inputs)["logits"]
        scale = max(1.0, float(np.abs(true).max()))
        assert np.abs(found - true).max() < 2e-4 * scale
        token = chooser.run(inputs)["token"]
        best = true[:, : config.usable_vocab_size].max(axis=1)
        assert (best - true[np.arange(len(true)), token] < 4e-4 * scale).all()


def test_steps_of_two_threads_wait_for_each_other(kernels: str) -> None:
    """Of two programs on one device, and of one program."""
    program = fuse(
        trace(config_of({"model_type": "bloom", "hidden_size": 64, "n_head": 2, "n_layer": 3, "vocab_size": 90}))
    )
    weights = random_weights(program)
    device = CpuDevice(2)
    rng = np.random.default_rng(0)
    steps = [step_inputs([(0, 0, rng.integers(0, 90, count).tolist())]) for count in (3, 61, 17, 5)]
    blocks = blocks_of(steps[1])
    one, other, alone = (on_cpu(program, weights, blocks=blocks, device=device) for _ in range(3))
    expected = [alone.run(step)["token"] for step in steps]

    def run(executable: Any, i: int) -> bool:
        return all(np.array_equal(executable.run(steps[i])["token"], expected[i]) for _ in range(40))

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(run, [one, other], [0, 1]))
        assert all(threads.map(run, [one, one], [2, 3]))


def test_use_after_fork_is_an_error(kernels: str) -> None:
    import os

    program = fuse(
        trace(config_of({"model_type": "bloom", "hidden_size": 16, "n_head": 2, "n_layer": 1, "vocab_size": 9}))
    )
    weights = random_weights(program)
    inputs = step_inputs([(0, 0, [1, 2, 3])])
    executable = on_cpu(program, weights, blocks=blocks_of(inputs), threads=2)
    executable.run(inputs)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            executable.run(inputs)
            message = "no error"
        except RuntimeError as error:
            message = str(error)
        os.write(writing, message.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert "forked after the model was opened" in pipe.read()
    os.waitpid(child, 0)
    assert executable.run(inputs)["token"].shape == (3,)
