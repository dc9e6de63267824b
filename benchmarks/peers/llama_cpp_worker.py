"""llama.cpp, through the low-level functions of llama-cpp-python: decode, look at the logits, take the greatest.

No sampler runs and no text is made. Everything that is not set here is llama.cpp's default: cache in f16, flash
attention "auto", 512 rows in one pass, weights repacked for the processor.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any

import llama_cpp
import numpy as np

from peers.worker import Generate, Generated, Prompts, serve

BATCH_ROWS = 512
CONTEXT_STEP = 256
"""A sequence's room in the cache is rounded up to a multiple of this."""


def load(options: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """The model as its file holds it."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(options["model"].encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp could not load the model")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    @cache
    def context(num_sequences: int, max_tokens: int) -> Any:
        """A context with room for so many tokens of each of so many sequences."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_sequences * max_tokens, num_sequences
        params.n_batch = params.n_ubatch = BATCH_ROWS
        params.n_threads = params.n_threads_batch = options["threads"]
        made = llama_cpp.llama_init_from_model(model, params)
        if not made:
            raise SystemExit("llama.cpp could not make a context")
        return made

    def generate(prompts: Prompts, new_tokens: int) -> Generated:
        longest = max(map(len, prompts)) + new_tokens
        ctx = context(len(prompts), -(-longest // CONTEXT_STEP) * CONTEXT_STEP)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), False)
        batch = llama_cpp.llama_batch_init(max(BATCH_ROWS, len(prompts)), 0, 1)
        result = Generated()
        begin = time.perf_counter()
        rows = [(token, i, sequence) for sequence, ids in enumerate(prompts) for i, token in enumerate(ids)]
        wanted = [i + 1 == len(prompts[sequence]) for _, i, sequence in rows]
        for step in range(new_tokens):
            tokens: list[int] = []
            for first in range(0, len(rows), BATCH_ROWS):
                tokens += decode(ctx, batch, rows[first : first + BATCH_ROWS], wanted[first : first + BATCH_ROWS])
            result.add_step(time.perf_counter() - begin, tokens)
            rows = [(token, len(prompts[i]) + step, i) for i, token in enumerate(tokens)]
            wanted = [True] * len(rows)
        result.total_s = time.perf_counter() - begin
        llama_cpp.llama_batch_free(batch)
        return result

    def decode(ctx: Any, batch: Any, rows: list[tuple[int, int, int]], wanted: list[bool]) -> list[int]:
        """Runs rows (token, position, sequence), and gives the likeliest token after each one that is wanted."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted[i]
        status = llama_cpp.llama_decode(ctx, batch)
        if status != 0:
            raise SystemExit(f"llama_decode answered {status}")
        return [greatest(ctx, i) for i, is_wanted in enumerate(wanted) if is_wanted]

    def greatest(ctx: Any, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(ctx, row)
        return int(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (vocab_size,)).argmax())

    built_for = llama_cpp.llama_print_system_info().decode().replace(" = 1", "").strip(" |")
    return generate, {"note": f"cache f16, flash attention auto; {built_for}"}


if __name__ == "__main__":
    serve(load, ["llama-cpp-python", "numpy"])
