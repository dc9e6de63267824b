"""The figures on the page of `make bench-peers`, from made-up turns whose results are known."""

from __future__ import annotations

import pytest

from peers.measure import Measured, Turn
from peers.page import bytes_per_s, read_bytes_per_s, tables, tokens_per_s
from peers.systems import Comparison, Entry

NEAR, APART = 30e-9, 150e-9
OURS, PEER, OTHER = (
    Entry("Anthesis", "int8", 8, "m"), Entry("llama.cpp", "Q8_0", 8, "m"), Entry("llama.cpp", "Q4_0", 4, "m")
)  # fmt: skip
DECODE = Comparison("decode", "Decoding", (OURS, PEER, OTHER), "decode", 7, 5, 1)


def turn(token_s: float, pass_s: float, handover_s: float, peak: float = 1e9) -> Turn:
    """Five tokens, the first after one second, each of the others after `token_s` more."""
    times = [1 + i * token_s for i in range(5)]
    return Turn(times[-1], 1.0, 4 * token_s, 4, times, [pass_s, pass_s], [peak], [handover_s, handover_s])


def measured(entry: Entry, *turns: Turn) -> Measured:
    """With 1,000 bytes of weights, 2 G multiply-adds, and two tokens that say something."""
    return Measured(entry, weight_bytes=1000, multiply_adds=2 * 10**9, turns=list(turns), tokens=[[1, 2, 3, 4, 5]])


def lines_of(text: str, *begin: str) -> list[list[str]]:
    """The cells of the lines of tables that begin with these cells."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [line for line in cells if line[: len(begin)] == list(begin)]


def test_rates_are_totals_by_totals() -> None:
    row = measured(OURS, turn(0.1, 0.05, NEAR), turn(0.3, 0.2, APART))
    assert tokens_per_s(DECODE, row.turns) == pytest.approx(8 / 1.6)
    assert bytes_per_s(DECODE, row) == pytest.approx(1000 * 8 / 1.6)
    assert read_bytes_per_s(row) == pytest.approx(1000 * 4 / 0.5)


def test_the_tables() -> None:
    ours = measured(OURS, turn(0.1, 0.05, NEAR), turn(0.3, 0.2, APART))
    peer = measured(PEER, turn(0.2, 0.05, NEAR), turn(0.4, 0.2, APART))
    other = measured(OTHER, turn(0.2, 0.05, NEAR), turn(0.4, 0.2, APART))
    text = tables(DECODE, [ours, peer, other])
    (line,) = lines_of(text, "Anthesis", "int8")
    assert line[2:5] == ["200.00", "200.00", "5.0"]
    assert line[-1] == "62%"  # 5,000 of 8,000 bytes a second
    # only weights as wide are compared; all turns together, then the least and most of single ones
    assert lines_of(text, "int8") == [["int8", "llama.cpp Q8_0", "1.50", "1.33 to 2.00", "5 of 5"]]
    assert [line[4] for line in lines_of(text, "near", "Anthesis")] == ["100.00"]
    assert lines_of(text, "apart", "Anthesis")[0][-1] == "llama.cpp Q8_0 1.33"


def test_a_turn_within_which_the_cores_moved_is_of_neither_place() -> None:
    moved = turn(0.1, 0.05, NEAR)
    moved.handovers_s = [NEAR, APART]
    assert moved.place is None
    assert not lines_of(tables(DECODE, [measured(OURS, moved)]), "near")


def test_a_peer_that_failed_is_a_row_that_says_why() -> None:
    failed = Measured(PEER, error="no wheel | for this processor")
    text = tables(DECODE, [measured(OURS, turn(0.1, 0.05, NEAR)), failed])
    assert lines_of(text, "llama.cpp", "Q8_0") == [
        ["llama.cpp", "Q8_0", "no wheel / for this processor", "", "", "", "", ""]
    ]
    assert not lines_of(text, "int8")


def test_the_share_of_the_peak() -> None:
    prefill = Comparison("prefill", "Reading", (OURS,), "prefill", 512, 1, 1)
    (line,) = lines_of(tables(prefill, [measured(OURS, turn(0.1, 0.05, NEAR, peak=4e9))]), "Anthesis")
    assert line[2:] == ["1,000", "512", "50%"]  # 2 G multiply-adds in the second until the first token
