"""Data sets in a report: the devices they ran on, what they cost, and the command that completed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anthesis.report import Line, compose, read_prices, read_results, render
from report_files import FIXTURES, document, write

CARD = {"name": "cuda", "description": "NVIDIA H100 80GB HBM3"}


def session(run_s: float, tokens: int = 9_000_000, **changes: Any) -> dict[str, Any]:
    """A session of so many seconds, in which so many tokens were generated."""
    (found,) = document(FIXTURES / "complete-0.1-old.json")["sessions"]
    return {**found, "run_s": run_s, "counts": {**found["counts"], "completion_tokens": tokens}, **changes}


def summary(path: Path, *sessions: dict[str, Any], tp: int | None = None, on_card: bool = True) -> Path:
    """A summary with these sessions, on cards or on the machine's processor, an AMD EPYC."""
    found = document(FIXTURES / "complete-0.1-old.json")
    found["sessions"] = list(sessions)
    if tp is not None:
        found["request"]["device"]["tp"] = tp
    if on_card:
        found["device"] |= CARD
    return write(path / "out.jsonl.summary.json", found)


def line_of(file: Path) -> Line:
    """The line of a summary, by 2 USD for an hour of a card and 0.36 for one of the machine."""
    prices = write_prices(file.with_name("prices.csv"))
    (line,) = compose(read_results([file]), prices=read_prices([str(prices)])).lines
    return line


def write_prices(path: Path) -> Path:
    path.write_text("device,usd_per_hour,source,date\nH100,2,them,2026-01-31\nEPYC,0.36,them,2026-01-31\n")
    return path


def test_each_card_of_a_data_set_is_paid_for(tmp_path: Path) -> None:
    line = line_of(summary(tmp_path, session(1800.0, ranks=8), tp=8))
    assert (line.tp, line.pp, line.devices, line.devices_s) == (8, 1, 8, 14400.0)
    assert line.usd_per_job == pytest.approx(8.0)  # half an hour of eight cards at 2 USD
    assert line.usd_per_million_tokens == pytest.approx(8.0 / 9)


def test_sessions_may_have_had_other_numbers_of_cards(tmp_path: Path) -> None:
    line = line_of(summary(tmp_path, session(3600.0, ranks=2), session(1800.0, ranks=4), tp=2))
    assert (line.tp, line.pp, line.devices) == (2, 2, 4)  # of the last session
    assert line.usd_per_job == pytest.approx(8.0)  # two card hours and two card hours
    assert line.usd_per_million_tokens == pytest.approx(8.0 / 18)


@pytest.mark.parametrize(("tp", "devices", "usd"), [(None, 1, 2.0), (8, 8, 16.0)])
def test_of_summaries_that_do_not_say_their_ranks_tp_is_known(
    tmp_path: Path, tp: int | None, devices: int, usd: float
) -> None:
    line = line_of(summary(tmp_path, session(3600.0), tp=tp))
    assert (line.tp, line.pp, line.devices) == (devices, 1, devices)
    assert line.usd_per_job == pytest.approx(usd)


def test_a_processor_is_paid_for_once(tmp_path: Path) -> None:
    line = line_of(summary(tmp_path, session(3600.0, ranks=2), tp=2, on_card=False))
    assert line.usd_per_job == pytest.approx(0.36)
    assert line.usd_per_million_tokens == pytest.approx(0.04)
    assert line.price_note is None


def test_workers_of_shards_each_have_cards_of_their_own(tmp_path: Path) -> None:
    line = line_of(summary(tmp_path, session(3600.0, shard=0, ranks=2), session(1800.0, shard=1, ranks=2), tp=2))
    assert (line.shards, line.price_note) == (2, None)
    assert line.usd_per_job == pytest.approx(6.0)


def test_workers_of_shards_on_processors_have_no_price_and_it_is_said_why(tmp_path: Path) -> None:
    file = summary(tmp_path, session(3600.0, shard=0, ranks=1), session(3600.0, shard=1, ranks=1), on_card=False)
    line = line_of(file)
    assert (line.usd_per_hour, line.usd_per_job, line.usd_per_million_tokens) == (0.36, None, None)
    why = "workers of shards may have been on one machine at the same time, so its hours are not known"
    assert line.price_note == why
    contents = compose(read_results([file]), prices=read_prices(["epyc=0.36"]))
    for form in ("table", "md", "csv", "json", "html"):
        assert why in render(contents, form)


@pytest.mark.parametrize("form", ["md", "csv", "json", "html"])
def test_a_data_set_says_commit_and_command(tmp_path: Path, form: str) -> None:
    file = summary(tmp_path, session(1.0))
    said = {"commit": "c0ffee", "command": "anthesis complete model 'my rows.jsonl' -o out.jsonl"}
    write(file, {**document(file), **said})
    contents = compose(read_results([file]))
    (line,) = contents.lines
    assert (line.commit, line.command) == (said["commit"], said["command"])
    text = render(contents, form)
    command = said["command"].replace("'", "&#x27;") if form == "html" else said["command"]
    assert command in (text if form != "json" else json.loads(text)["lines"][0]["command"])
    assert form == "md" or "c0ffee" in text
