"""tokenizer.json directories, against transformers reading the same directory."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

from anthesis.errors import RequestError, TokenizerError
from anthesis.tokenizer import open_tokenizer
from anthesis.tokenizer.pretokenizers import BYTE_LEVEL_RULES
from trained_tokenizers import TEXTS, train_byte_fallback, train_byte_level


def write(directory: Path, tokenizer: Tokenizer, config: dict) -> Path:
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(base | config))
    return directory


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_byte_level(BYTE_LEVEL_RULES["bloom"].pre_tokenizer())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return write(tmp_path_factory.mktemp("bloom"), tokenizer, names)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_byte_fallback()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64, pad_token="<unk>")
    names = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "unk_token": "<unk>",
    }
    return write(tmp_path_factory.mktemp("llama"), tokenizer, names)


@pytest.mark.parametrize("kind", ["bloom", "llama"])
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encodes_and_decodes_as_transformers(kind, add_special_tokens, request) -> None:
    from transformers import AutoTokenizer

    directory = request.getfixturevalue(kind)
    theirs = AutoTokenizer.from_pretrained(directory)
    ours = open_tokenizer(directory)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens)
        assert ids == theirs.encode(text, add_special_tokens=add_special_tokens, truncation=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.bos_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert ours.size == ours.vocab_size == len(theirs)


def test_adds_what_tokenizer_json_asks_for_and_nothing_else(bloom, llama) -> None:
    assert open_tokenizer(bloom).encode("fox") == open_tokenizer(bloom).encode("fox", add_special_tokens=False)
    assert open_tokenizer(llama).encode("") == [1]
    assert open_tokenizer(llama).encode("fox")[0] == 1


def test_saved_truncation_and_padding_are_switched_off(llama) -> None:
    ids = open_tokenizer(llama).encode("one two three four five six seven")
    assert len(ids) > 4
    assert 0 not in ids


@pytest.mark.parametrize("add", [{"add_bos_token": False}, {"add_eos_token": True, "add_bos_token": False}])
def test_tokenizer_json_alone_says_what_surrounds_a_text(tmp_path, llama, add) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    directory = write(tmp_path, tokenizer, {"bos_token": "<s>", "eos_token": "</s>", **add})
    ids = open_tokenizer(directory).encode("the fox")
    assert ids == AutoTokenizer.from_pretrained(directory).encode("the fox")
    assert ids == open_tokenizer(llama).encode("the fox")


def test_a_token_only_the_configuration_calls_special_is_special(tmp_path, bloom) -> None:
    tokenizer = Tokenizer.from_file(str(bloom / "tokenizer.json"))
    token = max(tokenizer.get_vocab(), key=len)
    directory = write(tmp_path, tokenizer, {"eos_token": token, "pad_token": "<missing>"})
    ours = open_tokenizer(directory)
    assert ours.eos_token_ids == (tokenizer.token_to_id(token),)
    assert ours.decode([*ours.encode("fox"), *ours.eos_token_ids]) == "fox"
    assert ours.size == tokenizer.get_vocab_size()


@given(st.text())
def test_byte_level_text_survives(bloom_tokenizer, text) -> None:
    ids = bloom_tokenizer.encode(text)
    # A spelled-out special token becomes its id, which decoding leaves out.
    assert bloom_tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def bloom_tokenizer(bloom):
    return open_tokenizer(bloom)


@given(st.text(st.sampled_from("ab1 \n\t()[]|.,!?…。，、।۔،'é日")))
def test_bloom_splits_by_the_flattened_class_too(text) -> None:
    flattened = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^()|\s.,!?…。，、।۔،]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert BYTE_LEVEL_RULES["bloom"].pre_tokenizer().pre_tokenize_str(text) == flattened.pre_tokenize_str(text)


def test_bloom_splits() -> None:
    words = [
        word for word, _ in BYTE_LEVEL_RULES["bloom"].pre_tokenizer().pre_tokenize_str("It's (12) ok, a  b!?\n\nc")
    ]
    assert words == ["It's", "Ġ(", "12", ")", "Ġok", ",", "Ġa", "Ġ", "Ġb", "!?ĊĊ", "c"]


def test_an_id_out_of_range_is_refused(bloom_tokenizer) -> None:
    for wrong in (-1, bloom_tokenizer.size):
        with pytest.raises(RequestError, match="unknown to the tokenizer"):
            bloom_tokenizer.decode([0, wrong])
        with pytest.raises(RequestError, match="unknown to the tokenizer"):
            bloom_tokenizer.stream().push(wrong)


def test_a_text_that_needs_ids_the_model_lacks_is_refused(bloom) -> None:
    tokenizer = open_tokenizer(bloom, usable_vocab_size=3)
    assert tokenizer.encode("</s>") == [2]
    with pytest.raises(RequestError, match=r"token id 3 \('<pad>'\), but the model has 3 ids"):
        tokenizer.encode("<pad>")


def test_a_lone_surrogate_is_refused(bloom_tokenizer) -> None:
    with pytest.raises(RequestError, match=r"U\+D83D at position 2"):
        bloom_tokenizer.encode("ab\ud83d")


def test_no_source_is_no_tokenizer() -> None:
    assert open_tokenizer(None) is None


def test_a_directory_without_tokenizer_json_is_refused(tmp_path) -> None:
    with pytest.raises(TokenizerError, match="is not a directory"):
        open_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"holds tokenizer\.model but .*save_pretrained"):
        open_tokenizer(tmp_path)


def test_damaged_files_are_refused(tmp_path, bloom) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(TokenizerError, match="is no tokenizer"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((bloom / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="a JSON object is needed"):
        open_tokenizer(tmp_path)


def test_an_unknown_decoder_is_refused(tmp_path, bloom) -> None:
    tokenizer = Tokenizer.from_file(str(bloom / "tokenizer.json"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="decoder is WordPiece"):
        open_tokenizer(write(tmp_path, tokenizer, {}))


def charsmap(*texts: str) -> bytes:
    """A compiled normalisation, as SentencePiece stores it, to these texts; its trie finds nothing."""
    return (4).to_bytes(4, "little") + bytes(4) + "".join(f"{text}\0" for text in texts).encode()


BOMBS = {
    "doubled again and again": {"normalizer": normalizers.Sequence([normalizers.Replace("a", "aa")] * 24)},
    "a replacement at every place": {"normalizer": normalizers.Replace(Regex("x*"), "y" * 1000)},
    "a book before each text": {"normalizer": normalizers.Prepend("a" * 8_000_000)},
    "a thousand steps": {"normalizer": normalizers.Sequence([normalizers.NFC()] * 1000)},
    "nested": {"normalizer": normalizers.Sequence([normalizers.Sequence([normalizers.Replace("a", "a" * 9)] * 2)] * 2)},
    "the text a thousand times": {"post_processor": processors.TemplateProcessing(single=["$A"] * 1000)},
    "as often as two of them say": {
        "post_processor": processors.Sequence([processors.TemplateProcessing(single=["$A"] * 9)] * 2)
    },
    "many tokens around each text": {
        "post_processor": processors.TemplateProcessing(
            single="<s> $A", special_tokens=[{"id": "<s>", "ids": [1] * 100_000, "tokens": ["<s>"] * 100_000}]
        )
    },
    "longer texts when decoding": {"decoder": decoders.Sequence([decoders.Replace("a", "aa")] * 24)},
    "compiled": {"normalizer": normalizers.Precompiled(charsmap("a" * 1000))},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_tokenizer_that_blows_texts_up_is_refused(tmp_path, name) -> None:
    tokenizer = train_byte_fallback()
    for part, value in BOMBS[name].items():
        setattr(tokenizer, part, value)
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: the {part} .* (allowed|more than 64)"):
        open_tokenizer(write(tmp_path, tokenizer, {}))


def test_what_tokenizers_in_use_do_to_a_text_is_allowed(tmp_path) -> None:
    tokenizer = train_byte_fallback()
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap("صلى الله عليه وسلم", "1")),
            normalizers.Replace("``", '"'),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    assert open_tokenizer(write(tmp_path, tokenizer, {})).decode([]) == ""
