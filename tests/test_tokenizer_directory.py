"""tokenizer.json directories, against transformers reading the same directory."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

from anthesis.errors import RequestError, TokenizerError
from anthesis.tokenizer import open_tokenizer
from anthesis.tokenizer.chat import MAX_SOURCE_CHARACTERS
from anthesis.tokenizer.pretokenizers import BYTE_LEVEL_RULES
from hostile import forget_peak_kib, peak_kib
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


ADDED = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_refused(tmp_path, bloom, name) -> None:
    shutil.copytree(bloom, tmp_path / "m")
    (tmp_path / "m" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "m" / name)  # which nobody writes to: to open it would be to wait forever
    with pytest.raises(TokenizerError, match=f"cannot read .*{name}: a directory, pipe or device"):
        open_tokenizer(tmp_path / "m")


@pytest.mark.parametrize("name", FILES)
def test_no_more_of_a_file_is_read_than_it_may_have(tmp_path, bloom, name) -> None:
    shutil.copytree(bloom, tmp_path / "m")
    with (tmp_path / "m" / name).open("ab") as sparse:
        sparse.truncate(3 << 30)
    before = forget_peak_kib()
    with pytest.raises(TokenizerError, match=f"cannot read .*{name}: too long"):
        open_tokenizer(tmp_path / "m")
    assert peak_kib() - before < 200_000


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_is_too_long_is_refused_by_name(tmp_path, bloom, place) -> None:
    for length in (MAX_SOURCE_CHARACTERS, MAX_SOURCE_CHARACTERS + 1):
        directory, template = tmp_path / str(length), "é" * length
        tokenizer = Tokenizer.from_file(str(bloom / "tokenizer.json"))
        write(directory, tokenizer, {"chat_template": "" if place.endswith("jinja") else template})
        if place.endswith("jinja"):
            (directory / place).write_text(template)
        if length == MAX_SOURCE_CHARACTERS:
            assert open_tokenizer(directory).has_chat_template
        else:
            with pytest.raises(TokenizerError, match=rf"{place}: the chat template has 49,153 .* at most 49,152"):
                open_tokenizer(directory)


def written(model: dict, **parts: object) -> str:
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts}, separators=(",", ":"))


BOUNDS = {
    "tokens": written({"type": "BPE", "vocab": {f"{i:x}": i for i in range(600_000)}, "merges": []}),
    "merges": written({"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"]] * 1_100_000}),
    "steps": written(
        {"type": "BPE", "vocab": {}, "merges": []},
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 70_000},
    ),
}


@pytest.mark.timed
@pytest.mark.parametrize("name", BOUNDS)
def test_what_takes_memory_is_counted_before_it_is_read(tmp_path, name) -> None:
    (tmp_path / "tokenizer.json").write_text(BOUNDS[name])
    before, begin = forget_peak_kib(), time.process_time()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is larger than that of any model: '[:,{]' stands in it"):
        open_tokenizer(tmp_path)
    assert time.process_time() - begin < 0.5
    assert peak_kib() - before < 100_000


@pytest.mark.slow
def test_a_tokenizer_as_large_as_gemma_s_is_read(tmp_path) -> None:
    letters = [chr(0x4E00 + i) for i in range(512)]
    pairs = [a + b for a in letters for b in letters]
    vocabulary = {token: i for i, token in enumerate((letters + pairs)[:262_144])}
    merges = [list(pair) for pair in pairs if pair in vocabulary] * 2
    added = [{"id": 262_144 + i, "content": f"<unused{i}>", **ADDED} for i in range(6_400)]
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    decoder = json.loads(decoders.ByteLevel().__getstate__())
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(json.loads(written(model, decoder=decoder)) | {"added_tokens": added})
    )
    assert open_tokenizer(tmp_path).vocab_size == 268_544


def test_special_tokens_are_counted(tmp_path) -> None:
    tokens = [f"{i:x}" for i in range(70_000)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (tmp_path / "tokenizer.json").write_text(written({"type": "BPE", "vocab": vocabulary, "merges": []}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": tokens}))
    with pytest.raises(TokenizerError, match="70,000 special tokens; at most 65,536"):
        open_tokenizer(tmp_path)


def test_what_the_library_says_is_shown_in_part(tmp_path, bloom) -> None:
    raw = json.loads((bloom / "tokenizer.json").read_text())
    raw["model"]["unk_token"] = None
    raw["model"]["merges"] = [["\x1b[2J" * 100_000, "a"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(TokenizerError, match=r"\\x1b\[2J") as caught:
        open_tokenizer(tmp_path)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def charsmap(*texts: str) -> bytes:
    """A compiled normalisation, as SentencePiece stores it, to these texts; its trie finds nothing."""
    return (4).to_bytes(4, "little") + bytes(4) + "".join(f"{text}\0" for text in texts).encode()


BOMBS: dict[str, dict[str, Any]] = {
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
    "compiled and long": {"normalizer": normalizers.Precompiled(charsmap(*"a" * 3_000_000))},
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
