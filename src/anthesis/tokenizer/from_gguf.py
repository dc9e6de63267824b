"""The tokenizer inside a GGUF file: its vocabulary, and the names of the rules to use it by.

The keys are those of the GGUF specification's section on tokenizers (`tokenizer.ggml.*`). A file names its rules rather
than holding them, so a name that is not known here is refused: a guess would encode nearly, but not quite, right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anthesis.errors import TokenizerError
from anthesis.tokenizer.backend import add_whole_tokens, library_errors
from anthesis.tokenizer.chat import ChatTemplate
from anthesis.tokenizer.pretokenizers import BYTE_LEVEL_RULES
from anthesis.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_MAX_TOKENS = 1 << 19
"""Twice the largest vocabulary in use."""
_MAX_PIECE_CHARACTERS = 128
"""Of SentencePiece, whose own limit is 16 by default; the ways to cut a piece take memory by the square."""
_MAX_MERGES = 1 << 20
"""Of SentencePiece, whose pieces have two ways to be merged on average."""


def tokenizer_from_gguf(metadata: Mapping[str, Any], usable_vocab_size: int | None) -> Tokenizer:
    """Builds the tokenizer that GGUF metadata describes.

    Args:
        metadata, usable_vocab_size: as for `anthesis.tokenizer.open_tokenizer`.

    Raises:
        TokenizerError: damaged metadata, or rules that are not known here.
    """
    reader = _Reader(metadata)
    model = metadata.get("tokenizer.ggml.model")
    name = model if isinstance(model, str) else ""  # an array would be compared element by element
    if name == "gpt2":
        backend, add_bos = _byte_level_bpe(reader), reader.rules_name() in ("llama3", "llama-v3", "llama-bpe", "tekken")
    elif name == "llama":
        backend, add_bos = _sentencepiece_bpe(reader), True
    else:
        raise TokenizerError(
            f"the GGUF file's tokenizer.ggml.model is {model!r:.60}; read here are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE); give prompts as token ids, or use a directory with tokenizer.json"
        )
    _add_whole_tokens(backend, reader)
    _surround(backend, reader.added_token("bos", add_bos), reader.added_token("eos", False))
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        backend,
        bos_token_id=reader.token_id("bos"),
        eos_token_ids=reader.end_ids(),
        chat_template=ChatTemplate(template, reader.special_tokens()) if isinstance(template, str) else None,
        usable_vocab_size=usable_vocab_size,
    )


class _Reader:
    """Typed, checked access to the `tokenizer.ggml.*` keys."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self.array("tokens", str)
        if len(self.tokens) > _MAX_TOKENS:
            raise TokenizerError(f"the GGUF file has {len(self.tokens):,} tokens; at most {_MAX_TOKENS:,} are read")
        has_types = metadata.get("tokenizer.ggml.token_type") is not None
        self.types: list[float] = self.array("token_type", float) if has_types else [_NORMAL] * len(self.tokens)
        if len(self.types) != len(self.tokens):
            raise TokenizerError(
                f"the GGUF file has {len(self.tokens)} tokens but {len(self.types)} token types; download it again"
            )

    def array(self, name: str, of: type[str] | type[float]) -> list[Any]:
        """An array that is not empty, of texts or of numbers."""
        if not self.has(name):
            raise TokenizerError(f"the GGUF file lacks tokenizer.ggml.{name}; download it again or convert it anew")
        values = self._metadata[f"tokenizer.ggml.{name}"]
        values = values.tolist() if hasattr(values, "tolist") else values
        allowed = str if of is str else (int, float)
        # of the few types instead of all the values, which are hundreds of thousands
        if not isinstance(values, list | tuple) or not all(issubclass(t, allowed) for t in set(map(type, values))):
            raise TokenizerError(
                f"the GGUF file has tokenizer.ggml.{name} = {values!r:.60}; an array of "
                f"{'texts' if of is str else 'numbers'} is needed; convert the model anew"
            )
        return list(values)

    def has(self, name: str) -> bool:
        """Whether the key is present, and not an empty array."""
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        return value is not None and (not hasattr(value, "__len__") or len(value) > 0)

    def flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, int):
            raise TokenizerError(f"the GGUF file has tokenizer.ggml.{name} = {value!r:.60}; true or false is needed")
        return bool(value)

    def token_id(self, name: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise TokenizerError(
                f"the GGUF file has tokenizer.ggml.{name}_token_id = {value!r:.60}, but only {len(self.tokens)} "
                "tokens; convert the model anew"
            )
        return value

    def added_token(self, name: str, default: bool) -> int | None:
        """The id of the token that `add_{name}_token` (by default `default`) asks for, or None where it does not."""
        if not self.flag(f"add_{name}_token", default):
            return None
        token_id = self.token_id(name)
        if token_id is None:
            raise TokenizerError(
                f"the GGUF file has every text surrounded by its {name} token, but no tokenizer.ggml.{name}_token_id; "
                "convert the model anew"
            )
        return token_id

    def end_ids(self) -> tuple[int, ...]:
        """Ends of sequence, turn and message: each ends an answer."""
        ids = [self.token_id(name) for name in ("eos", "eot", "eom")]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def special_tokens(self) -> dict[str, str]:
        """The variables of a chat template."""
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {variable: self.token_id(name) for variable, name in names.items()}
        return {variable: self.tokens[i] for variable, i in ids.items() if i is not None}

    def rules_name(self) -> str:
        """The name of the rules for splitting text before BPE."""
        name = self._metadata.get("tokenizer.ggml.pre")
        if not isinstance(name, str) or name not in BYTE_LEVEL_RULES:
            raise TokenizerError(
                f"the GGUF file's tokenizer.ggml.pre is {name!r:.60}; known are: "
                f"{', '.join(sorted(BYTE_LEVEL_RULES))}; give prompts as token ids, or use a directory with "
                "tokenizer.json"
            )
        return name

    def vocabulary(self) -> dict[str, int]:
        """Token -> id, without the rows that only pad the embedding to a round size."""
        used = [(token, i) for i, token in enumerate(self.tokens) if self.types[i] != _UNUSED]
        vocabulary = dict(used)
        if len(vocabulary) != len(used):
            twice = next(token for token, i in used if vocabulary[token] != i)
            raise TokenizerError(f"the GGUF file lists the token {twice!r:.60} twice; convert the model anew")
        return vocabulary


def _byte_level_bpe(reader: _Reader) -> Backend:
    """BPE over the bytes of the text, in the order of the file's merges."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, normalizers
    from tokenizers.models import BPE

    rules = BYTE_LEVEL_RULES[reader.rules_name()]
    merges = [tuple(merge.split(" ")) for merge in reader.array("merges", str)]
    wrong = next((merge for merge in merges if len(merge) != 2), None)
    if wrong is not None:
        raise TokenizerError(
            f"the GGUF file has the merge {' '.join(wrong)!r:.60}; two tokens are needed; convert it anew"
        )
    with library_errors("the GGUF file's vocabulary and merges do not fit together"):
        model = BPE(vocab=reader.vocabulary(), merges=merges, ignore_merges=rules.whole_words_first)
    backend = Backend(model)
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = rules.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(reader: _Reader) -> Backend:
    """SentencePiece's BPE, as Llama 1 and 2 have it: spaces are U+2581, unknown characters fall back to bytes.

    SentencePiece merges the neighbours whose joined piece scores highest. Here every way to cut a piece in two becomes
    a merge, in the order of the pieces' scores.

    Source:
        Kudo and Richardson, arXiv:1808.06226, and its reference implementation, against which the tests compare.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, normalizers
    from tokenizers.models import BPE

    if reader.flag("remove_extra_whitespaces", default=False) or reader.has("precompiled_charsmap"):
        raise TokenizerError(
            "the GGUF file's SentencePiece model rewrites the text first (precompiled_charsmap or "
            "remove_extra_whitespaces), which is not done here; use a directory with tokenizer.json"
        )
    vocabulary = reader.vocabulary()
    spaced = next((token for token, i in vocabulary.items() if reader.types[i] == _NORMAL and " " in token), None)
    if spaced is not None:
        raise TokenizerError(
            f"the GGUF file's SentencePiece token {spaced!r:.60} holds a space, which is not read here; "
            "use a directory with tokenizer.json"
        )
    longest = max((token for token, i in vocabulary.items() if reader.types[i] == _NORMAL), key=len, default="")
    if len(longest) > _MAX_PIECE_CHARACTERS:
        raise TokenizerError(
            f"the GGUF file's SentencePiece token {longest!r:.60} has {len(longest)} characters; at most "
            f"{_MAX_PIECE_CHARACTERS} are read; convert the model anew"
        )
    unknown = [token for token, i in vocabulary.items() if reader.types[i] == _UNKNOWN]
    model = BPE(
        vocab=vocabulary,
        merges=_merges_by_score(vocabulary, reader),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=_BYTE in reader.types,
    )
    backend = Backend(model)
    as_piece, as_text = normalizers.Replace(" ", _SPACE), decoders.Replace(_SPACE, " ")
    rest = [decoders.ByteFallback(), decoders.Fuse()]
    if reader.flag("add_space_prefix", default=True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), as_piece])
        backend.decoder = decoders.Sequence([as_text, *rest, decoders.Strip(" ", 1, 0)])
    else:
        backend.normalizer = as_piece
        backend.decoder = decoders.Sequence([as_text, *rest])
    return backend


def _merges_by_score(vocabulary: Mapping[str, int], reader: _Reader) -> list[tuple[str, str]]:
    scores = [float(score) for score in reader.array("scores", float)]
    if len(scores) != len(reader.tokens):
        raise TokenizerError(
            f"the GGUF file has {len(reader.tokens)} tokens but {len(scores)} scores; download it again"
        )
    # Control and byte tokens are never the result of a merge.
    pieces = sorted((i for i in vocabulary.values() if reader.types[i] == _NORMAL), key=lambda i: -scores[i])
    merges = []
    for piece in (reader.tokens[i] for i in pieces):
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        if len(merges) > _MAX_MERGES:
            raise TokenizerError(
                f"the GGUF file's SentencePiece tokens can be merged in more than {_MAX_MERGES:,} ways, as those of no "
                "model can; convert the model anew"
            )
    return merges


def _add_whole_tokens(backend: Backend, reader: _Reader) -> None:
    """Makes control and user-defined tokens be found in the text before anything splits it; the former are special.

    So are the unknown token and those that begin and end a text, of whatever type an old file makes them.
    """
    special = {i for i, kind in enumerate(reader.types) if kind in (_CONTROL, _UNKNOWN)}
    special |= {i for i in (reader.token_id("bos"), *reader.end_ids()) if i is not None}
    ordinary = {i for i, kind in enumerate(reader.types) if kind == _USER_DEFINED} - special
    for ids, is_special in ((special, True), (ordinary, False)):
        add_whole_tokens(backend, [reader.tokens[i] for i in sorted(ids)], special=is_special)


def _surround(backend: Backend, first: int | None, last: int | None) -> None:
    """Makes encoding with special tokens put these ids first and last; None for no token there."""
    from tokenizers.processors import TemplateProcessing

    around = {name: i for name, i in (("FIRST", first), ("LAST", last)) if i is not None}
    template = [name for name in ("FIRST", "$A", "LAST") if name in around or name == "$A"]
    backend.post_processor = TemplateProcessing(single=template, pair=None, special_tokens=list(around.items()))
