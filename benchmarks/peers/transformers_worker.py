"""transformers, eager: its own model code with its own cache, in the shortest loop that decodes greedily.

The loop leaves out what `generate` does besides (stopping criteria, processing of logits), so it is never slower.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from peers.worker import Generate, Generated, Prompts, serve

BATCH = 32
"""Prompts at once; there is no continuous batching, so these begin and end together."""


def load(options: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """The model in bfloat16."""
    torch.set_num_threads(options["threads"])
    model, info = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.bfloat16, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"the file does not hold this model's weights: {info}")
    model.eval()

    @torch.inference_mode()
    def complete(prompts: Prompts, new_tokens: int, begin: float) -> Generated:
        result = Generated()
        ids, past = torch.tensor(prompts), None
        for _ in range(new_tokens):
            out = model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            ids, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            tokens = ids[:, 0].tolist()
            result.add_step(time.perf_counter() - begin, tokens)
        return result

    def generate(prompts: Prompts, new_tokens: int) -> Generated:
        begin = time.perf_counter()
        parts = [complete(prompts[i : i + BATCH], new_tokens, begin) for i in range(0, len(prompts), BATCH)]
        return Generated(
            time.perf_counter() - begin,
            [times for part in parts for times in part.token_s],
            [ids for part in parts for ids in part.tokens],
        )

    note = f"attention {model.config._attn_implementation}, {BATCH} sequences at most at once"
    return generate, {"note": note}


if __name__ == "__main__":
    serve(load, ["transformers", "torch"])
