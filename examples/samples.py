"""Several completions of one prompt, drawn; its computation is shared: python examples/samples.py [PROMPT]"""

import sys

from anthesis import LLM

prompt = " ".join(sys.argv[1:]) or "Once upon a time, in a village by the sea, there lived"
with LLM() as llm:
    completions = llm.generate(
        prompt, max_new_tokens=16, temperature=0.8, top_p=0.95, seed=1, num_return_sequences=4
    )  # the same seed gives the same four again
    for completion in completions:
        print(f"{completion.reused_tokens} of {len(completion.prompt_token_ids)} prompt tokens: {completion.text!r}")
