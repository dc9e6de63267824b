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


def as_strings(stop: Sequence[str]) -> tuple[str, ...]:
    """Several stop strings, from one or several."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


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
