"""Figures that others have published, as data: published.json, with where each comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from anthesis.report.line import PUBLISHED, Line
from anthesis.report.prices import Price


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where figures were published.

    Attributes:
        title, url: of the page or file.
        date: of it, ISO 8601.
        note: what was measured how, and what is not known of it.
    """

    title: str
    url: str
    date: str
    note: str


def published_lines() -> list[Line]:
    """The figures as lines; seconds of what was published as tokens/s are computed."""
    data, known = _data(), {name: source.url for name, source in _sources().items()}
    return [_line(row, known[row["source"]], data) for row in data["rows"]]


def published_sources() -> list[Source]:
    """Where they come from."""
    return list(_sources().values())


def published_prices() -> list[Price]:
    """Prices of the same sources."""
    return [
        Price(name=row["device"], usd_per_hour=row["usd_per_hour"], source=row["source"], date=row["date"])
        for row in _data()["prices"]
    ]


def price_notes() -> list[str]:
    """What the sources say of prices that is none."""
    return list(_data()["price_notes"])


def _line(row: dict[str, Any], url: str, data: dict[str, Any]) -> Line:
    job = data["job"]
    tokens = job["new_tokens"] * job["batch"]
    total_s = row["seconds"] if "seconds" in row else tokens / row["tokens_per_s"]
    return Line(
        kind=PUBLISHED,
        source=url,
        started_at=row["date"],
        model=row["model"],
        is_random=False,
        parameters=data["models"][row["model"]],
        device=row["device"],
        weights=row["weights"],
        tp=row["devices"],
        pp=1,
        devices=row["devices"],
        batch=job["batch"],
        prompt=job["prompt"],
        prompt_tokens=job["prompt_tokens"],
        new_tokens=job["new_tokens"],
        generated_tokens=tokens,
        total_s=total_s,
        latency_s=total_s / job["new_tokens"],
        tokens_per_s=row.get("tokens_per_s", tokens / total_s),
        versions=row["versions"],
        variant=row["variant"],
        note=data["sources"][row["source"]]["note"],
    )


def _sources() -> dict[str, Source]:
    return {name: Source(**source) for name, source in _data()["sources"].items()}


@cache
def _data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
    return found
