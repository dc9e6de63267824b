"""What a report says in words: its verdict in one line, and what is to be known of all its figures."""

from __future__ import annotations

from anthesis.errors import printable
from anthesis.report.baseline import is_comparable
from anthesis.report.columns import share, times, usd
from anthesis.report.contents import Contents
from anthesis.report.line import Line
from anthesis.report.published import price_notes, published_sources
from anthesis.units import counted, duration


def verdict(contents: Contents) -> str:
    """The fastest line that was measured, how near it came to its limit, and what is wrong with others."""
    own = [line for line in contents.points if not line.is_published]
    parts = []
    ranked = sorted((line for line in own if line.has_latency), key=lambda line: line.latency_s or 0.0)
    if ranked:
        best = ranked[0]
        text = f"Fastest: #{best.number} {printable(best.model or '', 80)}, {printable(best.label, 120)}: "
        parts.append(text + "; ".join(_facts(best, contents)))
    parts += [_data_set(line) for line in contents.data_sets]
    failed = sum(line.error is not None for line in own)
    invalid = sum(line.invalid is not None for line in own)
    counts = [counted(len(own), "measured row")] if own else []
    counts += [f"{failed} failed"] if failed else []
    counts += [f"{invalid} invalid"] if invalid else []
    counts += [f"{len(contents.points) - len(own)} published"] if contents.with_published else []
    return ". ".join([*parts, *([", ".join(counts)] if counts else [])]) + ("." if parts or counts else "")


def tiles(contents: Contents) -> list[tuple[str, str, str, int | None]]:
    """The verdict in figures: title, figure, what it is of, and the number of its line."""
    own = [line for line in contents.points if not line.is_published]
    usable = [line for line in own if line.has_latency]
    found: list[tuple[str, str, str, int | None]] = []
    if usable:
        best = min(usable, key=lambda line: line.latency_s or 0.0)
        found.append(("Lowest latency", f"{duration(best.latency_s or 0.0)} per token", best.title, best.number))
    near = [(value, line) for line in usable if (value := share_of_limit(line)) is not None]
    if near:
        value, line = max(near, key=lambda pair: pair[0])
        what = "the limit" if line.share_of_step_floor is not None else "the read bandwidth"
        found.append(("Nearest to its limit", f"{share(value)} of {what}", line.title, line.number))
    priced = [line for line in usable if line.usd_per_million_tokens is not None]
    if priced:
        line = min(priced, key=lambda line: line.usd_per_million_tokens or 0.0)
        text = f"{usd(line.usd_per_million_tokens or 0.0)} USD"
        found.append(("Cheapest million tokens", text, line.title, line.number))
    bad = sum(line.error is not None or line.invalid is not None for line in own)
    marked = sum(line.marks is not None for line in own)
    about = [f"{bad} failed or invalid" if bad else "none failed", f"{marked} marked" if marked else ""]
    about += [f"{len(contents.points) - len(own)} published beside them"] if contents.with_published else []
    found.append(("Measured", counted(len(own), "row"), ", ".join(part for part in about if part), None))
    return found


def general_notes(contents: Contents) -> list[str]:
    """What is to be known of all lines."""
    lines = contents.lines
    notes = []
    if contents.baseline is not None:
        compared = sum(is_comparable(line, contents.baseline) for line in lines) - 1
        notes.append(
            f"baseline #{contents.baseline.number}: ratios are of rows of a model of its size, with its prompt and new "
            f"tokens and its batch; {compared} besides it. They respect no spread: `anthesis compare` gives verdicts"
        )
    if any(line.is_random for line in lines):
        notes.append("random weights: the texts mean nothing, the times do")
    if any(line.quality_note for line in lines):
        notes.append("quality not measured: `anthesis evaluate --against` finds what the weights cost")
    if contents.with_published:
        notes.append("published: measured by others, on their machines, as their sources say; not by us")
    return notes


def price_lines(contents: Contents) -> list[str]:
    """Every price that was used, with who says so and when."""
    lines = [
        f"{printable(price.name)}: {usd(price.usd_per_hour)} USD an hour, {printable(price.source)}"
        + (f", {price.date}" if price.date else "")
        for price in contents.prices
    ]
    return lines + (price_notes() if contents.with_published else [])


def source_lines(contents: Contents) -> list[str]:
    """Where what is published comes from."""
    sources = published_sources() if contents.with_published else []
    return [f"{source.title}, {source.date}: {source.url} - {source.note}" for source in sources]


def share_of_limit(line: Line) -> float | None:
    """How near a line came to its limit: of the floor where it is known, else of the bandwidth."""
    known = (line.share_of_step_floor, line.share_of_limit, line.share_of_bandwidth)
    return next((value for value in known if value is not None), None)


def _facts(best: Line, contents: Contents) -> list[str]:
    facts = [f"{duration(best.latency_s or 0.0)} per token"]
    near = share_of_limit(best)
    if near is not None:
        what = "the limit" if best.share_of_step_floor is not None else "the read bandwidth"
        facts[0] += f", {share(near)} of {what}"
    if best.usd_per_million_tokens is not None:
        facts.append(f"{usd(best.usd_per_million_tokens)} USD per million tokens")
    if best.times_as_fast is not None and contents.baseline is not None and best.number != contents.baseline.number:
        facts.append(f"{times(best.times_as_fast)} as fast as #{contents.baseline.number}")
    if best.perplexity_ratio is not None:
        facts.append(f"perplexity {times(best.perplexity_ratio)} that of {printable(best.quality_against or '')}")
    elif best.quality_note:
        facts.append(best.quality_note)
    return facts


def _data_set(line: Line) -> str:
    text = f"Data set #{line.number}: {counted(line.rows or 0, 'row')}{'' if line.finished else ' so far'}"
    text += f", {line.failed_rows or 0:,} failed"
    return text + ("" if line.tokens_per_s is None else f", {line.tokens_per_s:,.1f} generated tokens/s")
