"""A result file as a report takes it: lines, or an evaluation, each with the document it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anthesis.bench.result import KIND as BENCH
from anthesis.bench.result import Report
from anthesis.dataset.summary import KIND as COMPLETE
from anthesis.dataset.summary import Summary, summary_path
from anthesis.errors import RequestError, naming
from anthesis.evaluate.result import KIND as EVALUATE
from anthesis.evaluate.result import Evaluation
from anthesis.records import read_with_sha256
from anthesis.report.bench_line import line_of_row
from anthesis.report.data_set_line import line_of_summary
from anthesis.report.line import Line


@dataclass(frozen=True)
class Entry:
    """A line, and the document behind it.

    Attributes:
        line: of the report.
        document: that a file with this line alone would hold; None of what is published.
    """

    line: Line
    document: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """What a result file gives.

    Attributes:
        path: as errors and tables name it.
        sha256: of all its bytes.
        document: all of it.
        entries: one for each row of a `bench`, one for a data set, none of an evaluation.
        evaluation: what an `evaluate` found, or None.
    """

    path: str
    sha256: str
    document: Mapping[str, Any]
    entries: tuple[Entry, ...] = ()
    evaluation: Evaluation | None = None

    @property
    def lines(self) -> list[Line]:
        """Those of the entries."""
        return [entry.line for entry in self.entries]


def read_result(path: Path) -> ResultFile:
    """Reads a result file.

    Args:
        path: what `bench -o` or `evaluate -o` wrote, the summary of a data-set run, or its output, beside which the
            summary stands.

    Raises:
        RequestError: it can't be read, or is none of these.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a directory; name a file that bench -o, complete or evaluate -o wrote")
    beside = summary_path(path)
    path = beside if beside.is_file() else path
    with naming(path):
        document, sha256 = read_with_sha256(path)
        name, kind = str(path), document.get("kind")
        if kind == COMPLETE:
            line = line_of_summary(Summary.from_document(document), name, sha256)
            return ResultFile(path=name, sha256=sha256, document=document, entries=(Entry(line, document),))
        if kind == EVALUATE:
            return ResultFile(
                path=name, sha256=sha256, document=document, evaluation=Evaluation.from_document(document)
            )
        if kind == BENCH:
            report = Report.from_document(document)
            entries = tuple(
                Entry(line_of_row(row, report, name, sha256), {**document, "rows": [raw]})
                for row, raw in zip(report.rows, document["rows"], strict=True)
            )
            return ResultFile(path=name, sha256=sha256, document=document, entries=entries)
        raise RequestError(
            "neither a result of `anthesis bench -o` or `anthesis evaluate -o` nor a summary of `anthesis complete`; "
            "name such a file"
        )


def read_results(paths: Iterable[Path]) -> list[ResultFile]:
    """Reads several; a data set that is named by its output and by its summary, or a file named twice, is read once.

    Raises:
        RequestError: one can't be read, or is no result.
    """
    return list({file.path: file for file in map(read_result, paths)}.values())
