"""Stop strings against a search of the whole text, however the text is cut into pieces."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anthesis.engine.stopping import StopStrings
from anthesis.errors import RequestError

# Few letters, so that stop strings overlap each other and themselves.
strings = st.text("ab\n", max_size=6)


def whole_text_search(text: str, stop: list[str]) -> tuple[str, bool]:
    """The definition, character by character: the shortest beginning of the text that ends with a stop string."""
    for end in range(len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def run(pieces: list[str], stop: list[str]) -> tuple[str, bool]:
    stopping = StopStrings(stop)
    released = ""
    for piece in pieces:
        text, stopped = stopping.push(piece)
        released += text
        if stopped:
            return released + stopping.finish(), True
    return released + stopping.finish(), False


@given(st.lists(strings, max_size=8), st.lists(strings.filter(bool), max_size=4))
@example(["xa", "bcy"], ["abcy", "bc"])
@example(["aab"], ["ab", "aab", "b"])
def test_equals_search_of_the_whole_text(pieces: list[str], stop: list[str]) -> None:
    assert run(pieces, stop) == whole_text_search("".join(pieces), stop)


@given(st.text("ab\n", max_size=30), st.lists(strings.filter(bool), min_size=1, max_size=4))
def test_holds_back_no_more_than_the_start_of_a_stop_string(text: str, stop: list[str]) -> None:
    stopping = StopStrings(stop)
    released = ""
    for i, character in enumerate(text):
        piece, stopped = stopping.push(character)
        if stopped:
            return
        released += piece
        held = text[len(released) : i + 1]
        assert not held or any(string.startswith(held) for string in stop)


def test_the_stop_string_complete_first_wins_and_then_the_longest() -> None:
    assert run(["one two END"], ["two END", " END", "D"]) == ("one ", True)
    assert run(["xabcy"], ["abcy", "bc"]) == ("xa", True)


def test_nothing_is_released_after_a_stop() -> None:
    stopping = StopStrings(["."])
    assert stopping.push("a.b") == ("a", True)
    assert stopping.push("c") == ("", True)
    assert stopping.finish() == ""


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert StopStrings(()).push("anything\n") == ("anything\n", False)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopStrings(["a", ""])


@pytest.mark.parametrize("stop", ["END", [1]])
def test_what_is_no_list_of_strings_is_refused(stop) -> None:
    with pytest.raises(RequestError, match="list of strings"):
        StopStrings(stop)
