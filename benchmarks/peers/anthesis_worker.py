"""Anthesis, through its Python interface."""

from __future__ import annotations

import time
from typing import Any

from anthesis import LLM
from anthesis.program.cost import cost
from anthesis.program.ir import Step
from peers.worker import Generate, Generated, Prompts, serve


def load(options: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """The model in the weight kind asked for, quantised on load where the file holds it wider."""
    llm = LLM(
        options["model"],
        weights=options["weights"],
        device=options["device"],
        threads=options["threads"],
        max_context=1024,
    )

    def generate(prompts: Prompts, new_tokens: int) -> Generated:
        begin = time.perf_counter()
        done = llm.generate(prompts, max_new_tokens=new_tokens, ignore_eos=True)
        total_s = time.perf_counter() - begin
        return Generated(total_s, [list(c.timing.token_s) for c in done], [c.token_ids for c in done])

    step = cost(llm.loaded.program("argmax"), Step(rows=1, logit_rows=1, context=1, sequences=1))
    info = llm.device_info
    note = f"device {info.name}, cache {llm.loaded.cache_dtype}, {info.full_batch} sequences at most at once"
    return generate, {"weight_bytes": step.weight_bytes, "weight_kinds": llm.loaded.weight_kinds, "note": note}


if __name__ == "__main__":
    serve(load, ["anthesis", "numpy"])
