"""What an evaluation found: perplexity, and the distance of one kind of weights from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anthesis.bench.subject import Device, Machine, Model
from anthesis.records import from_result, to_document

SCHEMA_VERSION = 1
KIND = "evaluate"


@dataclass(frozen=True, kw_only=True)
class Text:
    """What was predicted.

    Attributes:
        name: of the file.
        sha256: of all its bytes.
        scored_tokens: tokens whose probability was taken: all of the windows but the first of each.
        windows: pieces that were each predicted by themselves.
        window_tokens: tokens of each; the last may have fewer.
        left_out_tokens: at the end of the file, in no window: beyond what was asked for, or a last one alone.
    """

    name: str
    sha256: str
    scored_tokens: int
    windows: int
    window_tokens: int
    left_out_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well the text was predicted.

    Attributes:
        perplexity: e to the mean negative log-likelihood of the scored tokens.
        mean_nll: that mean, in nats a token.
        nll_standard_error: of it, over the windows; None with a single one.
    """

    perplexity: float
    mean_nll: float
    nll_standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class Against:
    """The same text by the same model with other weights, and how far the two are apart.

    Attributes:
        model: with the other weights P; the evaluated ones are Q.
        quality: of P.
        mean_kl: of the scored tokens: KL(P || Q), in nats.
        kl_standard_error: over the windows; None with a single one.
        max_kl: of a single token.
        greedy_agreement: share of the scored tokens where the likeliest token of both is the same.
        perplexity_ratio: of Q to P.
        log_ratio_standard_error: of its logarithm, over the windows, which both predicted; None with a single one.
    """

    model: Model
    quality: Quality
    mean_kl: float
    kl_standard_error: float | None
    max_kl: float
    greedy_agreement: float
    perplexity_ratio: float
    log_ratio_standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The document of `anthesis evaluate`.

    Attributes:
        started_at: UTC, ISO 8601.
        request: as it was made.
        command: that does the same again.
        text: what was predicted.
        model, device, machine, versions: what ran.
        quality: of it.
        against: beside other weights; None where nobody asked.
        took_s: seconds, loading not counted.
        commit: of anthesis' own sources, with "-dirty-" and a hash of the difference where they were changed; None
            where that is not known.
        schema_version: of this document.
        kind: "evaluate".
    """

    started_at: str
    request: dict[str, Any]
    command: str
    text: Text
    model: Model
    device: Device
    machine: Machine
    versions: dict[str, str]
    quality: Quality
    against: Against | None
    took_s: float
    commit: str | None = None
    schema_version: int = SCHEMA_VERSION
    kind: str = KIND

    def document(self) -> dict[str, Any]:
        """The evaluation as JSON knows it; `Evaluation.from_document` is the way back."""
        document: dict[str, Any] = to_document(self)
        return document

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> Evaluation:
        """An evaluation from its JSON document.

        Raises:
            RequestError: it is none, of another schema version, or damaged.
        """
        otherwise = "evaluate again, or read it"
        return from_result(Evaluation, document, kind=KIND, version=SCHEMA_VERSION, what="result", otherwise=otherwise)
