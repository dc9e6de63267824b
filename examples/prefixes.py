"""Prompts that begin with the same instruction: it is computed once: python examples/prefixes.py"""

from anthesis import LLM

INSTRUCTION = """You sort the messages that customers send to a shop. Answer with a single word: order, for questions
about an order that was placed; product, for questions about something that is sold; other, for all else. Do not
explain your answer, and do not answer the customer.

Message: Where is the parcel that I ordered last week?
Answer: order

Message: How long is the blue rope?
Answer: product

Message: """
MESSAGES = ["What does the green lamp cost?", "When will my second order arrive?", "Who wrote Hamlet?"]

with LLM() as llm:
    prompts = [f"{INSTRUCTION}{message}\nAnswer:" for message in MESSAGES]
    for message, completion in zip(MESSAGES, llm.generate(prompts, max_new_tokens=1), strict=True):
        tokens = len(completion.prompt_token_ids)
        print(
            f"{message} {completion.text!r} ({completion.reused_tokens} of {tokens} prompt tokens were there already)"
        )
