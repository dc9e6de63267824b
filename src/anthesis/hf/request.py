"""What one call of `generate` asks for, checked and complete: prompts without padding, lengths, ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from anthesis.errors import RequestError


@dataclass(frozen=True)
class Extras:
    """The arguments of `generate` that are objects of the caller's own.

    Attributes:
        logits_processor: processors besides those that the configuration asks for.
        stopping_criteria: criteria besides those that the configuration asks for.
        prefix_allowed_tokens_fn: (row, ids so far) -> ids that may follow.
        streamer: told the prompt and each token.
        tokenizer: that stop strings need.
    """

    logits_processor: Sequence[Any] = ()
    stopping_criteria: Sequence[Any] = ()
    prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None
    streamer: Any = None
    tokenizer: Any = None


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        config: all fields, resolved.
        extras: objects of the caller's.
        ids: (B, T) int64, the prompts as given, padding included.
        mask: (B, T) bool, which of them are not padding.
        max_length: tokens of a row at most, padding included.
        min_length: tokens of a row before which it does not end.
        ends: ids that end a row; empty: none does.
        pad: the id behind rows that are over; None where nothing ends a row.
        reaches_context: the model's context ends before what was asked for does.
    """

    config: GenerationConfig
    extras: Extras
    ids: torch.Tensor
    mask: torch.Tensor
    max_length: int
    min_length: int
    ends: tuple[int, ...]
    pad: int | None
    reaches_context: bool

    @property
    def prompts(self) -> list[list[int]]:
        """The ids of each prompt without its padding."""
        return [row[mask].tolist() for row, mask in zip(self.ids, self.mask, strict=True)]

    @property
    def is_padded(self) -> bool:
        """Whether any prompt is."""
        return not bool(self.mask.all())

    @property
    def width(self) -> int:
        """Rows of each prompt: beams, or samples."""
        return max(int(self.config.num_beams or 1), int(self.config.num_return_sequences or 1))

    @property
    def rows(self) -> torch.Tensor:
        """The prompts, each as many times as it has rows: (N, T) int64."""
        return self.ids.repeat_interleave(self.width, dim=0)

    @property
    def max_new_tokens(self) -> int:
        """Tokens of each row at most."""
        return self.max_length - int(self.ids.shape[1])


def make_request(
    config: GenerationConfig,
    extras: Extras,
    inputs: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    *,
    has_default_max_length: bool,
    has_default_min_length: bool,
    max_positions: int | None,
    max_context: int | None,
) -> Request:
    """Checks a call and completes what it leaves open.

    Args:
        config: resolved.
        extras: objects of the caller's.
        inputs: (B, T) or (T,) of integers; None: the begin-of-sequence id alone.
        attention_mask: (B, T) of integers, 0 for padding; None: found from the padding id, where that is possible.
        has_default_max_length, has_default_min_length: neither the call nor the model sets it.
        max_positions: of the model's configuration, within which a default length stays.
        max_context: tokens that the model can hold.

    Raises:
        RequestError: inputs that are none, padding on the right, or no room for a token.
    """
    ends = _ids_of(config.eos_token_id, "eos_token_id")
    pads = _ids_of(config.pad_token_id, "pad_token_id")
    ids = _as_ids(inputs, config.bos_token_id)
    mask = _mask_of(ids, attention_mask, pads, ends)
    max_length, min_length = _lengths(
        config, ids.shape[1], has_default_max_length, has_default_min_length, max_positions
    )
    # padding takes no place in the context
    most = None if max_context is None else max_context + int((~mask).sum(dim=1).min())
    reaches_context = most is not None and max_length > most
    if most is not None and reaches_context:
        if int(mask.sum(dim=1).max()) >= (max_context or 0):
            raise RequestError(
                f"the prompt has {int(mask.sum(dim=1).max())} tokens and the model's context ends at {max_context}, so "
                "there is no room for a completion; shorten the prompt"
            )
        max_length = most
    pad = pads[0] if pads else ends[0] if ends else None
    if pad is not None and pad < 0:
        warnings.warn(f"pad_token_id is {pad}, which is no token; give one to pad rows that end early", stacklevel=4)
    return Request(config, extras, ids, mask, max_length, min_length, ends, pad, reaches_context)


def _ids_of(value: Any, name: str) -> tuple[int, ...]:
    """A token id, several, or none, as a tuple."""
    found = value.tolist() if isinstance(value, torch.Tensor) else value
    several = [] if found is None else found if isinstance(found, list | tuple) else [found]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in several):
        raise RequestError(f"{name} is {value!r:.60}; a token id or a list of them is needed")
    return tuple(several)


def _as_ids(inputs: Any, bos: int | None) -> torch.Tensor:
    if inputs is None:
        if bos is None:
            raise RequestError("generate was given no input_ids, and the model has no bos_token_id to begin with")
        return torch.tensor([[bos]])
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 2 or inputs.is_floating_point():
        what = f"shape {tuple(inputs.shape)} and {inputs.dtype}" if isinstance(inputs, torch.Tensor) else "no tensor"
        raise RequestError(
            f"input_ids must be a tensor of token ids of shape (batch, tokens), and are of {what}; "
            'tokenizer(texts, return_tensors="pt", padding=True) makes one'
        )
    if inputs.numel() == 0:
        raise RequestError(f"input_ids of shape {tuple(inputs.shape)} hold no tokens; give at least one for each row")
    return inputs.long()


def _mask_of(
    ids: torch.Tensor, given: torch.Tensor | None, pads: tuple[int, ...], ends: tuple[int, ...]
) -> torch.Tensor:
    """Which ids are prompt. Where no mask is given, padding is what has its id, unless that is an end as well."""
    if given is not None:
        if not isinstance(given, torch.Tensor) or given.shape != ids.shape:
            raise RequestError(
                f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}, and has "
                f"{tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__}"
            )
        mask = given.to(ids.device) != 0
    elif pads and not set(pads) & set(ends):
        mask = (ids[..., None] != torch.tensor(pads, device=ids.device)).all(dim=-1)
    else:
        if len(ids) > 1 and pads and bool(torch.isin(ids[:, 0], torch.tensor(pads, device=ids.device)).any()):
            warnings.warn(
                "no attention_mask was given with a batch that begins with pad_token_id, and as that ends a text too, "
                "it is taken for part of the prompt; pass the tokenizer's attention_mask",
                stacklevel=5,
            )
        mask = torch.ones_like(ids, dtype=torch.bool)
    right = torch.nonzero(~mask[:, -1]).flatten().tolist()
    if right:
        raise RequestError(
            f"row {right[0]} of input_ids is padded on the right, where its completion has to begin; set "
            'tokenizer.padding_side = "left"'
        )
    return mask


def _lengths(
    config: GenerationConfig, length: int, default_max: bool, default_min: bool, max_positions: int | None
) -> tuple[int, int]:
    """The most and fewest tokens of a row, prompt and padding included."""
    most: int = config.max_length
    if config.max_new_tokens is not None:
        if not default_max:
            _warn_of_both("max_new_tokens", config.max_new_tokens, "max_length", config.max_length)
        most = length + config.max_new_tokens
    elif default_max:
        most = length + config.max_length
        most = most if max_positions is None else min(most, max_positions)
        warnings.warn(
            f"nothing says how long a completion may be, so it ends after {most - length} tokens; set max_new_tokens",
            stacklevel=5,
        )
    if length >= most:
        raise RequestError(
            f"input_ids have {length} tokens and max_length is {most}, so there is no room for a completion; set "
            "max_new_tokens instead"
        )
    fewest = config.min_length or 0
    if config.min_new_tokens is not None:
        if not default_min:
            _warn_of_both("min_new_tokens", config.min_new_tokens, "min_length", config.min_length)
        fewest = length + config.min_new_tokens
    if fewest > most:
        warnings.warn(
            f"at least {fewest} tokens are asked for and at most {most}, where a completion ends; lower min_new_tokens "
            "or min_length, or raise max_new_tokens",
            stacklevel=5,
        )
    return most, fewest


def _warn_of_both(first: str, value: int, second: str, other: int) -> None:
    warnings.warn(f"both {first} = {value} and {second} = {other} are set; {first} counts", stacklevel=6)
