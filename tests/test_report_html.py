"""The HTML report as text: what Plotly is told is valid, and nothing in a result can leave its place."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from anthesis.bench import read_report
from anthesis.report import Contents, compose, read_prices, read_results, render
from anthesis.report.html.chart import log_axis
from command_line import Terminal, command, fail
from report_files import CUDA, HPU, document, evaluation, write


class Scripts(HTMLParser):
    """The scripts of a page, and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        self.attributes += [(tag, name, value) for name, value in attrs]
        if self._inside:
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


@pytest.fixture(scope="module")
def contents() -> Contents:
    return compose(
        read_results([CUDA, HPU]), published=True, prices=read_prices(["h100=2.5", "gaudi2=1.3"]), baseline="#6"
    )


@pytest.fixture(scope="module")
def page(contents: Contents) -> Scripts:
    return Scripts(render(contents, "html"))


def figures(page: Scripts) -> dict[str, Any]:
    (text,) = [text for attributes, text in page.scripts if attributes.get("id") == "figures"]
    found: dict[str, Any] = json.loads(text)
    return found


def merged(base: Any, more: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(more, dict):
        return more
    return {**base, **{key: merged(base.get(key), value) for key, value in more.items()}}


def with_colours(value: Any) -> Any:
    """The figure as the page completes it: names of its colours replaced by some."""
    if isinstance(value, dict):
        return {key: with_colours(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_colours(item) for item in value]
    return "#123456" if isinstance(value, str) and value.startswith("var(--") else value


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_figures_are_what_plotly_takes(page: Scripts, width: str) -> None:
    found = figures(page)
    assert list(found) == ["latency", "batch", "limit", "price"]
    for figure in found.values():
        layout = merged(figure["layout"], figure[width])
        go.Figure(with_colours({"data": figure["data"], "layout": layout}))  # raises on what it does not know


def test_bars_are_latencies_and_whiskers_their_spread(page: Scripts, contents: Contents) -> None:
    lines = {line.number: line for line in contents.lines}
    seen = []
    for trace in figures(page)["latency"]["data"]:
        for i, number in enumerate(trace.get("customdata", [])):
            line = lines[number]
            seen.append(number)
            assert trace["x"][i] / 1e3 == pytest.approx(line.latency_s)
            if not line.is_published:
                assert trace["error_x"]["array"][i] / 1e3 * line.new_tokens == pytest.approx(
                    line.total_p95_s - line.total_s, abs=1e-9
                )
    assert sorted(seen) == [line.number for line in contents.points if line.has_latency]


def test_marks_under_the_roof_are_as_far_below_it_as_their_share(page: Scripts, contents: Contents) -> None:
    lines = {line.number: line for line in contents.lines}
    seen = 0
    for trace in figures(page)["limit"]["data"]:
        if trace["mode"] == "markers" and trace["marker"]["symbol"] == "circle":
            for x, y, number in zip(trace["x"], trace["y"], trace["customdata"], strict=True):
                line = lines[number]
                peak = 2 * line.multiply_adds_per_s["bf16"]
                roof = min(peak, x * line.read_bandwidth_bytes_per_s)
                assert y / roof == pytest.approx(line.share_of_step_floor, rel=0.05)
                seen += 1
    assert seen == 4


@pytest.mark.parametrize("axis", ["xaxis", "yaxis"])
def test_axes_of_the_price_chart_have_plain_numbers(page: Scripts, axis: str) -> None:
    figure = figures(page)["price"]
    values = [value for trace in figure["data"] for value in trace[axis[0]]]
    described = figure["layout"][axis]
    texts = [float(text.replace(",", "")) for text in described["ticktext"]]
    assert texts == pytest.approx(described["tickvals"])
    assert described["tickvals"][0] < min(values)
    assert described["tickvals"][-1] > max(values)
    assert {text.strip("0.,") for text in described["ticktext"]} <= {"1", "2", "5"}


def test_an_axis_over_many_powers_has_marks_at_them_alone() -> None:
    assert log_axis([0.03, 2000.0])["ticktext"] == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
        "1,000",
        "10,000",
        "100,000",
    ]
    assert log_axis([1.0, 1.0])["ticktext"] == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]
    assert {"25", "30"} <= set(log_axis([23.9, 31.3])["ticktext"])  # no 1, 2 or 5 is among these
    assert len(log_axis([5e-324, 1e308])["ticktext"]) == 25  # what a damaged file may hold


def test_roofs_are_the_speeds_that_were_measured(page: Scripts, contents: Contents) -> None:
    lines = {line.number: line for line in contents.lines}
    roofs = [trace for trace in figures(page)["limit"]["data"] if trace["mode"] == "lines"]
    machines = [lines[1], lines[6], lines[7]]  # of one card, of one of another kind, and of eight of these
    assert len(roofs) == len(machines)
    assert len({(trace["x"][0], trace["x"][-1]) for trace in roofs}) == 1
    for trace, line in zip(roofs, machines, strict=True):
        peak = 2 * line.multiply_adds_per_s["bf16"]
        (left, ridge, right) = zip(trace["x"], trace["y"], strict=True)
        assert left[1] / left[0] == pytest.approx(line.read_bandwidth_bytes_per_s, rel=0.05)
        assert ridge[1] / ridge[0] == pytest.approx(left[1] / left[0])
        assert (ridge[1], right[1]) == pytest.approx((peak, peak))


def test_the_policy_lets_only_our_scripts_run(page: Scripts) -> None:
    (policy,) = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value]
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    run = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run] == allowed
    assert len(run) == 2
    assert "default-src 'none'" in policy
    assert not [name for tag, name, value in page.attributes if name.startswith("on")]
    assert not [value for tag, name, value in page.attributes if name == "src"]
    links = [value for tag, name, value in page.attributes if name == "href"]
    assert all(value.startswith(("#row-", "https://")) for value in links)


def test_raw_results_are_those_of_the_files(page: Scripts) -> None:
    raw = {a["id"]: json.loads(text) for a, text in page.scripts if (a.get("id") or "").startswith("raw-")}
    for path, first in ((CUDA, 1), (HPU, 6)):
        original = document(path)
        for i, row in enumerate(original["rows"]):
            assert raw[f"raw-{first + i}"] == {**original, "rows": [row]}
    assert len(raw) == 8


def test_every_file_is_named_with_its_fingerprint() -> None:
    text = render(compose(read_results([CUDA])), "html")
    assert hashlib.sha256(CUDA.read_bytes()).hexdigest() in text
    assert str(CUDA) in text


def test_a_chart_with_nothing_to_show_says_why() -> None:
    contents = compose(read_results([HPU]))
    text = render(contents, "html")
    assert "chart-latency" in text
    for name, why in (("batch", "No rows differ only in their batch"), ("price", "No row has a price")):
        assert f'id="chart-{name}"' not in text
        assert f"Not drawn: {why}" in text
    failed = [replace(entry, line=replace(entry.line, error="broken", total_s=None)) for entry in contents.entries]
    nothing = render(replace(contents, entries=tuple(failed)), "html")
    assert "Not drawn: No row has a latency" in nothing
    assert nothing.count("Not drawn: ") == 4


HOSTILE = "</script><script>x=1</script><!--<script><img src=x onerror=x=1>&quot;'\"<!--"


def test_hostile_texts_end_no_element(tmp_path: Path) -> None:
    changed = document(CUDA)
    for row in changed["rows"]:
        row["command"] = HOSTILE
        if row["measurement"] is None:
            row["error"] = HOSTILE
        else:
            row["measurement"]["model"]["description"] = HOSTILE
            row["measurement"]["device"] |= {"name": HOSTILE, "description": HOSTILE}
    changed["machine"]["processor"] = changed["started_at"] = changed["commit"] = HOSTILE
    plain = Scripts(render(compose(read_results([CUDA])), "html"))
    hostile = Scripts(render(compose(read_results([write(tmp_path / "x.json", changed)])), "html"))
    assert [tag for tag, _, _ in plain.attributes] == [tag for tag, _, _ in hostile.attributes]
    assert len(plain.scripts) == len(hostile.scripts)
    (shown,) = [text for attributes, text in hostile.scripts if attributes.get("id") == "raw-1"]
    assert json.loads(shown)["commit"] == HOSTILE
    for trace in figures(hostile)["latency"]["data"]:
        assert not any("<" in text.replace("<br>", "") for text in trace.get("hovertext", []))


def test_what_json_has_no_number_for_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    text = CUDA.read_text().replace('"load_s": 6.2', '"load_s": NaN')
    path.write_text(re.sub(r'"bf16": [\d.e+]+', '"bf16": Infinity', text))
    measured = read_report(CUDA).rows[0].measurement
    assert measured is not None
    found = evaluation(measured.model, perplexity=math.nan)
    contents = compose(read_results([path, write(tmp_path / "quality.json", found.document())]))
    assert contents.lines[0].multiply_adds_per_s == {}
    assert contents.evaluations[0].perplexity is contents.lines[0].perplexity is contents.lines[0].load_s is None
    for form in ("table", "md", "csv", "json"):
        assert render(contents, form)
    page = Scripts(render(contents, "html"))
    (raw,) = [text for attributes, text in page.scripts if attributes.get("id") == "raw-1"]
    assert json.loads(raw)["rows"][0]["measurement"]["load_s"] is None


def test_html_is_not_for_a_terminal() -> None:
    terminal = Terminal(command("report", str(CUDA), "--format", "html"))
    assert terminal.finish() == 2
    assert terminal.output.startswith("anthesis: html is megabytes for a browser, not for a terminal; name a file")


def test_without_plotly_html_is_refused_before_files_are_read(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['plotly'] = None\nfrom anthesis.cli import main\n"
        f"sys.argv = ['anthesis', 'report', {str(tmp_path / 'none.json')!r}, '--format', 'html']\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "anthesis: an html report needs plotly, which draws its charts; pip install 'anthesis[report]', or choose "
        "another --format\n"
    )


def test_html_goes_to_a_file_by_its_name(tmp_path: Path) -> None:
    assert "can't be read" in fail("report", str(tmp_path / "none.json"), "-o", str(tmp_path / "report.html"))
