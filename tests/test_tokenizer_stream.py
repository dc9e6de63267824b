"""The incremental decoder: whatever ids come, what it releases adds up to the decoding of all of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers

from anthesis.errors import TokenizerError
from anthesis.tokenizer import Tokenizer
from anthesis.tokenizer.detokenize import byte_alphabet, detokenizer_factory
from trained_tokenizers import train_byte_fallback, train_byte_level

KINDS = ["byte level", "byte fallback", "byte fallback, no strip", "metaspace", "metaspace, never prepended"]


def wrap(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None, usable_vocab_size=None)


def make(kind: str) -> Backend:
    if kind == "byte level":
        backend = train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
        backend.add_tokens(["<user> defined 日本"])
        return backend
    backend = train_byte_fallback()
    if kind == "byte fallback, no strip":
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if kind.startswith("metaspace"):
        backend.decoder = decoders.Metaspace(prepend_scheme="never" if "never" in kind else "always")
    return backend


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {kind: wrap(make(kind)) for kind in KINDS}


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    text = tokenizer.stream()
    return [*(text.push(i) for i in ids), text.finish()]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_ids_add_up_to_their_decoding(tokenizers, kind, data) -> None:
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=40))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@given(bytes_=st.lists(st.sampled_from([0x41, 0x80, 0xBF, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xED, 0xF0, 0x9F, 0x98, 0xFF])))
def test_any_bytes_add_up_to_their_decoding(tokenizers, kind, bytes_) -> None:
    tokenizer = tokenizers[kind]
    ids = [byte_id(tokenizer, kind, byte) for byte in bytes_]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS[:3])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")))
def test_no_replacement_character_for_a_character_on_its_way(tokenizers, kind, text) -> None:
    tokenizer = tokenizers[kind]
    assert "\ufffd" not in "".join(stream(tokenizer, tokenizer.encode(text, add_special_tokens=False)))


def byte_id(tokenizer: Tokenizer, kind: str, byte: int) -> int:
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    token = spelling[byte] if kind == "byte level" else f"<0x{byte:02X}>"
    (token_id,) = [i for i in range(tokenizer.size) if tokenizer._text_token(i) == token]
    return token_id


def test_byte_level_releases_a_character_with_its_last_byte(tokenizers) -> None:
    tokenizer = tokenizers["byte level"]
    ids = [byte_id(tokenizer, "byte level", byte) for byte in "a€😀".encode()]
    assert stream(tokenizer, ids) == ["a", "", "", "€", "", "", "", "😀", ""]


def test_byte_fallback_releases_a_run_when_it_ends_or_goes_wrong(tokenizers) -> None:
    tokenizer = tokenizers["byte fallback"]
    bytes_ = [byte_id(tokenizer, "byte fallback", byte) for byte in b"\xe2\x82\xac\xff\xff"]
    letter = next(i for i in range(tokenizer.size) if tokenizer._text_token(i) == "a")
    assert stream(tokenizer, [*bytes_[:3], letter]) == ["", "", "", "€a", ""]
    assert stream(tokenizer, bytes_) == ["", "", "", "\ufffd" * 4, "\ufffd", ""]
    assert stream(tokenizer, bytes_[:2]) == ["", "", "\ufffd\ufffd"]


def test_invalid_bytes_never_stall(tokenizers) -> None:
    for kind in ("byte level", "byte fallback"):
        tokenizer = tokenizers[kind]
        lone = byte_id(tokenizer, kind, 0x80)
        assert stream(tokenizer, [lone] * 1000) == ["\ufffd"] * 1000 + [""]


def test_special_tokens_are_left_out_and_interrupt_nothing(tokenizers) -> None:
    for kind in ("byte level", "byte fallback"):
        tokenizer = tokenizers[kind]
        first, *rest = (byte_id(tokenizer, kind, byte) for byte in "€".encode())
        assert "".join(stream(tokenizer, [1, first, 2, *rest])) == "€" == tokenizer.decode([1, first, 2, *rest])


def test_the_byte_alphabet_is_the_librarys() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 1)]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 1, 0), decoders.Fuse()]),
    ],
)
def test_a_decoder_that_is_not_followed_exactly_is_refused(decoder) -> None:
    with pytest.raises(TokenizerError, match="the tokenizer's decoder is"):
        detokenizer_factory(None if decoder is None else json.loads(decoder.__getstate__()))


def test_a_gap_in_the_vocabulary_has_no_text() -> None:
    backend = make("byte level")
    raw = json.loads(backend.to_str())
    raw["model"]["vocab"]["far"] = 5000
    tokenizer = wrap(Backend.from_str(json.dumps(raw)))
    assert (tokenizer.size, tokenizer.vocab_size) == (5001, backend.get_vocab_size() + 1)
    assert "".join(stream(tokenizer, [4000, 5000])) == tokenizer.decode([4000, 5000]) == "far"
