"""The logits processors and stopping criteria that a request asks for: transformers' own, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from anthesis.errors import RequestError
from anthesis.hf.release import PADDING_IS_NOT_REPEATED, PREFIXES_OF_PROMPTS, release
from anthesis.hf.request import Request

_Maker = Callable[[], Any]


def logits_processors(request: Request, vocab_size: int) -> LogitsProcessorList:
    """All that is done to the scores of a step, in order.

    Args:
        request: of the call.
        vocab_size: of the model.

    Raises:
        ValueError: of transformers, for a value that it refuses.
    """
    made = [make() for wanted, make in _rules(request) if wanted]
    made = _merged(made, request.extras.logits_processor)
    made += [make() for wanted, make in _warpers(request) if wanted]
    watermark = request.config.watermarking_config
    if watermark is not None:
        made.append(watermark.construct_processor(vocab_size, request.ids.device))
    if request.config.renormalize_logits is True:
        made.append(LogitNormalization())
    return LogitsProcessorList(made)


def _rules(request: Request) -> Iterator[tuple[bool, _Maker]]:
    """What a text may and may not say: whether it is asked for, and how it is made."""
    config, extras, ids = request.config, request.extras, request.ids
    length, device, ends = ids.shape[1], ids.device, list(request.ends)
    penalty, ngram, encoder_ngram = (
        config.repetition_penalty,
        config.no_repeat_ngram_size,
        config.encoder_no_repeat_ngram_size,
    )
    yield config.sequence_bias is not None, lambda: SequenceBiasLogitsProcessor(config.sequence_bias)
    yield (
        config.encoder_repetition_penalty not in (None, 1.0),
        lambda: EncoderRepetitionPenaltyLogitsProcessor(config.encoder_repetition_penalty, ids),
    )
    yield penalty not in (None, 1.0), lambda: RepetitionPenaltyLogitsProcessor(penalty, **_without_padding(request))
    yield bool(ngram), lambda: NoRepeatNGramLogitsProcessor(ngram)
    yield bool(encoder_ngram), lambda: EncoderNoRepeatNGramLogitsProcessor(encoder_ngram, ids)
    yield config.bad_words_ids is not None, lambda: NoBadWordsLogitsProcessor(config.bad_words_ids, ends or None)
    fewest = request.min_length
    yield bool(ends and fewest > 0), lambda: MinLengthLogitsProcessor(fewest, ends, device=device)
    more = config.min_new_tokens
    yield bool(ends and more), lambda: MinNewTokensLengthLogitsProcessor(length, more, ends, device=device)
    allowed = extras.prefix_allowed_tokens_fn
    rows = config.num_beams if release() < PREFIXES_OF_PROMPTS else request.width
    yield allowed is not None, lambda: PrefixConstrainedLogitsProcessor(allowed, rows)
    first, last = config.forced_bos_token_id, config.forced_eos_token_id
    yield first is not None, lambda: ForcedBOSTokenLogitsProcessor(first)
    yield last is not None, lambda: ForcedEOSTokenLogitsProcessor(request.max_length, last, device=device)
    yield config.remove_invalid_values is True, InfNanRemoveLogitsProcessor
    decay = config.exponential_decay_length_penalty
    yield decay is not None, lambda: ExponentialDecayLengthPenalty(decay, _needed(ends, decay), length)
    suppressed = config.suppress_tokens
    yield suppressed is not None, lambda: SuppressTokensLogitsProcessor(suppressed, device=device)
    at_begin = config.begin_suppress_tokens
    begin = length + (length == 1 and first is not None)  # behind the token that is forced
    yield at_begin is not None, lambda: SuppressTokensAtBeginLogitsProcessor(at_begin, begin, device=device)


def _warpers(request: Request) -> Iterator[tuple[bool, _Maker]]:
    """What sampling does to the distribution; of beams one more token is kept than can end them."""
    config = request.config
    if not config.do_sample:
        return
    kept = {"min_tokens_to_keep": 1 if config.num_beams in (None, 1) else max(2, len(request.ends) + 1)}
    device = request.ids.device
    yield config.temperature not in (None, 1.0), lambda: TemperatureLogitsWarper(config.temperature)
    yield config.top_h is not None, lambda: TopHLogitsWarper(config.top_h)
    yield bool(config.top_k), lambda: TopKLogitsWarper(config.top_k, **kept)
    yield _below_one(config.top_p), lambda: TopPLogitsWarper(config.top_p, **kept)
    yield config.min_p is not None, lambda: MinPLogitsWarper(config.min_p, **kept)
    yield _below_one(config.typical_p), lambda: TypicalLogitsWarper(config.typical_p, **kept)
    epsilon, eta = config.epsilon_cutoff, config.eta_cutoff
    yield epsilon is not None and 0 < epsilon < 1, lambda: EpsilonLogitsWarper(epsilon, **kept)
    yield eta is not None and 0 < eta < 1, lambda: EtaLogitsWarper(eta, **kept, device=device)


def stopping_criteria(request: Request, max_positions: int | None) -> StoppingCriteriaList:
    """All that ends a row.

    Args:
        request: of the call.
        max_positions: of the model's configuration.

    Raises:
        RequestError: stop strings without a tokenizer.
    """
    config, tokenizer = request.config, request.extras.tokenizer
    made: list[Any] = [MaxLengthCriteria(request.max_length, max_positions)]
    if config.max_time is not None:
        made.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise RequestError("stop_strings need a tokenizer: pass generate(..., tokenizer=tokenizer) as well")
        made.append(StopStringCriteria(tokenizer, config.stop_strings))
    if request.ends:
        made.append(EosTokenCriteria(list(request.ends)))
    return StoppingCriteriaList(_merged(made, request.extras.stopping_criteria))


def _merged(made: Sequence[Any], own: Sequence[Any]) -> list[Any]:
    """Those made here and the caller's own, which take the place of those of the same class."""
    by_class = {type(one): one for one in reversed(list(own))}
    found = [by_class.get(type(one), one) for one in made]
    return found + [one for one in own if not any(one is other for other in found)]


def _without_padding(request: Request) -> dict[str, torch.Tensor]:
    """From which release on it is known where each row begins, so that padding is no repetition."""
    if not request.is_padded or release() < PADDING_IS_NOT_REPEATED:
        return {}
    begins = request.mask.int().argmax(dim=1)
    return {"prompt_ignore_length": begins.repeat_interleave(request.width)}


def _needed(ends: list[int], asked: Any) -> list[int]:
    if not ends:
        raise RequestError(f"exponential_decay_length_penalty = {asked!r:.60} needs an eos_token_id, and there is none")
    return ends


def _below_one(value: float | None) -> bool:
    return value is not None and value < 1
