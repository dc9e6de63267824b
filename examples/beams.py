"""Beam search: the three best completions of a prompt, with their scores: python examples/beams.py [PROMPT]"""

import sys

from anthesis import LLM

prompt = " ".join(sys.argv[1:]) or "The three primary colours are"
with LLM() as llm:
    found = llm.generate(
        prompt, max_new_tokens=12, num_beams=4, num_return_sequences=3, length_penalty=1.0, early_stopping=True
    )
    for completion in found:  # the best one first
        print(f"{completion.score:.3f} {completion.text!r}")
