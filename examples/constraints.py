"""What a completion must not contain, must begin with, and is favoured: python examples/constraints.py [PROMPT]"""

import sys
from typing import Any

from anthesis import LLM

prompt = " ".join(sys.argv[1:]) or "The capital of France is"
with LLM() as llm:
    city = llm.encode(" city")[-1]
    choices: list[dict[str, Any]] = [
        {},
        {"bad_words": ["Paris", "located"]},
        {"forced_prefix": " not London, it is"},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 16},
        {"logit_bias": {city: 4.0}},  # added to the token's logit: 4 makes it some 55 times as likely
    ]
    for constraints in choices:
        (completion,) = llm.generate(prompt, max_new_tokens=16, **constraints)
        print(f"{constraints}: {completion.text!r}")
