"""Results that describe themselves: what was asked for, what ran, every sample, and the figures derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from anthesis.bench.measurement import Measurement
from anthesis.bench.subject import Machine
from anthesis.errors import naming
from anthesis.records import from_result, read_document, to_document

SCHEMA_VERSION = 1
KIND = "bench"
UNFINISHED = "of a sweep that is not finished"
"""What is said of the rows of a report that is not."""

CLOCKS: Mapping[str, str] = {
    "load_s": "opening the device, the checkpoint and the tokenizer, and packing every weight",
    "total_s": "around one call of LLM.generate with the prompts as token ids: making the requests, prefill, every "
    "token step, choosing tokens, detokenising, making the results; tokenising is outside",
    "token_s": "of each token, from the moment its request was made (after tokenising) until the host had the token",
    "first_token_s": "the first of token_s, of every sequence of every run",
    "between_tokens_s": "differences of neighbouring token_s, of every sequence of every run",
    "prefill_s": "until the last sequence of the run had its first token",
    "decode_s": "from then until the last token of the run",
    "capture_s": "capturing steps as graphs, or compiling them, before the timed runs, within those of the warm-up",
    "read_bandwidth": "reading a buffer in the memory that holds the weights, right after each timed run",
}
"""What is inside each clock; stored in every result."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What differs from row to row of a sweep.

    Attributes:
        batch: sequences B at once.
        weights: as asked for, "native" or a kind.
        tp: ranks W among which every layer was split.
        prompt_tokens: of a made-up prompt; None: the prompt of the request.
    """

    batch: int
    weights: str
    tp: int
    prompt_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Turns:
    """That a row was measured in turns with another one, run by run; only such rows can be compared.

    Attributes:
        session: the same in both rows, and in no others.
        side: "A", or "B": what --against said.
        changed: of side B, what is different from side A, as --against had it; nothing where nothing is.
        order: when the runs of this row took place among those of both rows, which are numbered from 0 on.
        version: of anthesis in the process of this side, which `python=` may have made another one.
        commit: of the sources of that anthesis, as in the report; None where that is not known.
        versions: of what the process of this side computes with, as in the report; empty in results of versions that
            did not say.
    """

    session: str
    side: Literal["A", "B"]
    changed: str
    order: tuple[int, ...]
    version: str | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A point with its measurement, or with the error that prevented it.

    Attributes:
        point: what was asked for.
        measurement: or None.
        error: one line, or None.
        started_at: UTC, ISO 8601.
        command: that measures this row alone.
        turns: with which other row it was measured in turns; None: alone.
    """

    point: Point
    measurement: Measurement | None
    error: str | None
    started_at: str | None = None
    command: str | None = None
    turns: Turns | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The document of a whole `bench`.

    Attributes:
        started_at: UTC, ISO 8601.
        request: as it was made.
        machine: the computer.
        versions: of anthesis, Python and NumPy, and of what else the device computes with; where rows are in turns, of
            side A: each side has its own in its `turns`.
        clocks: what is inside each of them.
        rows: one for each point.
        commit: of anthesis' own sources, with "-dirty-" and a hash of the difference where they were changed; None
            where that is not known; where rows are in turns, of side A.
        finished: every point of the request has its row.
        schema_version: of this document.
        kind: "bench".
    """

    started_at: str
    request: dict[str, Any]
    machine: Machine
    versions: dict[str, str]
    clocks: dict[str, str]
    rows: tuple[Row, ...]
    commit: str | None = None
    finished: bool = True
    schema_version: int = SCHEMA_VERSION
    kind: str = KIND

    def document(self) -> dict[str, Any]:
        """The report as JSON knows it; `Report.from_document` is the way back."""
        document: dict[str, Any] = to_document(self)
        return document

    @staticmethod
    def from_document(document: Any) -> Report:
        """A report from its JSON document.

        Raises:
            RequestError: it is no result of `bench`, of another schema version, or incomplete.
        """
        otherwise = "measure again, or read it"
        return from_result(Report, document, kind=KIND, version=SCHEMA_VERSION, what="result", otherwise=otherwise)


def read_report(path: Path) -> Report:
    """Reads a file that `bench -o` wrote.

    Raises:
        RequestError: it can't be read, or is no such file.
    """
    with naming(path):
        return Report.from_document(read_document(path))
