"""Published figures: each is there as it was published, says where it is from, and is never taken for one of ours."""

from __future__ import annotations

import json
import re

import pytest

from anthesis.report import compose, read_results, render
from anthesis.report.published import published_lines, published_prices, published_sources
from report_files import CUDA, HPU

# Seconds for 100 tokens, as the article's table has them: (parameters in billions, devices, device) -> seconds.
ARTICLE = {
    (176, 8, "Gaudi2"): 3.717,
    (176, 8, "A100-80GB"): 4.402,
    (7, 8, "Gaudi2"): 0.737,
    (7, 8, "A100-80GB"): 2.417,
    (7, 8, "first-gen Gaudi"): 3.029,
    (7, 1, "Gaudi2"): 1.066,
    (7, 1, "A100-80GB"): 2.119,
    (7, 1, "first-gen Gaudi"): 2.865,
}
PREVIEW = (176, 8, "Gaudi2", 3.5)
# Tokens/s that the later tests of the same script hold runs to.
CI = {
    (176, 8, "Gaudi2"): 36.77,
    (176, 8, "Gaudi3"): 34.82,
    (7, 8, "first-gen Gaudi"): 31.99,
    (7, 1, "Gaudi2"): 130.05,
    (7, 1, "Gaudi3"): 155.29,
    (7, 1, "first-gen Gaudi"): 41.76,
}


def test_the_figures_are_those_that_were_published() -> None:
    article, preview, ci = {}, [], {}
    for line in published_lines():
        key = (int((line.parameters or 0) / 1e9), line.devices, line.device)
        if "huggingface.co/blog" not in line.source:
            ci[key] = line
        elif "preview" in (line.variant or ""):
            preview.append((*key, line.total_s))
        else:
            article[key] = line.total_s
    assert article == ARTICLE
    assert preview == [PREVIEW]
    assert {key: round(line.tokens_per_s or 0, 2) for key, line in ci.items()} == CI
    for line in ci.values():
        assert line.total_s == pytest.approx(100 / (line.tokens_per_s or 0))


def test_each_says_where_and_when_and_of_what_it_is() -> None:
    sources = {source.url: source for source in published_sources()}
    for line in published_lines():
        assert line.kind == "published"
        assert sources[line.source].note == line.note
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", line.started_at or "")
        assert re.search(r"transformers 4\.\d\d|SynapseAI 1\.9", line.versions or "")
        assert (line.batch, line.prompt_tokens, line.new_tokens, line.generated_tokens) == (1, 7, 100, 100)
        assert line.latency_s == pytest.approx((line.total_s or 0) / 100)
        assert line.token_s is line.first_token_s is line.share_of_bandwidth is line.command is None
    assert all(source.url.startswith("https://") and source.title for source in sources.values())
    (price,) = published_prices()
    assert price.usd_per_hour == pytest.approx(13 / 8)  # an instance of eight costs 13 USD


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "html"])
def test_every_format_shows_them_marked_and_with_their_source(form: str) -> None:
    files = read_results([CUDA])
    alone, beside = render(compose(files), form), render(compose(files, published=True), form)
    assert "huggingface.co/blog/habana-gaudi-2-bloom" in beside
    assert "huggingface.co/blog/habana-gaudi-2-bloom" not in alone
    assert beside.count("published") >= len(published_lines())
    if form == "json":
        kinds = [line["kind"] for line in json.loads(beside)["lines"]]
        assert kinds == ["bench"] * len(files[0].entries) + ["published"] * len(published_lines())


def test_the_table_of_the_original_has_ours_beside_theirs() -> None:
    contents = compose(read_results([CUDA, HPU]), published=True)
    text = render(contents, "md")
    table = text[text.index("## Seconds for 100 tokens") :].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["model", "devices", "Gaudi2", "A100-80GB", "first-gen Gaudi", "Gaudi3", "GAUDI2"]
    by_row = {(row[0], row[1]): dict(zip(cells[0], row, strict=True)) for row in cells[2:]}
    theirs = by_row["BLOOMZ 7B1", "8"]
    assert theirs["Gaudi2"].startswith("0.737 (#")
    assert "3.029 (#" in theirs["first-gen Gaudi"]
    assert theirs["GAUDI2"] == "-"
    ours = [
        row for (model, devices), row in by_row.items() if model.startswith("BLOOMZ-7B1 (made up") and devices == "8"
    ]
    assert ours[0]["GAUDI2"].startswith(f"{contents.lines[6].total_s:.3f} (#7")
    assert not any("560M" in model for model, _ in by_row)  # 6 tokens are another job


def test_the_fastest_is_never_a_published_one() -> None:
    contents = compose(read_results([HPU]), published=True)
    slow = min(line.latency_s or 9 for line in contents.lines if line.is_published)
    assert slow > min(line.latency_s or 9 for line in contents.lines[:3])
    only = render(compose([], published=True), "table")
    assert only.startswith("15 published.")
