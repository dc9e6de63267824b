"""How byte-level BPE vocabularies split a text into words, by the name that GGUF files give the rules.

Each is part of the published tokenizer.json of the models it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
# A class inside a class, which the library's regular expressions allow: the inner "[" does not stand for itself.
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@dataclass(frozen=True)
class ByteLevelRules:
    """What happens to a text before byte-level BPE merges anything.

    Attributes:
        pattern: each match, and each stretch between matches, is a word; None for GPT-2's own pattern.
        single_digits: every digit is a word, before GPT-2's pattern is applied to the rest.
        nfc: the text is brought to Unicode's composed form first.
        whole_words_first: a word that is a token is that token, whatever the merges would make of it.
    """

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False
    whole_words_first: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """These rules for the `tokenizers` library."""
        from tokenizers import Regex, pre_tokenizers

        if self.pattern is not None:
            split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated", invert=False)
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if self.single_digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
        return words


BYTE_LEVEL_RULES = {
    "gpt-2": ByteLevelRules(),
    "bloom": ByteLevelRules(pattern=_BLOOM),
    "llama3": ByteLevelRules(pattern=_LLAMA3, whole_words_first=True),
    "llama-v3": ByteLevelRules(pattern=_LLAMA3, whole_words_first=True),
    "llama-bpe": ByteLevelRules(pattern=_LLAMA3, whole_words_first=True),
    "qwen2": ByteLevelRules(pattern=_QWEN2, nfc=True),
    "tekken": ByteLevelRules(pattern=_TEKKEN, whole_words_first=True),
    "smollm": ByteLevelRules(single_digits=True),
    "starcoder": ByteLevelRules(single_digits=True),
    "refact": ByteLevelRules(single_digits=True),
    "command-r": ByteLevelRules(single_digits=True, nfc=True),
}
