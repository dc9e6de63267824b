"""The prompts a command line asks for: -p, --prompt-ids, --prompt-tokens, or what comes in on stdin."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anthesis.errors import RequestError

if TYPE_CHECKING:
    from anthesis import LLM

logger = logging.getLogger("anthesis")

Prompt = str | list[int]

MAX_PROMPT_TOKENS = 1 << 24
"""Of a made-up prompt: more than any model's context, and still made in seconds."""


def read_prompts(
    texts: list[str], ids: list[str], made_up_tokens: int | None, model: str | None = None
) -> list[Prompt]:
    """The prompts, as texts or token ids.

    Args:
        texts: of -p.
        ids: of --prompt-ids, each "1,2,3".
        made_up_tokens: of --prompt-tokens.
        model: MODEL, which may have been meant as the prompt where there is none.

    Returns:
        All of `texts` or all of `ids`; none with --prompt-tokens, whose ids depend on the model (`LLM.made_up_prompt`);
        without any of them one text, read from stdin.

    Raises:
        RequestError: more than one of these ways, an empty text, ids that are no numbers, or nothing to read.
    """
    given = [
        flag for flag, present in (("-p", texts), ("--prompt-ids", ids), ("--prompt-tokens", made_up_tokens)) if present
    ]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are different ways to give prompts; use one of them")
    if made_up_tokens is not None:
        check_made_up(made_up_tokens)
        return []
    if ids:
        return [_parse_ids(text) for text in ids]
    for text in texts:
        check_text(text)
    return list(texts) if texts else [_read_stdin(model)]


def check_text(text: str) -> None:
    """Refuses an empty -p, before a model is loaded for it.

    Raises:
        RequestError: it is empty.
    """
    if not text:
        raise RequestError("-p is empty; give a text, or a made-up prompt with --prompt-tokens")


def check_made_up(num_tokens: int) -> None:
    """Refuses a length of --prompt-tokens that no prompt has, before ids are made.

    Raises:
        RequestError: it is below 1 or beyond `MAX_PROMPT_TOKENS`.
    """
    if not 1 <= num_tokens <= MAX_PROMPT_TOKENS:
        raise RequestError(
            f"--prompt-tokens is {num_tokens}; a prompt has at least 1 token and at most {MAX_PROMPT_TOKENS}"
        )


def check_tokenizer(llm: LLM, prompts: Sequence[Prompt], chat: bool) -> None:
    """Refuses texts and chat where the model has no tokenizer, in the words of the command line.

    Raises:
        RequestError: a text or --chat, and no tokenizer.
    """
    if llm.tokenizer is not None or not (chat or any(isinstance(prompt, str) for prompt in prompts)):
        return
    without = ", without --chat" if chat else ""
    raise RequestError(
        f"{llm.description} has no tokenizer; give token ids with --prompt-ids, or a made-up prompt with "
        f"--prompt-tokens{without}"
    )


def check_texts(llm: LLM, flags: Mapping[str, object]) -> None:
    """Refuses flags that are texts where the model has no tokenizer, in the words of the command line.

    Args:
        llm: the model.
        flags: what was given, by flag.

    Raises:
        RequestError: one was given, and there is no tokenizer.
    """
    if llm.tokenizer is None and (given := [flag for flag, value in flags.items() if value]):
        raise RequestError(
            f"{given[0]} is a text, and {llm.description} has no tokenizer; --logit-bias ID=X takes token ids, "
            "and X = -inf forbids one"
        )


def check_seed(llm: LLM, seed: int | None, temperature: float) -> None:
    """Warns of a seed that has no effect: nothing is drawn, neither tokens nor weights."""
    if seed is not None and temperature == 0 and not llm.is_random:
        logger.warning("--seed has no effect: at temperature 0 no token is drawn; give --temperature")


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"--prompt-ids {text!r} is not a list of token ids; write them as 1,2,3") from None


def _read_stdin(model: str | None) -> str:
    taken = "" if model is None else f"{model!r} was taken as MODEL; "
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError(f"there is no prompt; {taken}give -p TEXT, or send a text to stdin")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"stdin is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
    if not text.strip():
        raise RequestError(f"there is no prompt: stdin is empty; {taken}give -p TEXT, or send a text to stdin")
    # what `echo` and editors put at the end is not meant as part of the prompt
    return text.removesuffix("\n").removesuffix("\r")
