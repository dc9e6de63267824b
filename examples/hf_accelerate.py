"""A transformers model that is in memory, run by Anthesis: python examples/hf_accelerate.py MODEL [PROMPT]"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anthesis.hf import accelerate

name, *prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
theirs = AutoModelForCausalLM.from_pretrained(name)
ours = accelerate(theirs)  # a copy of the weights, in Anthesis' own layout; `theirs` may go, or be trained on
inputs = tokenizer(prompt or ["The capital of France is"], return_tensors="pt", return_token_type_ids=False)
for model in (theirs, ours):
    begin = time.perf_counter()
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    print(f"{time.perf_counter() - begin:6.3f} s  {tokenizer.decode(ids[0])!r}")
with torch.no_grad():
    apart = (theirs(**inputs).logits.float() - ours(**inputs).logits).abs().max()
print(f"logits are at most {apart:.2g} apart")
