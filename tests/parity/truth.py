"""Small models with random weights, made by transformers, and what transformers computes with them in float64.

The truth is float64 wherever transformers lets it be: its RMS norm, softmax and rotary angles are float32 throughout,
which moves logits by up to 1e-4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from anthesis import LLM
from cpu_variants import KERNELS, VARIABLE

torch.set_num_threads(1)  # the models are tiny; waiting threads would cost more than they bring

TOLERANCE = 5e-4
"""How far float32 logits may be from the truth."""

MARGIN = 1e-3
"""Where the truth's best token leads by more than this, greedy tokens must be equal."""

LENGTHS = (1, 2, 7, 63, 64, 65, 70)
"""Of prompts: around the block size, and the shortest ones."""

VOCABULARY = 331

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float64 model whose every parameter matters: norms are not ones, biases are not zeros, attention is not flat.

    The values are representable in float32.
    """
    model = AutoModelForCausalLM.from_config(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "norm" in name or "ln_f" in name:
                value = 1 + 0.3 * noise if name.endswith("weight") else 0.1 * noise
            elif name.endswith("bias"):
                value = noise * 0.1
            elif "embed" in name or "lm_head" in name:
                value = noise * 0.5
            else:
                value = noise * 1.7 / parameter.shape[1] ** 0.5
            parameter.copy_(value.float())
    return model


def change_weights(model: PreTrainedModel, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Replaces every parameter (a tied one once) by `change(name, parameter)`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(change(name, parameter))


def save(model: PreTrainedModel, directory: Path, dtype: str = "fp32", **options: Any) -> Path:
    """Writes the model as transformers does; with bf16 and fp16 the model itself is rounded to it first."""
    change_weights(model, lambda _, parameter: parameter.to(DTYPES[dtype]))
    state = {name: tensor.to(DTYPES[dtype]) for name, tensor in model.state_dict().items() if _is_stored(model, name)}
    model.save_pretrained(directory, state_dict=state, **options)
    return directory


def _is_stored(model: PreTrainedModel, name: str) -> bool:
    return name != "lm_head.weight" or not model.config.tie_word_embeddings


def edit_config(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes config.json by hand."""
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def edit_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Changes model.safetensors by hand."""
    path = directory / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in edit(load_file(path)).items()}, path)


def true_logits(model: PreTrainedModel, ids: Sequence[int], **options: Any) -> NDArray[np.float64]:
    """(T, V) float64: row t scores the token that follows token t."""
    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(ids)]), **options).logits[0])


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Random token ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, length).tolist() for length in lengths]


def difference(found: NDArray[np.floating], true: NDArray[np.floating]) -> float:
    """The largest absolute difference, of logits that are alive and finite."""
    assert found.shape == true.shape
    assert true.std(axis=1).min() > 0.5, "logits this flat would hide an error"
    assert np.isfinite(found).all()
    return float(np.abs(found - true).max())


PENALTY = 3.0
"""A repetition penalty that keeps random models, ALiBi's above all, from repeating one token for ever."""


def check_greedy(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], penalty: float = 1, compared: float = 0.9
) -> None:
    """Checks a greedy completion against the truth, which is given the completion's own tokens at every place.

    Args:
        model: the truth.
        prompt: its ids.
        completion: the ids to check.
        penalty: the repetition penalty under which they were chosen.
        compared: fraction of places at least where the truth's best token must lead by more than `MARGIN`.
    """
    true = true_logits(model, [*prompt, *completion])[len(prompt) - 1 : -1]
    seen = np.zeros_like(true, bool)
    seen[:, prompt] = True
    for row, token in enumerate(completion):
        seen[row + 1 :, token] = True
    true = np.where(seen, np.where(true > 0, true / penalty, true * penalty), true)
    second, best = np.sort(true, axis=1)[:, -2:].T
    leads = best - second > MARGIN
    assert leads.mean() >= compared, f"only {leads.mean():.0%} of the places could be compared"
    wrong = np.flatnonzero((true.argmax(axis=1) != completion) & leads)
    assert not wrong.size, f"other tokens than the truth's at {wrong.tolist()} of {len(completion)}"


ROUNDING = 0.1
"""What rounding the inputs of products to eight bits or to bf16 may change in these logits, by their spread."""


def check_parity(model: PreTrainedModel, directory: Path | str, **options: Any) -> None:
    """Checks logits and greedy completions of prompts of all `LENGTHS`, together and alone.

    Completions come from the CPU device, which is quick, where it takes the inputs of products as they are: with
    weights of float32 or float16. Their logits are checked on the reference device in both widths, and on the CPU
    device with each set of kernels.
    """
    texts = prompts(vocabulary=model.config.vocab_size)
    weights = options.get("weights", "fp32")
    exactly = weights in ("fp32", "fp16")
    on_cpu = {"device": "cpu", "weights": weights}
    with open_llm(directory, **({**options, **on_cpu} if exactly else {"device": "reference", **options})) as llm:
        for penalty in (None, PENALTY):
            settings: dict[str, Any] = {"max_new_tokens": 64, "ignore_eos": True, "repetition_penalty": penalty}
            chosen = texts[::2] if penalty is None else texts
            completions = [c.token_ids for c in llm.generate(chosen, **settings)]
            for prompt, completion in zip(chosen, completions, strict=True):
                check_greedy(model, prompt, completion, penalty or 1)
        distinct = min(len(set(completion)) for completion in completions)
        assert distinct > 32, f"texts that repeat themselves prove little: {distinct} different tokens of 64"
        assert [llm.generate(prompt, **settings)[0].token_ids for prompt in texts[::3]] == completions[::3]
    whole = [prompt + completion for prompt, completion in zip(texts, completions, strict=True)][::3]
    true = [true_logits(model, text) for text in whole]
    with open_llm(directory, "reference", **options) as llm, open_llm(directory, "reference-fp64", **options) as exact:
        for text, expected in zip(whole, true, strict=True):
            assert difference(llm.logits(text), expected) < TOLERANCE
        assert difference(exact.logits(whole[-1]), true[-1]) < TOLERANCE / 2
    if weights == "fp8":
        return  # which has no kernels on the CPU device
    for kernels in KERNELS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, kernels)
            with open_llm(directory, **{**options, **on_cpu}) as llm:
                for text, expected in zip(whole, true, strict=True):
                    if exactly:
                        assert difference(llm.logits(text), expected) < TOLERANCE
                    else:
                        error = np.sqrt(np.square(llm.logits(text) - expected).mean())
                        assert error < ROUNDING * expected.std()


@contextmanager
def open_llm(directory: Path | str, device: str = "reference", cache: str = "fp32", **options: Any) -> Iterator[LLM]:
    """The model in anthesis, its cache not rounded unless asked."""
    with LLM(str(directory), device=device, cache=cache, **options) as llm:
        yield llm
