"""A decoding method of one's own: the answer that a document makes more likely than it was without it.

The two texts, with and without the document, advance together. Each token is the one whose logit the document raises
most: (1 + a) x with - a x without.

Source:
    Shi et al., "Trusting Your Evidence: Hallucinate Less with Context-aware Decoding" (NAACL 2024).
"""

from anthesis import LLM

A = 0.5
DOCUMENT = "The harbour of Brennick was built in 1743 by the shipowner Edda Lorne."
QUESTION = "Who built the harbour of Brennick? It was built by"

with LLM() as llm:
    tokens: list[int] = []
    with llm.lockstep([f"{DOCUMENT} {QUESTION}", QUESTION], max_new_tokens=16) as texts:
        while len(tokens) < 16:
            with_it, without = texts.logits()  # (2, V)
            token = int(((1 + A) * with_it - A * without).argmax())
            if token in llm.config.eos_token_ids:
                break
            tokens.append(token)
            texts.advance([token, token])
    print(llm.tokenizer.decode(tokens))
