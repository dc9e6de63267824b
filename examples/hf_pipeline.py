"""Transformers' pipeline with Anthesis beneath: python examples/hf_pipeline.py [MODEL]"""

import sys

from transformers import pipeline

from anthesis.hf import AnthesisForCausalLM

model = AnthesisForCausalLM.from_pretrained(*sys.argv[1:])  # none: the embedded SmolLM2
generator = pipeline("text-generation", model=model, tokenizer=model.tokenizer)
prompts = ["The capital of France is", "Water boils at", "The first month of the year is"]
for (answer,) in generator(prompts, batch_size=8, max_new_tokens=12, do_sample=False):
    print(answer["generated_text"])
(answer,) = generator([{"role": "user", "content": "Name two colours."}], max_new_tokens=20, do_sample=False)
print(answer["generated_text"][-1])
