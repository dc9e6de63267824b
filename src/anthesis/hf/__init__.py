"""Anthesis beneath the habits of Hugging Face Transformers: `generate`, `pipeline`, streamers, processors, chat.

from anthesis.hf import AnthesisForCausalLM, accelerate
model = AnthesisForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")   # or
model = accelerate(transformers_model)                                               # one that is in memory
transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)

Of transformers only what it documents is used, so that a release of theirs does not break one of ours.
"""

from anthesis.hf.release import check_release

check_release()  # before the modules below import what may not be there

from anthesis.hf.model import AnthesisForCausalLM, accelerate  # noqa: E402

__all__ = ["AnthesisForCausalLM", "accelerate"]
