"""What weights cost: the evaluations among the files, beside every line of the same model, run in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anthesis.bench.subject import Model
from anthesis.evaluate.result import Evaluation
from anthesis.quantize import WEIGHT_KINDS
from anthesis.report.line import Line, keep_finite
from anthesis.report.result_file import ResultFile

NOT_MEASURED = "quality not measured"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation as a report shows it; None where it was not against other weights.

    Attributes:
        source, source_sha256: the file.
        started_at: UTC, ISO 8601.
        model, weights: that predicted.
        device, processor: where.
        text, text_sha256: what was predicted.
        scored_tokens: of it.
        perplexity: of these weights.
        against_weights, against_perplexity: the other weights, and theirs.
        perplexity_ratio: of these weights to the other ones.
        log_ratio_standard_error: of its logarithm.
        mean_kl, kl_standard_error, max_kl: KL(other || these), in nats a token.
        greedy_agreement: share of the tokens where the likeliest one is the same.
        command: that does it again.
    """

    source: str
    source_sha256: str
    started_at: str
    model: str
    weights: str
    device: str
    processor: str
    text: str
    text_sha256: str
    scored_tokens: int
    perplexity: float | None
    against_weights: str | None
    against_perplexity: float | None
    perplexity_ratio: float | None
    log_ratio_standard_error: float | None
    mean_kl: float | None
    kl_standard_error: float | None
    max_kl: float | None
    greedy_agreement: float | None
    command: str

    def __post_init__(self) -> None:
        keep_finite(self)


def evaluated(file: ResultFile, found: Evaluation) -> Evaluated:
    """What a report shows of an evaluation.

    Args:
        file: that it comes from.
        found: what stands in it.
    """
    against = found.against
    return Evaluated(
        source=file.path,
        source_sha256=file.sha256,
        started_at=found.started_at,
        model=found.model.description,
        weights=_weights(found.model),
        device=found.device.name,
        processor=found.machine.processor,
        text=found.text.name,
        text_sha256=found.text.sha256,
        scored_tokens=found.text.scored_tokens,
        perplexity=found.quality.perplexity,
        against_weights=None if against is None else _weights(against.model),
        against_perplexity=None if against is None else against.quality.perplexity,
        perplexity_ratio=None if against is None else against.perplexity_ratio,
        log_ratio_standard_error=None if against is None else against.log_ratio_standard_error,
        mean_kl=None if against is None else against.mean_kl,
        kl_standard_error=None if against is None else against.kl_standard_error,
        max_kl=None if against is None else against.max_kl,
        greedy_agreement=None if against is None else against.greedy_agreement,
        command=found.command,
    )


def with_quality(line: Line, evaluations: Sequence[Evaluation]) -> Line:
    """The line with what an evaluation found of its weights, or a note that there is none though they are quantised.

    What weights cost depends on the device, too: each rounds the inputs of its products in its own way. Of several
    evaluations the one against other weights counts, then the one of the longest text.
    """
    evaluations = [found for found in evaluations if found.device.name == line.device]
    own = [found for found in evaluations if _is_of(found.model, line)]
    if own:
        found = max(own, key=lambda each: (each.against is not None, each.text.scored_tokens))
        line = replace(line, perplexity=found.quality.perplexity, quality_text=found.text.name)
        against = found.against
        if against is None:
            return line
        return replace(
            line,
            perplexity_ratio=against.perplexity_ratio,
            mean_kl=against.mean_kl,
            greedy_agreement=against.greedy_agreement,
            quality_against=_weights(against.model),
        )
    for found in evaluations:  # weights that others were compared with have a perplexity too
        if found.against is not None and _is_of(found.against.model, line):
            return replace(line, perplexity=found.against.quality.perplexity, quality_text=found.text.name)
    is_asked = line.total_s is not None and not line.is_random and not line.is_published
    return replace(line, quality_note=NOT_MEASURED) if is_asked and _is_quantised(line.weights) else line


def _is_of(model: Model, line: Line) -> bool:
    """Whether the line ran this model with these weights and this cache."""
    if _weights(model) != line.weights:
        return False
    if model.cache_dtype and line.cache and model.cache_dtype != line.cache:
        return False
    if model.fingerprint and line.fingerprint:
        return model.fingerprint == line.fingerprint
    if model.source and line.model_source:
        return model.source == line.model_source
    return model.description == line.model


def _weights(model: Model) -> str:
    return "+".join(model.weight_kinds)


def _is_quantised(weights: str | None) -> bool:
    """Whether any kind has fewer than 16 bits; one that is not known any more counts as such."""
    kinds = [WEIGHT_KINDS.get(kind) for kind in (weights or "").split("+")]
    return any(kind is None or kind.bits < 16 for kind in kinds)
