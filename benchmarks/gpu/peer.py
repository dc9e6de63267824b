"""transformers' BLOOM beside ours on the same card: the same shapes, prompt and counts, in turns.

Its weights are random too, and bf16. It completes by `generate`, as its documentation advises for latency: a static
cache, with the decoding step compiled (`mode="reduce-overhead"`: captured in CUDA graphs), which `generate` does by
itself on a card; and as it comes, with a growing cache and nothing compiled. Both are measured, and one that does not
work says why.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from anthesis import LLM
from anthesis.devices import open_device
from anthesis.devices.accelerator.device import AcceleratorDevice
from anthesis.models.bloom import FAMILY
from gpu.work import Row

TURNS = 5
WARMUP = 3
"""Calls before: the first compiles, the second captures."""

WAYS: dict[str, dict[str, Any]] = {
    "growing cache, eager": {},
    "static cache, compiled": {"cache_implementation": "static"},
}
"""What `generate` is given besides the counts."""

Generate = Callable[[], int]
"""Completes the prompt, waits for the card, and gives the number of new tokens."""


def compare(row: Row) -> Iterator[dict[str, Any]]:
    """Ours and each way of transformers, in turns; seconds of every call.

    Yields:
        What is known so far: `ways` by name, ours among them as "anthesis", each with its calls before (`warmup_s`) and
        those that count (`total_s`), or with an error; and `best`, the fastest way of transformers.
    """
    opened = open_device("cuda")
    assert isinstance(opened, AcceleratorDevice)
    found: dict[str, Any] = {"transformers": version("transformers"), "torch": torch.__version__, "ways": {}}
    with LLM(row.source, weights=row.weights, device="cuda") as llm:
        prompt = llm.made_up_prompt(row.prompt_tokens)

        def ours() -> int:
            (completion,) = llm.generate([prompt], max_new_tokens=row.new_tokens, ignore_eos=True, batch=1)
            return len(completion.token_ids)

        model = build(row, opened.device)
        calls: dict[str, Generate] = {"anthesis": ours}
        for name, options in WAYS.items():
            calls[name] = generation(model, prompt, row.new_tokens, options)
        for name, call in list(calls.items()):
            found["ways"][name] = way = {"warmup_s": [], "total_s": [], "error": None}
            try:
                for _ in range(WARMUP):
                    way["warmup_s"].append(seconds_of(call, row.new_tokens))
            except Exception as error:  # noqa: BLE001 (whatever compiling may raise)
                way["error"] = f"{type(error).__name__}: {error}"[:1000]
                del calls[name]
            yield found
        for turn in range(TURNS):
            order = list(calls.items())
            for name, call in order if turn % 2 else reversed(order):
                found["ways"][name]["total_s"].append(seconds_of(call, row.new_tokens))
            yield found
    measured = {name: found["ways"][name]["total_s"] for name in calls if name != "anthesis"}
    found["best"] = min(measured, key=lambda name: statistics.median(measured[name]), default=None)
    yield found


def build(row: Row, device: torch.device) -> Any:
    """transformers' model of a row's shapes, with random weights made on the device."""
    from transformers import BloomConfig, BloomForCausalLM

    raw = dict(FAMILY.presets[row.model] if row.config is None else json.loads(Path(row.config).read_text()))
    del raw["model_type"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = BloomForCausalLM(BloomConfig(**raw, use_cache=True)).eval()
    finally:
        torch.set_default_dtype(before)
    # past any end of the text: exactly as many tokens as are asked for
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def generation(model: Any, prompt: list[int], new_tokens: int, options: dict[str, Any]) -> Generate:
    """One call of `generate`, greedy."""
    ids = torch.tensor([prompt], device=model.device)

    def call() -> int:
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            **options,
        )
        return len(out[0].tolist()) - len(prompt)  # on the host, so the card is done

    return call


def seconds_of(call: Generate, new_tokens: int) -> float:
    """The time of one call, which must give as many tokens as were asked for."""
    begin = time.perf_counter()
    count = call()
    seconds = time.perf_counter() - begin
    if count != new_tokens:
        raise RuntimeError(f"{count} tokens came instead of {new_tokens}")
    return seconds
