"""What a prompt may be: a text, token ids, or the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from anthesis.errors import RequestError

Messages = Sequence[Mapping[str, str]]
Prompt = str | Sequence[int] | Messages


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """Several prompts, from one or several: one is a text, a list of ids or a list of messages."""
    if isinstance(prompts, str):
        return [prompts]
    found: list[Any] = list(prompts)
    return [found] if found and isinstance(found[0], int | np.integer | Mapping) else found


def as_messages(prompt: Prompt) -> Messages:
    """The messages of a chat; a text is one of the user.

    Raises:
        RequestError: token ids, or messages that are none.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = [message for message in prompt if isinstance(message, Mapping)]
    if not messages or len(messages) != len(prompt):
        raise RequestError('chat needs a text or a list of messages {"role": ..., "content": ...}')
    return messages


def as_token_ids(prompt: Prompt) -> list[int]:
    """The token ids of a prompt that is no text.

    Raises:
        RequestError: something else than ids.
    """
    ids = [int(token) for token in prompt if isinstance(token, int | np.integer)]
    if len(ids) != len(prompt):
        raise RequestError("a prompt must be a text or a list of token ids; messages need chat=True")
    return ids


def check_token_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuses ids that a model does not have.

    Args:
        ids: of a prompt.
        vocab_size: of the model: ids are below it.

    Raises:
        RequestError: one is outside, or there are none.
    """
    if not ids:
        raise RequestError("the prompt has no tokens; give at least one")
    if min(ids) < 0 or max(ids) >= vocab_size:
        bad = next(token for token in ids if not 0 <= token < vocab_size)
        raise RequestError(f"token id {bad} is outside the model's vocabulary of {vocab_size}")
