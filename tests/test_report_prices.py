"""Prices: which one is a row's, what tokens and jobs cost by it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anthesis.errors import RequestError
from anthesis.report import Line, compose, read_prices, read_results, render
from anthesis.report.prices import price_of, with_price
from command_line import fail
from report_files import CUDA, HPU

HEADER = "device,usd_per_hour,source,date\n"


def test_tokens_and_jobs_cost_what_their_seconds_do() -> None:
    contents = compose(read_results([CUDA, HPU]), prices=read_prices(["h100=2.50", "Gaudi2=1.2"]))
    by_number = {line.number: line for line in contents.lines}
    h100, eight = by_number[1], by_number[7]
    assert h100.usd_per_job == pytest.approx(2.5 / 3600 * (h100.total_s or 0))
    assert h100.usd_per_million_tokens == pytest.approx(2.5 / 3600 / (h100.tokens_per_s or 0) * 1e6)
    assert eight.devices == 8
    assert eight.usd_per_job == pytest.approx(1.2 / 3600 * 8 * (eight.total_s or 0))
    assert (eight.usd_per_hour, eight.price_source, eight.price_date) == (1.2, "--price", None)
    failed = by_number[5]
    assert (failed.usd_per_hour, failed.usd_per_job, failed.usd_per_million_tokens) == (2.5, None, None)
    assert by_number[3].invalid
    assert by_number[3].usd_per_million_tokens is None  # its seconds must not be used


def test_a_processor_has_one_price_however_many_ranks_it_has() -> None:
    line = Line(kind="bench", source="x", device="cpu", device_description="AMD EPYC, 2 threads", processor="AMD EPYC")
    line = replace(line, devices=2, total_s=10.0, tokens_per_s=20.0)
    (price,) = read_prices(["epyc=0.36"])
    assert with_price(line, price).usd_per_job == pytest.approx(0.001)
    card = replace(line, device="cuda", device_description="A card")
    assert price_of(card, [price]) is None  # the machine's processor is not the card
    assert with_price(card, price).usd_per_job == pytest.approx(0.002)


@pytest.mark.parametrize("name", ["h100", "H100 80GB", "nvidia-h100", "cuda", "NVIDIA H100 80GB HBM3"])
def test_case_and_punctuation_do_not_matter(name: str) -> None:
    (line, *_) = compose(read_results([CUDA]), prices=read_prices([f"{name}=3"])).lines
    assert line.usd_per_hour == 3


def test_the_longest_name_wins(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(
        HEADER + "cuda,1,a,2026-01-01\nNVIDIA H100,2,b,2026-02-02\nh100,3,c,2026-03-03\nl40s,4,d,2026-04-04\n"
    )
    contents = compose(read_results([CUDA]), prices=read_prices([str(file)]))
    assert {(line.usd_per_hour, line.price_source, line.price_date) for line in contents.lines} == {
        (2.0, "b", "2026-02-02")
    }
    for form in ("table", "md", "html"):
        assert "NVIDIA H100: 2.00 USD an hour, b, 2026-02-02" in render(contents, form)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["h100"], "h100 is neither NAME=USD nor a file that can be read: No such file"),
        (["h100=x"], "'x' is no price"),
        (["h100=-1"], "'-1' is no price"),
        (["h100=0"], "'0' is no price"),
        (["h100=inf"], "'inf' is no price"),
        (["h100=nan"], "'nan' is no price"),
        (["=3"], "the name of a device is needed"),
        (["h100=2", "H-100=3"], "two prices for 'H-100': 2 (--price) and 3 (--price)"),
    ],
)
def test_what_is_no_price(values: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_prices(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the columns are missing"),
        ("device,usd\nh100,2\n", "line 1: the columns are device, usd; needed are device, usd_per_hour, source, date"),
        (HEADER + "h100,2.5,them\n", "line 2: 3 cells; 4 are needed"),
        (HEADER + "h100,2.5,them,2026-01-01\n\nl4,x,them,2026-01-01\n", "line 4: 'x' is no price"),
        (HEADER + "h100,2.5,,2026-01-01\n", "line 2: source is empty"),
        (HEADER + "h100,2.5,them,yesterday\n", "line 2: date is 'yesterday'; write it as 2026-01-31"),
        (HEADER + '"-",2.5,them,2026-01-01\n', "line 2: the name of a device is needed"),
        (HEADER + 'h100,"2.5,them,2026-01-01\n', "not csv"),
        (HEADER + "h100,2,a,2026-01-01\nH100,3,b,2026-01-01\n", "two prices for 'H100': 2 (a) and 3 (b)"),
    ],
)
def test_a_file_of_prices_says_which_line_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        read_prices([str(file)])
    assert message in str(caught.value)
    assert "prices.csv" in str(caught.value) or "two prices" in message


def test_a_price_that_no_row_has_is_an_error_but_in_a_file(tmp_path: Path) -> None:
    refused = fail("report", str(CUDA), "--price", "b200=6")
    assert "--price b200=6 is for none of the rows; their devices are: NVIDIA H100 80GB HBM3" in refused
    file = tmp_path / "prices.csv"
    file.write_text(HEADER + "b200,6,them,2026-01-01\n")
    assert compose(read_results([CUDA]), prices=read_prices([str(file)])).prices == ()


def test_published_prices_are_for_published_rows_and_give_way() -> None:
    def prices(*given: str) -> set[tuple[str | None, float | None]]:
        contents = compose(read_results([HPU]), published=True, prices=read_prices(given))
        return {(line.device, line.usd_per_hour) for line in contents.lines if line.usd_per_hour is not None}

    assert prices() == {("first-gen Gaudi", 1.625)}
    assert prices("first-gen gaudi=1") == {("first-gen Gaudi", 1.0)}


@pytest.mark.parametrize(
    ("name", "device", "fits"),
    [
        ("a100", "NVIDIA A100-SXM4-80GB", True),
        ("A 100", "NVIDIA A100-SXM4-80GB", True),
        ("a10", "NVIDIA A100-SXM4-80GB", False),
        ("a10", "NVIDIA A10G", False),
        ("a10", "NVIDIA A10", True),
        ("l4", "NVIDIA L40S", False),
        ("l40", "NVIDIA L40S", False),
        ("l4", "NVIDIA L4", True),
        ("h20", "NVIDIA H200", False),
        ("h200", "NVIDIA GH200 480GB", False),
        ("100", "NVIDIA H100 80GB HBM3", False),
        ("h100", "NVIDIA H100 80GB HBM3", True),
        ("h100 80gb", "NVIDIA H100_80GB", True),
        ("nvidiah100", "NVIDIA H100 80GB HBM3", False),
        ("gaudi", "Gaudi2", False),
        ("gaudi2", "Gaudi2", True),
        ("gaudi 2", "GAUDI2, lazy mode", True),
        ("Gaudi-2", "Intel Gaudi 2", True),
        ("gaudi", "first-gen Gaudi", True),
        ("epyc", "AMD EPYC, avx512 kernels, 2 threads", True),
        ("a.c", "abc", False),
    ],
)
def test_a_name_is_whole_words(name: str, device: str, fits: bool) -> None:
    line = Line(kind="bench", source="x", device="other", device_description=device)
    assert (price_of(line, read_prices([f"{name}=1"])) is not None) is fits
