"""One tokenizer, whatever file it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anthesis.errors import RequestError
from anthesis.tokenizer.backend import library_errors
from anthesis.tokenizer.chat import ChatTemplate
from anthesis.tokenizer.detokenize import TextStream, detokenizer_factory

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_CONTINUED_TOKENS = 16
"""More than a character has bytes, so enough to know what a continued text ends with."""


class Tokenizer:
    """Encodes text to token ids and decodes them, as the model was trained.

    Attributes:
        size: one more than the greatest id it knows; a model's rows from here on are padding, never to be generated.
        vocab_size: how many ids it knows; less than `size` where the vocabulary has gaps.
        bos_token_id: id of the token that begins a text, or None.
        eos_token_ids: ids that end a text, as far as the tokenizer's own files say; may be empty.
        backend: the library's tokenizer, which does the work.
        chat_template: or None.

    Args:
        backend: padding and truncation are switched off.
        bos_token_id, eos_token_ids, chat_template: as the attributes.
        usable_vocab_size: ids the model has embeddings for, or None for no check.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos_token_id: int | None,
        eos_token_ids: tuple[int, ...],
        chat_template: ChatTemplate | None,
        usable_vocab_size: int | None,
    ) -> None:
        # A tokenizer.json keeps the padding and truncation of whoever saved it: they are not part of the encoding.
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.chat_template = chat_template
        self._usable_vocab_size = usable_vocab_size
        self._special_ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        # The state of this one part is its JSON; asking the whole tokenizer for JSON would write out the vocabulary.
        state = backend.decoder.__getstate__() if backend.decoder is not None else b"null"
        self._make_detokenizer = detokenizer_factory(json.loads(state))
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` and `encode_chat` work."""
        return self.chat_template is not None

    def is_like(self, other: Tokenizer) -> bool:
        """Whether both have the same tokens under the same ids."""
        mine, theirs = (t.backend.get_vocab(with_added_tokens=True) for t in (self, other))
        return bool(mine == theirs)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text.

        Args:
            text: any text; special tokens spelled out in it become their ids.
            add_special_tokens: put the tokens around it that the tokenizer's files ask for (often a first `<s>`).

        Returns:
            Token ids; none for an empty text without special tokens.

        Raises:
            RequestError: text that is not valid Unicode (a lone surrogate), or that needs an id the model has no
                embedding for.
            TokenizerError: the tokenizer is damaged.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which is no "
                "character; decode it from its bytes again"
            ) from None
        with library_errors("the tokenizer is damaged, so it can't encode the text"):
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        limit = self._usable_vocab_size
        if limit is not None and ids and max(ids) >= limit:
            raise RequestError(
                f"the text needs token id {max(ids)} ({self.backend.id_to_token(max(ids))!r:.60}), but the model has "
                f"{limit} ids; is this the model's own tokenizer?"
            )
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens, and with spaces left as they are.

        Raises:
            RequestError: an id that is negative or not below `size`.
            TokenizerError: the tokenizer is damaged.
        """
        for token_id in token_ids:
            self._check(token_id)
        with library_errors("the tokenizer is damaged, so it can't decode the tokens"):
            return self.backend.decode(list(token_ids), skip_special_tokens=True)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A fresh incremental decoder, for one sequence.

        Args:
            after: ids of the text that the sequence continues. Its own text is not part of the stream, but the
                decoders that treat a text's beginning differently know that it is over.
        """
        stream = TextStream(self._text_token, self._make_detokenizer())
        for token_id in after[-_CONTINUED_TOKENS:]:
            stream.push(token_id)
        return stream

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt text for a conversation, as the model's own template writes it.

        Args:
            messages: from first to last, each with "role" ("system", "user", "assistant", ...) and "content".
            add_generation_prompt: end with what begins the assistant's answer.

        Raises:
            RequestError: the model has no template, or `messages` is empty or malformed.
            TokenizerError: the template failed or refused the messages.
        """
        if self.chat_template is None:
            raise RequestError("the model has no chat template; write the prompt as the model was trained to read it")
        return self.chat_template.render(messages, add_generation_prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """The token ids of `apply_chat_template`, whose text already holds its special tokens: none are added."""
        return self.encode(self.apply_chat_template(messages, add_generation_prompt), add_special_tokens=False)

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.size:
            raise RequestError(f"token id {token_id} is unknown to the tokenizer, whose ids are 0 .. {self.size - 1}")

    def _text_token(self, token_id: int) -> str | None:
        self._check(token_id)
        return None if token_id in self._special_ids else self.backend.id_to_token(token_id)
