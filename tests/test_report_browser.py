"""The HTML report in a real browser: no error, no request, every mark leads to its row and every row to its result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anthesis.bench import read_report
from anthesis.report import Contents, compose, read_prices, read_results, render
from chromium import chromium
from report_files import CUDA, HPU, document, evaluation, write

LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
MIN_CONTRAST = 4.5  # WCAG 2.2, 1.4.3

CONTRAST = """
(selectors) => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => {
    const [r, g, b] = channels(text).slice(0, 3).map((x) => {
      const part = x / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((channels(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const selector of selectors) {
    for (const element of document.querySelectorAll(selector)) {
      if (!element.getClientRects().length) continue;
      const svg = element instanceof SVGElement;
      const colour = getComputedStyle(element)[svg ? "fill" : "color"];
      const [a, b] = [light(colour), light(behind(svg ? element.ownerSVGElement : element))].sort((x, y) => y - x);
      found.push([selector, (a + 0.05) / (b + 0.05), colour]);
    }
  }
  return found;
}
"""
TEXTS = [
    "h1", "h2", ".verdict", ".tile dt", ".tile b", ".tile span", "figcaption p", ".plot text", "thead th", "th b",
    "th span", "td", "td small", ".badge", ".why", ".warn", "summary", "section a", "section li", "footer", "dt", "dd",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    directory = tmp_path_factory.mktemp("results")
    measured = read_report(CUDA).rows[0].measurement
    assert measured is not None
    found = evaluation(measured.model, against=measured.model)
    quality = write(directory / "quality.json", found.document())
    files = read_results([CUDA, HPU, quality])
    return compose(
        files, published=True, prices=read_prices(["h100=2.5", "gaudi2=1.3"]), baseline="7b1 gaudi2 8 devices 1.8"
    )


@pytest.fixture(scope="module")
def file(contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "report.html"
    path.write_text(render(contents, "html"), "utf-8")
    return path


class Opened:
    """A report in a page of its own, and all that went wrong or left it."""

    def __init__(self, browser: Any, file: Path, fragment: str = "") -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport=LAPTOP, color_scheme="light", reduced_motion="reduce")
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri() + fragment)
        self.page.wait_for_selector(".plot [data-mark]")

    def marks(self, chart: str) -> list[int]:
        """The rows that the marks of a chart lead to."""
        found = self.page.evaluate(
            "(chart) => [...document.querySelectorAll(`#chart-${chart} [data-mark]`)].map((e) => +e.dataset.mark)",
            chart,
        )
        return sorted(found)


@pytest.fixture(scope="module")
def laptop(browser: Any, file: Path) -> Iterator[Opened]:
    opened = Opened(browser, file, "#row-7")
    yield opened
    assert opened.complaints == []
    assert [
        url for url in opened.requests if url.partition("#")[0] != file.as_uri() and not url.startswith("blob:")
    ] == []
    opened.page.close()


def test_an_address_may_name_a_row(laptop: Opened) -> None:
    assert laptop.page.locator(".row.hit").get_attribute("id") == "row-7"
    assert laptop.page.evaluate("scrollY") > 0


def test_every_row_has_its_marks(laptop: Opened, contents: Contents) -> None:
    shown = [line for line in contents.points if line.has_latency]
    assert laptop.marks("latency") == [line.number for line in shown]
    limited = [line.number for line in shown if line.step_flops]
    assert laptop.marks("limit") == sorted(2 * limited)  # a decode step, and the prompts
    assert laptop.marks("price") == [line.number for line in shown if line.usd_per_million_tokens]
    assert laptop.marks("batch") == [1, 2]
    rows = laptop.page.evaluate("[...document.querySelectorAll('#rows .row')].map((row) => row.id)")
    assert rows == [f"row-{line.number}" for line in contents.points]


def test_failed_and_invalid_rows_are_to_be_seen(laptop: Opened) -> None:
    for number, badge in ((3, "invalid"), (4, "failed"), (5, "failed"), (2, "marked"), (9, "published")):
        assert badge in laptop.page.locator(f"#row-{number} .badge").all_inner_texts()


def test_a_published_row_is_one_line_that_opens_to_its_source(laptop: Opened, contents: Contents) -> None:
    page = laptop.page
    published = [line for line in contents.points if line.is_published]
    for line in published:
        assert page.locator(f"#row-{line.number}").bounding_box()["height"] < 40
    row = page.locator(f"#row-{published[0].number}")
    link = row.locator("details a")
    assert not link.is_visible()
    row.locator("summary").click()
    assert link.is_visible()
    assert link.get_attribute("href") == published[0].source
    row.locator("summary").click()


def click(page: Any, mark: Any) -> None:
    """Clicks where a mark is: Plotly has a layer above all of them that takes the mouse, and hovers first."""
    box = mark.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.click(x, y)


@pytest.mark.parametrize("chart", ["latency", "limit", "price", "batch"])
@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_mark_leads_to_its_row(laptop: Opened, chart: str, by: str) -> None:
    page = laptop.page
    mark = page.locator(f"#chart-{chart} [data-mark]").last
    number = mark.get_attribute("data-mark")
    mark.scroll_into_view_if_needed()
    if by == "mouse":
        click(page, mark)
    else:
        mark.focus()
        page.keyboard.press("Enter")
    page.locator(f"#row-{number}.hit").wait_for()
    assert page.locator(".row.hit").count() == 1
    box = page.locator(f"#row-{number}").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= page.viewport_size["height"]
    assert page.evaluate("document.activeElement.id") == f"row-{number}"
    page.evaluate("document.querySelector('.row.hit').classList.remove('hit')")


@pytest.mark.parametrize(("number", "path", "row"), [(1, CUDA, 0), (4, CUDA, 3), (7, HPU, 1)])
def test_a_row_leads_to_its_raw_result(laptop: Opened, tmp_path: Path, number: int, path: Path, row: int) -> None:
    page = laptop.page
    original = document(path)
    expected = {**original, "rows": [original["rows"][row]]}
    page.locator(f"#row-{number} summary").click()
    page.locator(f"#row-{number} [data-show]").click()
    assert json.loads(page.locator(f"#shown-{number}").inner_text()) == expected
    with page.expect_download() as download:
        page.locator(f"#row-{number} [data-save]").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.name == f"{path.stem}-{number}.json"
    assert document(saved) == expected
    assert len(read_report(saved).rows) == 1  # a result file like any other
    page.locator(f"#row-{number} summary").click()


def test_a_row_has_the_command_that_measures_it(laptop: Opened, contents: Contents) -> None:
    page = laptop.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#row-1 summary").click()
    page.locator("#row-1 [data-copy]").click()
    page.locator("#row-1 [data-copy]", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == contents.lines[0].command
    page.locator("#row-1 summary").click()


def test_an_evaluation_leads_to_its_raw_result(laptop: Opened, contents: Contents) -> None:
    page = laptop.page
    page.locator("#row-e1 summary").click()
    page.locator("#row-e1 [data-show]").click()
    assert json.loads(page.locator("#shown-e1").inner_text()) == contents.evaluation_files[0].document


@pytest.mark.parametrize("viewport", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_light_and_dark_are_legible_and_fit(laptop: Opened, viewport: dict[str, int]) -> None:
    page = laptop.page
    page.set_viewport_size(viewport)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    seen = {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.evaluate("new Promise((done) => setTimeout(done, 200))")  # Plotly draws again some time after a change
        colours = page.evaluate(CONTRAST, TEXTS)
        assert {selector for selector, _, _ in colours} >= {"h1", ".plot text", "td", "dd", "summary"}
        assert [found for found in colours if found[1] < MIN_CONTRAST] == []
        seen[scheme] = {
            "body": page.evaluate("getComputedStyle(document.body).backgroundColor"),
            "chart": page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill"),
            "bar": page.evaluate("getComputedStyle(document.querySelector('#chart-latency [data-mark]')).fill"),
        }
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        hidden = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
        assert page.evaluate(hidden) == 0
        overflowing = page.evaluate(
            "(width) => [...document.querySelectorAll('.plot text')].filter((text) => text.textContent && "
            "text.getBoundingClientRect().right > width + 1).map((text) => text.textContent)",
            viewport["width"],
        )
        assert overflowing == []
    for part in seen["light"]:
        assert seen["light"][part] != seen["dark"][part]


def test_hostile_texts_stay_texts(browser: Any, tmp_path: Path) -> None:
    hostile = (
        "</script><script>window.hit=1</script><img src=x onerror='window.hit=1'>&lt;b&gt;%{x}"
        "<a href='javascript:hit=1'>"
    )
    changed = json.loads(CUDA.read_text())
    for row in changed["rows"]:
        row["command"] = hostile
        if row["measurement"] is None:
            row["error"] = hostile
            continue
        row["measurement"]["model"] |= {"description": hostile, "weight_kinds": [hostile]}
        row["measurement"]["device"]["description"] = hostile
        row["measurement"]["configuration"]["prompt"] = hostile
        row["measurement"]["marks"] = [hostile]
    changed["request"][hostile] = hostile
    source = write(tmp_path / "<img src=x onerror=hit=1>.json", changed)
    path = tmp_path / "report.html"
    path.write_text(render(compose(read_results([source])), "html"), "utf-8")
    opened = Opened(browser, path)
    page = opened.page
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    assert page.locator("img, .plot a").count() == 0
    assert page.locator("#row-1 th b").inner_text() == hostile
    page.locator("#row-1 summary").click()
    page.locator("#row-1 [data-show]").click()
    shown = json.loads(page.locator("#shown-1").inner_text())
    assert shown == {**changed, "rows": changed["rows"][:1]}
    label = page.locator("#chart-latency [data-mark]").first.get_attribute("aria-label")
    assert hostile[:40] in label
    click(page, page.locator("#chart-latency [data-mark]").first)
    assert page.evaluate("window.hit") is None
    assert opened.complaints == []
    page.close()


def test_a_request_to_the_network_is_refused(browser: Any, laptop: Opened) -> None:
    """The policy is one that a browser obeys: nothing could be sent even if a script wanted to."""
    refused = laptop.page.evaluate(
        "fetch('https://example.org/').then(() => 'sent', (error) => `refused: ${error.message}`)"
    )
    assert refused.startswith("refused")
    assert laptop.complaints
    assert all("Content Security Policy" in complaint or "ERR_" in complaint for complaint in laptop.complaints)
    laptop.complaints.clear()
