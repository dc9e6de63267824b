"""A model without and with a LoRA adapter: python examples/adapter.py MODEL ADAPTER [PROMPT]"""

import sys

from anthesis import LLM

model, adapter, *prompt = sys.argv[1:]
for directory in (None, adapter):
    with LLM(model, adapter=directory) as llm:  # merged while it loads: steps take no longer
        (completion,) = llm.generate(prompt or "The capital of France is", max_new_tokens=20)
        print(f"{llm.description}: {completion.text!r}")
