"""From what somebody asks for to the sequences that the engine runs: texts become ids, parameters are checked."""

from __future__ import annotations

import secrets
from dataclasses import replace

from anthesis.config import ModelConfig
from anthesis.engine.beams import BeamSearch
from anthesis.engine.constraints import Constraints
from anthesis.engine.group import BeamGroup
from anthesis.engine.sampling import SamplingParams
from anthesis.engine.sequence import Sequence, last_token
from anthesis.errors import RequestError
from anthesis.prompts import Prompt, as_messages, as_token_ids, check_token_ids
from anthesis.tokenizer import Tokenizer


class Intake:
    """Takes requests in for one model.

    Args:
        config: of the model.
        tokenizer: its own, or None.
        max_context: most tokens of prompt and completion together; None: no limit.
        description: of the model, for messages.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer | None, max_context: int | None, description: str
    ) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._max_context, self._description = max_context, description

    def encode(self, prompt: Prompt, chat: bool = False) -> list[int]:
        """The token ids of a prompt, checked.

        Raises:
            RequestError: as `LLM.encode`.
        """
        if chat or isinstance(prompt, str):
            if self._tokenizer is None:
                raise RequestError(f"{self._description} has no tokenizer; give token ids instead of text")
            if chat:
                ids = self._tokenizer.encode_chat(as_messages(prompt))
            else:
                assert isinstance(prompt, str)
                ids = self._tokenizer.encode(prompt)
        else:
            ids = as_token_ids(prompt)
        check_token_ids(ids, self._config.vocab_size)
        return ids

    def check_draft(self, draft: Intake) -> None:
        """Refuses a model whose drafts this one could not read.

        Raises:
            RequestError: it has other tokens.
        """
        theirs, own = draft._config.usable_vocab_size, self._config.usable_vocab_size
        tokenizer = draft._tokenizer
        mine = self._tokenizer
        differ = tokenizer is not None and mine is not None and not tokenizer.is_like(mine)
        if theirs != own or differ:
            raise RequestError(
                f"{draft._description} has {theirs:,} tokens, and {self._description} {own:,}, or others; a draft "
                "model must have the same tokenizer"
            )

    def sequences(self, prompt: Prompt, params: SamplingParams, seed: int | None, chat: bool) -> list[Sequence]:
        """The sequences of one prompt: one, or as many as it has beams or completions.

        Args:
            prompt: as of `LLM.generate`.
            params: but for the seed.
            seed: of its first completion, the next has one more; None: new ones.
            chat: as of `LLM.generate`.

        Raises:
            RequestError: as `LLM.generate`.
        """
        ids = self.encode(prompt, chat)
        count = params.num_beams if params.num_beams > 1 else params.num_return_sequences
        if seed is None:
            seed = secrets.randbits(64) if params.temperature > 0 else 0
        sequences = [self.sequence(ids, params, (seed + i) % 2**64 if i else seed) for i in range(count)]
        first = sequences[0]
        if params.num_beams > 1:
            search = BeamSearch(
                params.num_beams,
                max_new_tokens=first.limit - len(ids),
                end_ids=first.eos_token_ids,
                length_penalty=params.length_penalty,
                early_stopping=params.early_stopping,
            )
            BeamGroup(sequences, search)
        else:
            first.followers = sequences[1:]
            for follower in first.followers:
                follower.leader = first
        return sequences

    def sequence(self, ids: list[int], params: SamplingParams, seed: int) -> Sequence:
        """One sequence of a prompt's ids.

        Raises:
            RequestError: as `LLM.generate`.
        """
        if params.stop and self._tokenizer is None:
            raise RequestError(f"stop strings need a tokenizer, and {self._description} has none")
        limit, reason = last_token(len(ids), params.max_new_tokens, self._max_context)
        # ids that pad the embedding have no text; the model reads them all the same
        known = ids if self._tokenizer is None else [token for token in ids if token < self._tokenizer.size]
        ends = frozenset() if params.ignore_eos else frozenset(self._config.eos_token_ids)
        return Sequence(
            prompt=ids,
            params=replace(params, seed=seed),
            limit=limit,
            limit_reason=reason,
            eos_token_ids=ends,
            text_stream=None if self._tokenizer is None else self._tokenizer.stream(after=known),
            vocab_size=self._config.vocab_size,
            constraints=self._constraints(len(ids), params, ends),
        )

    def _constraints(self, prompt_tokens: int, params: SamplingParams, ends: frozenset[int]) -> Constraints | None:
        for token, _ in params.logit_bias:
            self._check("logit_bias", (token,))
        forced = () if params.forced_prefix is None else self._ids("forced_prefix", params.forced_prefix)
        if len(forced) > params.max_new_tokens:
            raise RequestError(
                f"forced_prefix has {len(forced)} tokens, and max_new_tokens is {params.max_new_tokens}; ask for more"
            )
        constraints = Constraints(
            bad_words=tuple(word for given in params.bad_words for word in self._spellings(given)),
            no_repeat_ngram_size=params.no_repeat_ngram_size,
            min_new_tokens=params.min_new_tokens,
            forced_prefix=forced,
            logit_bias=params.logit_bias,
            end_ids=ends,
            prompt_tokens=prompt_tokens,
        )
        return constraints if constraints.needs_logits(prompt_tokens) else None

    def _spellings(self, word: str | tuple[int, ...]) -> list[tuple[int, ...]]:
        """How a word that must not come could come: a text at the beginning of a line, and behind a space."""
        if not isinstance(word, str):
            return [self._ids("bad_words", word)]
        texts = [word] if word[0].isspace() else [word, f" {word}"]
        return list(dict.fromkeys(self._ids("bad_words", text) for text in texts))

    def _ids(self, name: str, word: str | tuple[int, ...]) -> tuple[int, ...]:
        if not isinstance(word, str):
            self._check(name, word)
            return word
        if self._tokenizer is None:
            raise RequestError(f"{name} has a text, and {self._description} has no tokenizer; give token ids")
        ids = tuple(self._tokenizer.encode(word, add_special_tokens=False))
        if not ids:
            raise RequestError(f"{name} has the text {word!r}, which has no tokens")
        return ids

    def _check(self, name: str, ids: tuple[int, ...]) -> None:
        usable = self._config.usable_vocab_size
        if bad := [token for token in ids if not 0 <= token < usable]:
            raise RequestError(f"{name} has the token id {bad[0]}, which is outside the model's vocabulary of {usable}")


def context_limit(model_limit: int | None, wanted: int | None) -> int | None:
    """Most tokens of prompt and completion together; None: no limit.

    Args:
        model_limit: for which the model was made.
        wanted: that were asked for.

    Raises:
        RequestError: more are wanted than the model was made for.
    """
    if wanted is not None and model_limit is not None and wanted > model_limit:
        raise RequestError(f"max_context is {wanted}, and the model was made for at most {model_limit} tokens")
    return model_limit if wanted is None else wanted
