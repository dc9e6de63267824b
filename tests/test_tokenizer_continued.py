"""A completion's text continues the prompt's: what a decoder does at the start of a text is not done again."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from anthesis.tokenizer.tokenizer import Tokenizer


def metaspace() -> Tokenizer:
    vocab = {"▁a": 0, "▁b": 1, "c": 2}
    backend = Backend(models.WordLevel(vocab, unk_token="c"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None, usable_vocab_size=None)


def text(tokenizer: Tokenizer, ids: list[int], after: list[int]) -> str:
    stream = tokenizer.stream(after)
    return "".join(stream.push(i) for i in ids) + stream.finish()


def test_the_space_before_a_completion_is_kept_and_that_before_a_text_is_not() -> None:
    tokenizer = metaspace()
    assert text(tokenizer, [0, 1], after=[]) == "a b"
    assert text(tokenizer, [1, 2], after=[0]) == " bc"
    assert tokenizer.decode([0]) + text(tokenizer, [1, 2], after=[0]) == tokenizer.decode([0, 1, 2])
