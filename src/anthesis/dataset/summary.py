"""The file beside a completed data set: which request the rows belong to, how far it is, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anthesis.atomic import replace_file
from anthesis.bench.subject import Device, Machine, Model
from anthesis.errors import naming
from anthesis.json_text import format_json
from anthesis.records import from_result, read_document, to_document

SCHEMA_VERSION = 1
KIND = "complete"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is in the output, or came into it during a session.

    Attributes:
        rows: all of them, those with an error included.
        failed_rows: those with an error.
        prompt_tokens: of all rows.
        completion_tokens: generated and counted.
    """

    rows: int = 0
    failed_rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            rows=self.rows + other.rows,
            failed_rows=self.failed_rows + other.failed_rows,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            rows=self.rows - other.rows,
            failed_rows=self.failed_rows - other.failed_rows,
            prompt_tokens=self.prompt_tokens - other.prompt_tokens,
            completion_tokens=self.completion_tokens - other.completion_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a run wrote into the output, by which it knows its own rows.

    Attributes:
        nbytes: from the beginning.
        sha256: of these bytes.
    """

    nbytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Session:
    """One start of the command.

    Attributes:
        started_at: UTC, ISO 8601.
        load_s: loading the model; 0 for a shard whose worker had it loaded.
        run_s: from the first row to the last, or to the last note of a session that was killed.
        counts: rows written in this session.
        batch: rows at once.
        threads: asked for, or None for the device's choice.
        process_peak_memory_bytes: the most this process ever held.
        ended: "finished", "interrupted" (a signal), "failed", or "running": still, or killed.
        shard: that it worked on, or None: on all rows.
        ranks: among which the model was split, tp x pp; None in summaries of versions that did not say.
        steps: of the model, rows that were not written any more included.
        memory_bound_bytes: of weights and cache, that the steps had to read which are bound by the memory.
        compute_bound_flops: that the others had to compute.
        read_bytes_per_s: of the memory, measured before the first row, and again after the last of a session of 10 s or
            more; empty where it can't be.
        flops_per_s: peak, measured with it; empty where it is unknown, and computing counts as nothing.
        floor_s: the least time of these steps: memory_bound_bytes / mean(read_bytes_per_s) + compute_bound_flops /
            mean(flops_per_s); None where it is unknown, and in summaries of versions that did not count.
        share_of_limit: floor_s / run_s.
        reused_tokens: of the prompts, that were not computed: rows before them begin alike.
    """

    started_at: str
    load_s: float
    run_s: float
    counts: Counts
    batch: int
    threads: int | None
    process_peak_memory_bytes: int
    ended: Literal["running", "finished", "interrupted", "failed"]
    shard: int | None = None
    ranks: int | None = None
    steps: int = 0
    memory_bound_bytes: int = 0
    compute_bound_flops: int = 0
    read_bytes_per_s: tuple[float, ...] = ()
    flops_per_s: tuple[float, ...] = ()
    floor_s: float | None = None
    share_of_limit: float | None = None
    reused_tokens: int = 0

    @property
    def prefilled_tokens(self) -> int:
        """Of the prompts, that were computed."""
        return self.counts.prompt_tokens - self.reused_tokens


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The document.

    Attributes:
        request: all that the bytes of the output depend on, but for `limit`, which says where it ends.
        limit: most rows, or None for all.
        finished: every row is there.
        counts: of the whole output.
        written: of the whole output.
        sessions: one for each start that came as far as loading the model.
        model, device, machine, versions: what ran last.
        commit: of anthesis' own sources then, with "-dirty" where they were changed; None where that is not known.
        command: that ran last, as it was typed; of shards that of each worker, None where they differ. None too where a
            program asked, and in summaries of versions that did not say.
        schema_version: of this document.
        kind: "complete".
    """

    request: dict[str, Any]
    limit: int | None
    finished: bool
    counts: Counts
    written: Written
    sessions: tuple[Session, ...]
    model: Model
    device: Device
    machine: Machine
    versions: dict[str, str]
    commit: str | None = None
    command: str | None = None
    schema_version: int = SCHEMA_VERSION
    kind: str = KIND

    @property
    def share_of_limit(self) -> float | None:
        """Of all sessions whose floor is known, together; None where no session's is."""
        known = [(session.floor_s, session.run_s) for session in self.sessions if session.floor_s is not None]
        run_s = sum(run_s for _, run_s in known)
        return sum(floor_s for floor_s, _ in known) / run_s if run_s else None

    def write(self, path: Path) -> None:
        """Replaces the file.

        Raises:
            OSError: it can't be written.
        """
        replace_file(path, format_json(to_document(self)))

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> Summary:
        """A summary from its JSON document.

        Raises:
            RequestError: it is no summary, of another schema version, or damaged.
        """
        return from_result(Summary, document, kind=KIND, version=SCHEMA_VERSION, what="summary", otherwise="go on")


def summary_path(output: Path) -> Path:
    """Where the summary of an output stands."""
    return output.with_name(f"{output.name}.summary.json")


def read_summary(path: Path) -> Summary:
    """Reads a summary file.

    Raises:
        RequestError: it can't be read, or is no summary.
    """
    with naming(path):
        return Summary.from_document(read_document(path))
