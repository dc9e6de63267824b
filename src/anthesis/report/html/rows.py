"""The tables of an HTML report, in which every line opens to all that is known of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath

from anthesis.errors import printable
from anthesis.report.columns import EMPTY, EVALUATION_COLUMNS, LINE_COLUMNS, share, times, usd
from anthesis.report.contents import Contents
from anthesis.report.line import COMPLETE, Line
from anthesis.report.quality import Evaluated
from anthesis.units import amount, duration

_LONGEST = 10_000


@dataclass(frozen=True)
class _Glance:
    """A column that is always to be seen: its title, and its cell as HTML; None for nothing to show."""

    title: str
    html: Callable[[Line], str | None]


def point_table(contents: Contents) -> str:
    """Every point as HTML: those measured in a table, and in another one, a line each, those that others published."""
    own = [line for line in contents.points if not line.is_published]
    theirs = [line for line in contents.points if line.is_published]
    tables = [_line_table(own, _POINT, contents)] if own else []
    if theirs:
        tables += ["<h3>Published by others</h3>", _line_table(theirs, _POINT, contents)]
    return "".join(tables)


def data_set_table(contents: Contents) -> str:
    """Every data set, as HTML."""
    return _line_table(contents.data_sets, _DATA_SET, contents)


def evaluation_table(contents: Contents) -> str:
    """Every evaluation, as HTML."""
    columns = [
        column
        for column in EVALUATION_COLUMNS
        if column.title != "source" and any(map(column.cell, contents.evaluations))
    ]
    left = {column.title: ' class="left"' if column.left else "" for column in columns}
    heads = "".join(f'<th scope="col"{left[column.title]}>{escape(column.title)}</th>' for column in columns)
    bodies = []
    for i, found in enumerate(contents.evaluations, start=1):
        cells = "".join(
            f'<td data-label="{escape(column.title)}"{left[column.title]}>{escape(column.cell(found) or EMPTY)}</td>'
            for column in columns
        )
        details = _details(
            f"e{i}", _evaluation_facts(found), found.command, "Measures it again", found.source, found.source_sha256
        )
        bodies.append(
            f'<tbody class="row" id="row-e{i}" tabindex="-1"><tr>{cells}</tr>'
            f'<tr class="more"><td colspan="{len(columns)}">{details}</td></tr></tbody>'
        )
    return f'<div class="scroll"><table class="grid"><thead><tr>{heads}</tr></thead>{"".join(bodies)}</table></div>'


def _line_table(lines: Sequence[Line], columns: Sequence[_Glance], contents: Contents) -> str:
    kept = [column for column in columns if any(column.html(line) for line in lines)]
    heads = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in kept)
    baseline = None if contents.baseline is None else contents.baseline.number
    bodies = [_body(line, kept, is_baseline=line.number == baseline) for line in lines]
    return (
        '<div class="scroll"><table class="grid"><thead><tr><th scope="col">#</th><th scope="col">Row</th>'
        f"{heads}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _body(line: Line, columns: Sequence[_Glance], *, is_baseline: bool) -> str:
    """The figures of a line, and what it opens to; a published one, of which less is known, opens by its name."""
    kind = " published" if line.is_published else " bad" if line.error or line.invalid else ""
    subject = _subject(line, is_baseline)
    more = ""
    if line.is_published:
        subject = _published_details(line, subject)
    else:
        title = "Completed it" if line.kind == COMPLETE else "Measures it again"
        details = _details(str(line.number), _facts(line), line.command, title, line.source, line.source_sha256)
        more = f'<tr class="more"><td colspan="{len(columns) + 2}">{_troubles(line)}{details}</td></tr>'
    cells = "".join(_cell(column.title, column.html(line)) for column in columns)
    return (
        f'<tbody class="row{kind}" id="row-{line.number}" tabindex="-1"><tr>'
        f'<td class="number"><a href="#row-{line.number}">#{line.number}</a></td>'
        f'<th scope="row">{subject}</th>{cells}</tr>{more}</tbody>'
    )


def _cell(title: str, html: str | None) -> str:
    empty = "" if html else ' class="empty"'
    return f'<td data-label="{escape(title)}"{empty}>{html or EMPTY}</td>'


def _subject(line: Line, is_baseline: bool) -> str:
    tokens = None if line.prompt_tokens is None else f"{line.prompt_tokens}+{line.new_tokens} tokens"
    label = ", ".join(part for part in (line.label, tokens, line.variant) if part)
    badges = [("published", "published")] if line.is_published else []
    badges += [("baseline", "baseline")] if is_baseline else []
    badges += [("", "random weights")] if line.is_random else []
    badges += [("", f"turns {line.turns.partition(' ')[0]}")] if line.turns else []
    marks = "".join(_badge(name, text) for name, text in badges)
    return f"<b>{_text(line.name or 'unknown model')}</b><span>{_text(label)}</span>{marks}"


def _troubles(line: Line) -> str:
    troubles = (
        ("bad", "failed", line.error),
        ("bad", "invalid", line.invalid),
        ("warn", "marked", line.marks),
        ("warn", "not priced", line.price_note),
    )
    return "".join(
        f'<p class="why">{_badge(name, text)}{escape(printable(why, 500))}</p>'
        for name, text, why in troubles
        if why is not None
    )


def _badge(name: str, text: str) -> str:
    return f'<span class="badge {name}">{escape(printable(text))}</span>'


def _details(
    name: str, facts: Sequence[tuple[str, str]], command: str | None, title: str, source: str, sha256: str | None
) -> str:
    """What a row opens to; `title` stands above its command."""
    parts = [_terms(facts)]
    if command is not None:
        parts.append(
            f'<div class="command"><h3>{escape(title)}</h3><code id="command-{name}">{_text(command)}</code>'
            f'<button type="button" data-copy="command-{name}">Copy</button></div>'
        )
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in PurePath(source).stem)[:80]
    parts.append(
        f'<div class="raw"><h3>Raw result</h3><p>{_text(source)}<br>SHA-256 <code>{escape(sha256 or "")}</code></p>'
        f'<button type="button" data-show="raw-{name}" aria-expanded="false">Show</button>'
        f'<button type="button" data-save="raw-{name}" data-name="{escape(stem)}-{name}.json">Download</button>'
        f'<pre id="shown-{name}" tabindex="0" hidden></pre></div>'
    )
    contents = "Details, command and raw result" if command else "Details and raw result"
    return f'<details><summary>{contents}<span class="unseen"> of row {name}</span></summary>{"".join(parts)}</details>'


def _published_details(line: Line, subject: str) -> str:
    source = f'<p>Source: <a href="{escape(line.source)}" rel="noreferrer">{escape(line.source)}</a></p>'
    about = '<span class="unseen">: details and source</span>'
    return f"<details><summary>{subject}{about}</summary>{_terms(_facts(line))}{source}</details>"


def _terms(facts: Sequence[tuple[str, str]]) -> str:
    terms = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in facts)
    return f'<dl class="facts">{terms}</dl>'


def _facts(line: Line) -> list[tuple[str, str]]:
    """All that the columns of other formats show, and what is in none of them."""
    facts = [(column.title, column.cell(line)) for column in LINE_COLUMNS if column.title != "#"]
    more: list[tuple[str, str | None]] = [
        ("prompt text", line.prompt),
        ("standard deviation in all", _plain_time(line.total_standard_deviation_s)),
        ("parameters", None if line.parameters is None else f"{line.parameters:,}"),
        ("read bandwidth", _speed(line.read_bandwidth_bytes_per_s, "B/s")),
        ("bandwidth moved", None if line.bandwidth_moved is None else share(line.bandwidth_moved)),
        ("started", line.started_at),
        ("tokens' SHA-256", line.tokens_sha256),
        ("commit", line.commit),
        ("versions", line.versions),
        ("quality against", line.quality_against),
        ("quality on", line.quality_text),
        ("price by", line.price_source),
        ("price of", line.price_date),
        ("note", line.note),
    ]
    return [*((t, v) for t, v in facts if v is not None), *((t, printable(v, 1000)) for t, v in more if v)]


def _evaluation_facts(found: Evaluated) -> list[tuple[str, str]]:
    more = {
        "started": found.started_at,
        "processor": found.processor,
        "text's SHA-256": found.text_sha256,
        "standard error of KL": "" if found.kl_standard_error is None else f"{found.kl_standard_error:.2g}",
    }
    return [(title, printable(text, 1000)) for title, text in more.items() if text]


def _text(text: str) -> str:
    return escape(printable(text, _LONGEST))


def _speed(value: float | None, unit: str) -> str | None:
    return None if value is None else amount(value, unit)


def _plain_time(value: float | None) -> str | None:
    return None if value is None else duration(value)


def _time(value: float | None) -> str | None:
    return None if value is None else escape(duration(value))


def _still(text: str) -> str:
    """A figure and its unit, which stay in one line."""
    return escape(text).replace(" ", "&nbsp;")


def _with_small(main: str | None, small: str | None) -> str | None:
    return main if main is None or small is None else f"{main}<small>{small}</small>"


def _token(line: Line) -> str | None:
    p95 = None if line.token_p95_s is None else f"p95 {_still(duration(line.token_p95_s))}"
    return _with_small(_time(line.token_s), p95)


def _total(line: Line) -> str | None:
    if line.total_p5_s is None or line.total_p95_s is None:
        return _time(line.total_s)
    return _with_small(
        _time(line.total_s), f"{_still(duration(line.total_p5_s))} – {_still(duration(line.total_p95_s))}"
    )


def _meter(value: float | None, about: str | None) -> str | None:
    if value is None:
        return None
    width = max(0.0, min(1.0, value)) * 100
    bar = f'<span class="meter" aria-hidden="true"><i style="width:{width:.0f}%"></i></span>'
    return _with_small(f"{share(value)}{bar}", None if about is None else escape(printable(about)))


def _limit(line: Line) -> str | None:
    if line.share_of_step_floor is not None:
        return _meter(
            line.share_of_step_floor, f"of the limit: {line.step_bound}" if line.step_bound else "of the limit"
        )
    return _meter(line.share_of_bandwidth, "of the bandwidth")


def _quality(line: Line) -> str | None:
    if line.perplexity is None:
        return None if line.quality_note is None else f'<span class="warn">{escape(line.quality_note)}</span>'
    more = []
    if line.perplexity_ratio is not None:
        more.append(f"{line.perplexity_ratio:.4f}x&nbsp;{_text(line.quality_against or '')}")
    if line.mean_kl is not None and line.greedy_agreement is not None:
        more += [f"KL&nbsp;{line.mean_kl:.4f}", f"{share(line.greedy_agreement)}&nbsp;agree"]
    return _with_small(f"{line.perplexity:.3f}", "<br>".join(more) or None)


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}"


def _money(line: Line) -> str | None:
    if line.usd_per_million_tokens is None:
        return None
    job = None if line.usd_per_job is None else f"job {usd(line.usd_per_job)}"
    return _with_small(usd(line.usd_per_million_tokens), job)


def _ratio(line: Line) -> str | None:
    if line.times_as_fast is None:
        return None
    token = None if line.times_as_fast_token is None else f"token {times(line.times_as_fast_token)}"
    return _with_small(times(line.times_as_fast), token)


_POINT = (
    _Glance("per token", lambda line: _time(line.latency_s)),
    _Glance("first", lambda line: _time(line.first_token_s)),
    _Glance("token to token", _token),
    _Glance("in all", _total),
    _Glance("tokens/s", lambda line: _rate(line.tokens_per_s)),
    _Glance("share", _limit),
    _Glance("perplexity", _quality),
    _Glance("USD/M tokens", _money),
    _Glance("times as fast", _ratio),
)

_DATA_SET = (
    _Glance("rows", lambda line: None if line.rows is None else f"{line.rows:,}{'' if line.finished else ' so far'}"),
    _Glance("failed", lambda line: None if line.failed_rows is None else f"{line.failed_rows:,}"),
    _Glance("tokens in", lambda line: None if line.data_prompt_tokens is None else f"{line.data_prompt_tokens:,}"),
    _Glance("tokens out", lambda line: None if line.generated_tokens is None else f"{line.generated_tokens:,}"),
    _Glance("seconds", lambda line: _time(line.total_s)),
    _Glance("tokens/s", lambda line: _rate(line.tokens_per_s)),
    _Glance("rows/s", lambda line: None if line.rows_per_s is None else f"{line.rows_per_s:.2f}"),
    _Glance("of the limit", lambda line: _meter(line.share_of_limit, None)),
    _Glance("perplexity", _quality),
    _Glance("USD/M tokens", _money),
)
