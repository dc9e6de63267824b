"""The columns that people see of lines and evaluations, the same in every format made for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from anthesis.errors import printable
from anthesis.report.line import Line
from anthesis.report.quality import Evaluated
from anthesis.units import amount, duration, rate

EMPTY = "-"
LONGEST_CELL = 1000

_T = TypeVar("_T")


@dataclass(frozen=True)
class Column(Generic[_T]):
    """A column: its title, and what it shows of a line; None for nothing to show.

    Attributes:
        title: of the column.
        value: of a line.
        left: its cells stand at the left.
        note: what the title means.
        is_shared: it is said once, above the table, where it is the same in every line.
        only_shared: and nowhere else.
        is_remark: a sentence about few lines, which stands below a table where that is narrow.
    """

    title: str
    value: Callable[[_T], str | None]
    left: bool = False
    note: str | None = None
    is_shared: bool = False
    only_shared: bool = False
    is_remark: bool = False

    def cell(self, line: _T) -> str | None:
        """One line of text: names in a result file are somebody else's, and go to a terminal."""
        value = self.value(line)
        return None if value is None else printable(value, LONGEST_CELL)


def _of(name: str, shown: Callable[[Any], str] = str) -> Callable[[Any], str | None]:
    def cell(line: Any) -> str | None:
        value = getattr(line, name)
        return None if value is None else shown(value)

    return cell


def share(value: float) -> str:
    """A share: "87.3%"."""
    return f"{value:.1%}"


def times(value: float) -> str:
    """A ratio: "1.31x"."""
    return f"{value:#.3g}".rstrip(".") + "x"


def usd(value: float) -> str:
    """Dollars with three digits that count: "2.50", "1.625", "0.00421"."""
    if value >= 1:
        return f"{value:,.2f}" if value >= 10 else f"{value:.3f}".removesuffix("0")
    return f"{value:.{2 - math.floor(math.log10(value))}f}" if 1e-12 < value < 1 else f"{value:.3g}"


def _count(number: int) -> str:
    return f"{number:,}"


def _size(value: float) -> str:
    return amount(value, "B")


def _tokens(line: Line) -> str | None:
    return None if line.prompt_tokens is None else f"{line.prompt_tokens}+{line.new_tokens}"


def _rows(line: Line) -> str | None:
    return None if line.rows is None else f"{line.rows:,}" + ("" if line.finished else " so far")


def _spread(line: Line) -> str | None:
    if line.total_p5_s is None or line.total_p95_s is None:
        return None
    return f"{duration(line.total_p5_s)} to {duration(line.total_p95_s)}"


def _bounded(name: str, bound: str) -> Callable[[Line], str | None]:
    def cell(line: Line) -> str | None:
        value = getattr(line, name)
        by = getattr(line, bound)
        return None if value is None else share(value) + (f" {by}" if by else "")

    return cell


def _device(line: Line) -> str | None:
    names = dict.fromkeys(name for name in (line.device, line.place) if name)
    return ": ".join(names) or None


def _source(line: Line) -> str | None:
    return f"published: {line.variant}" if line.is_published else line.source


LINE_COLUMNS: tuple[Column[Line], ...] = (
    Column("#", _of("number", "#{}".format)),
    Column("kind", _of("kind"), left=True, is_shared=True),
    Column("model", _of("model"), left=True, is_shared=True),
    Column("processor", _of("processor"), left=True, is_shared=True, only_shared=True),
    Column("description", _of("device_description"), left=True, is_shared=True, only_shared=True),
    Column("device", _device, left=True, is_shared=True),
    Column("weights", _of("weights"), left=True, is_shared=True),
    Column("cache", _of("cache"), left=True, is_shared=True),
    Column("tp", _of("tp"), is_shared=True),
    Column("pp", _of("pp"), is_shared=True),
    Column("batch", _of("batch")),
    Column("tokens", _tokens, note="of the prompt + asked for, for each sequence"),
    Column("drafts", _of("speculate"), left=True, is_shared=True, note="where they came from"),
    Column(
        "accepted", _of("acceptance", share),
        note="of the drafted tokens, that were right; drafted: of a run; per reading: tokens that a reading of the "
        "weights gave a sequence; medians",
    ),
    Column("drafted", _of("drafted_tokens", "{:,.0f}".format)),
    Column("per reading", _of("tokens_per_step", "{:.2f}".format)),
    Column("first", _of("first_token_s", duration), note="until the first token, median"),
    Column(
        "token", _of("token_s", duration), note="from one to the next, median of all; p95: 95 % of them stay below"
    ),
    Column("p95", _of("token_p95_s", duration)),
    Column(
        "prompt", _of("prefill_tokens_per_s", rate),
        note="prompt tokens/s until the last sequence had its first token; decode: generated tokens/s from then on",
    ),
    Column("decode", _of("decode_tokens_per_s", rate)),
    Column(
        "in all", _of("total_s", duration),
        note="one call of generate, median; a data set: all sessions without loading, to a killed one's last note",
    ),
    Column("5 to 95 %", _spread, note="of the runs, in all"),
    Column("tokens/s", _of("tokens_per_s", rate)),
    Column(
        "of the limit", _bounded("share_of_step_floor", "step_bound"),
        note="the least time that a decode step can take at the speeds measured between the runs / the time it took",
    ),
    Column("prompt of it", _bounded("share_of_prefill_floor", "prefill_bound"), note="the same of the prompts"),
    Column(
        "share", lambda line: None if line.share_of_step_floor is not None else _of("share_of_bandwidth", share)(line),
        note="of the read bandwidth that was measured in the same run"
    ),
    Column(
        "data set of the limit", _of("share_of_limit", share),
        note="the least time that the tokens of the data set can take / the time they took",
    ),
    Column("rows", _rows),
    Column("shards", _of("shards"), note="dealt to workers, whose seconds are added up"),
    Column("failed rows", _of("failed_rows", _count)),
    Column("rows/s", _of("rows_per_s", "{:.2f}/s".format)),
    Column("tokens in", _of("data_prompt_tokens", _count), note="of the prompts of all rows; out: generated"),
    Column(
        "reused", _of("reused_tokens", _count), note="of the prompts, that rows before them had: they were not computed"
    ),
    Column("out", lambda line: None if line.rows is None else _of("generated_tokens", _count)(line)),
    Column("memory", _of("peak_memory_bytes", _size), note="the most that the process ever held, of all ranks"),
    Column("device memory", _of("device_peak_memory_bytes", _size), note="the most held at once, of rank 0"),
    Column("load", _of("load_s", duration), note="loading; first run, capture: before the timed runs"),
    Column("first run", _of("first_run_s", duration)),
    Column("capture", lambda line: _of("capture_s", duration)(line) if line.captures else None),
    Column("perplexity", _of("perplexity", "{:.3f}".format), note="of these weights, by an evaluation (see below)"),
    Column(
        "ratio", _of("perplexity_ratio", "{:.4f}".format),
        note="of the perplexity to that of other weights; KL, agree: mean divergence in nats, and how often both hold "
        "the same token likeliest",
    ),
    Column("KL", _of("mean_kl", "{:.4f}".format)),
    Column("agree", _of("greedy_agreement", share)),
    Column("quality", _of("quality_note"), left=True),
    Column("USD/hour", _of("usd_per_hour", usd), note="of one device"),
    Column("USD/M tokens", _of("usd_per_million_tokens", usd), note="per million generated tokens"),
    Column("USD/job", _of("usd_per_job", usd), note="of what `in all` is the time of"),
    Column(
        "x token", _of("times_as_fast_token", times),
        note="how many times as fast as the baseline: from one token to the next; x in all: the whole call",
    ),
    Column("x in all", _of("times_as_fast", times)),
    Column("turns", _of("turns"), left=True, note="measured in turns with the other side of the same session"),
    Column("source", _source, left=True, is_shared=True),
    Column("failed", _of("error"), left=True, is_remark=True),
    Column("invalid", _of("invalid"), left=True, is_remark=True, note="why a row's figures must not be used"),
    Column("marked", _of("marks"), left=True, is_remark=True, note="what to keep in mind with a row's figures"),
    Column("not priced", _of("price_note"), left=True, is_remark=True),
)  # fmt: skip

EVALUATION_COLUMNS: tuple[Column[Evaluated], ...] = (
    Column("model", _of("model"), left=True, is_shared=True),
    Column("device", _of("device"), left=True, is_shared=True),
    Column("text", _of("text"), left=True, is_shared=True),
    Column("tokens", _of("scored_tokens", _count), note="whose probability was taken"),
    Column("weights", _of("weights"), left=True),
    Column("perplexity", _of("perplexity", "{:.3f}".format)),
    Column("against", _of("against_weights"), left=True),
    Column("theirs", _of("against_perplexity", "{:.3f}".format), note="the perplexity of these other weights"),
    Column("ratio", _of("perplexity_ratio", "{:.4f}".format)),
    Column("+-", _of("log_ratio_standard_error", "{:.4f}".format), note="standard error of the ratio's logarithm"),
    Column("KL", _of("mean_kl", "{:.4f}".format), note="KL(theirs || these), the mean of the tokens, in nats"),
    Column("most", _of("max_kl", "{:.2f}".format), note="the greatest KL of a single token"),
    Column("agree", _of("greedy_agreement", share), note="tokens where both hold the same one likeliest"),
    Column("source", _of("source"), left=True, is_shared=True),
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """What is to be shown of some lines.

    Attributes:
        shared: what is the same in all of them, as (title, text).
        titles: of the other columns that hold anything.
        left: titles of the columns that stand at the left.
        rows: a cell for each column.
        notes: what titles mean, as (title, text).
    """

    shared: list[tuple[str, str]]
    titles: list[str]
    left: list[str]
    rows: list[list[str]]
    notes: list[tuple[str, str]]


def remarks(lines: Sequence[Line]) -> list[str]:
    """What is said of single lines, each sentence once: "#2, #3 marked: ..."."""
    found = []
    for column in LINE_COLUMNS:
        if column.is_remark:
            about: dict[str, list[str]] = {}
            for line in lines:
                text = column.cell(line)
                if text is not None:
                    about.setdefault(text, []).append(f"#{line.number}")
            found += [f"{', '.join(numbers)} {column.title}: {text}" for text, numbers in about.items()]
    return found


def grid(lines: Sequence[_T], columns: Sequence[Column[_T]]) -> Grid:
    """What columns hold of lines: those that hold nothing are left out, and what is shared is said once."""
    shared: list[tuple[str, str]] = []
    kept: list[Column[_T]] = []
    for column in columns:
        cells = [column.cell(line) for line in lines]
        if column.is_shared and len(set(cells)) == 1 and cells[0] is not None:
            if (column.title, cells[0]) not in (("tp", "1"), ("pp", "1")):
                shared.append((column.title, cells[0]))
        elif not column.only_shared and any(cell is not None for cell in cells):
            kept.append(column)
    return Grid(
        shared=shared,
        titles=[column.title for column in kept],
        left=[column.title for column in kept if column.left],
        rows=[[column.cell(line) or EMPTY for column in kept] for line in lines],
        notes=[(column.title, column.note) for column in kept if column.note],
    )
