"""Speculative decoding: the same text from fewer readings of the weights.

python examples/speculation.py [DRAFT_MODEL], a small one with the model's tokenizer; left out, drafts are looked up in
the text so far, which helps where it repeats itself.
"""

import sys

from anthesis import LLM

speculate = sys.argv[1] if sys.argv[1:] else "lookup"
prompt = """The original document:

{"name": "Ada", "city": "Lyon", "age": 36}
{"name": "Ben", "city": "Leeds", "age": 41}
{"name": "Cleo", "city": "Uppsala", "age": 29}

The same document once more:

{"name": "Ada","""
texts = []
for how in (None, speculate):
    with LLM(speculate=how) as llm:
        (completion,) = llm.generate(prompt, max_new_tokens=48)
        texts.append(completion.text)
        print(
            f"{how or 'plain'}: {len(completion.token_ids)} tokens in {completion.steps} steps, "
            f"{completion.accepted_tokens} of {completion.drafted_tokens} drafted tokens were right, "
            f"{completion.timing.total_s * 1e3:.0f} ms"
        )
print("the same text" if texts[0] == texts[1] else "another text")
