"""A text without the letter e, up to its first full stop: python examples/hf_processors.py [MODEL]"""

import sys

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from anthesis.hf import AnthesisForCausalLM

model = AnthesisForCausalLM.from_pretrained(*sys.argv[1:])  # none: the embedded SmolLM2
tokenizer = model.tokenizer


class Without(LogitsProcessor):
    def __init__(self, letter):
        texts = tokenizer.batch_decode([[i] for i in range(model.config.vocab_size)])
        self.banned = torch.tensor([letter in text.lower() for text in texts])

    def __call__(self, input_ids, scores):
        return scores.masked_fill(self.banned, -torch.inf)


class FullStop(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor(["." in tokenizer.decode(row[-1:]) for row in input_ids])


inputs = tokenizer(["A long, long time ago,"], return_tensors="pt")
ids = model.generate(
    **inputs,
    max_new_tokens=30,
    num_beams=2,
    logits_processor=LogitsProcessorList([Without("e")]),
    stopping_criteria=StoppingCriteriaList([FullStop()]),
)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
