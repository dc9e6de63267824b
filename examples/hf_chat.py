"""A chat whose answers stream: python examples/hf_chat.py [MODEL], then a line for each turn; an empty one ends."""

import sys
from threading import Thread

from transformers import TextIteratorStreamer

from anthesis.hf import AnthesisForCausalLM

model = AnthesisForCausalLM.from_pretrained(*sys.argv[1:])  # none: the embedded SmolLM2
tokenizer = model.tokenizer
messages = []
for line in sys.stdin:
    if not line.strip():
        break
    messages.append({"role": "user", "content": line.strip()})
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 40}).start()
    answer = ""
    for piece in streamer:  # what is there already, while the rest is being computed
        answer += piece
        print(piece, end="", flush=True)
    print()
    messages.append({"role": "assistant", "content": answer})  # of the next prompt only what is new is computed
