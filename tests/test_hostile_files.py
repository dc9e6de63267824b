"""Hostile files of every kind: damaged ones, and well-formed ones that lie. `hostile.check` holds the promise."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile import KINDS, check, sample

JSON_KINDS = ("config", "random config", "generation", "tokenizer", "tokenizer config", "packed", "result")
HEADED = ("safetensors", "weights")

quick = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
slow = settings(quick, max_examples=2000)

extremes = st.sampled_from(
    [
        0,
        -1,
        1,
        2**31,
        2**62,
        2**64,
        -(2**70),
        10**30,
        1e308,
        0.5,
        True,
        None,
        "",
        "x" * 300,
        [],
        {},
        [[]],
        "\ud800",
        "NaN",
    ]
)
values = st.recursive(extremes | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5)


def damage(data: bytes, cuts: list[tuple[float, float, bytes]]) -> bytes:
    """Replaces pieces, each from one share of the length on, by other bytes."""
    for start, length, piece in cuts:
        at = int(start * len(data))
        data = data[:at] + piece + data[at + int(length * 16) :]
    return data


damages = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=4)


def with_changes(document: Any, changes: list[tuple[int, Any]]) -> Any:
    """The document with other values at some of its places, counted in reading order."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(document)
    for number, value in changes:
        if places:
            node, key = places[number % len(places)]
            node[key] = value
    return document


json_changes = st.lists(st.tuples(st.integers(0, 10_000), values), min_size=1, max_size=4)


def check_damaged(kind: str, cuts: list[tuple[float, float, bytes]]) -> None:
    check(kind, damage(sample(kind), cuts))


def check_json(kind: str, changes: list[tuple[int, Any]]) -> None:
    text = json.dumps(with_changes(json.loads(sample(kind)), changes))
    check(kind, text.encode("utf-8", "surrogatepass"))


def check_header(kind: str, changes: list[tuple[int, Any]]) -> None:
    data = sample(kind)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(with_changes(json.loads(data[8 : 8 + length]), changes)).encode()
    check(kind, struct.pack("<Q", len(header)) + header + data[8 + length :])


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_is_valid(kind: str) -> None:
    assert check(kind, sample(kind)) == (kind not in ("result",))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str) -> None:
    quick(given(damages)(lambda cuts: check_damaged(kind, cuts)))()


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_json_that_lies(kind: str) -> None:
    quick(given(json_changes)(lambda changes: check_json(kind, changes)))()


@pytest.mark.parametrize("kind", HEADED)
def test_headers_that_lie(kind: str) -> None:
    quick(given(json_changes)(lambda changes: check_header(kind, changes)))()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_many_more(kind: str) -> None:
    slow(given(damages)(lambda cuts: check_damaged(kind, cuts)))()
    if kind in JSON_KINDS:
        slow(given(json_changes)(lambda changes: check_json(kind, changes)))()
    if kind in HEADED:
        slow(given(json_changes)(lambda changes: check_header(kind, changes)))()


BOMBS = {
    "deep": b"[" * 1_000_000,
    "wide": b"[" + b"[]," * 4_000_000 + b"[]]",
    "long": b'{"a": "' + b"x" * 20_000_000 + b'"}',
    "digits": b'{"vocab_size": ' + b"9" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("kind", [*JSON_KINDS, *HEADED, "jsonl"])
def test_json_bombs(kind: str, bomb: str) -> None:
    data = BOMBS[bomb]
    if kind in HEADED:
        data = struct.pack("<Q", len(data)) + data
    if (kind, bomb) in {("jsonl", "long")}:
        data = data[:1_000_000]
    assert not check(kind, data)
