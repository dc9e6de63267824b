"""Token by token back to text, releasing only what no later token can change.

A `tokenizers` decoder maps a whole list of tokens to text. The classes here do the same one token at a time, in work
that depends on the token alone, for the three decoders that decoder language models use. Their joined output equals the
library's for every sequence of tokens, also for those that are not valid UTF-8.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from anthesis.errors import TokenizerError

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte.

    Returns:
        256 entries, character -> byte: printable Latin-1 stands for itself; the others, in ascending order, are the
        characters from U+0100 on.

    Source:
        Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), its published encoder.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class Detokenizer(Protocol):
    """Turns a sequence of tokens into text, one token at a time."""

    def push(self, token: str) -> str:
        """The text that this token makes certain."""
        ...

    def finish(self) -> str:
        """The text still held back, now that no token follows."""
        ...


class ByteLevelDetokenizer:
    """Tokens spell bytes; the bytes of all tokens together are UTF-8.

    A token with a character outside the byte alphabet (an added token) spells its own UTF-8. Each maximal invalid part
    becomes one U+FFFD, as the Unicode standard recommends (section 3.9) and the library does; so at most three bytes
    are ever held back.
    """

    _bytes_of = byte_alphabet()

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        """The characters whose last byte this token brings."""
        try:
            data = bytes([self._bytes_of[character] for character in token])
        except KeyError:
            data = token.encode()
        return self._utf8.decode(data)

    def finish(self) -> str:
        """One U+FFFD if the text ends inside a character."""
        return self._utf8.decode(b"", final=True)


class ByteFallbackDetokenizer:
    """Tokens are text, except that a run of tokens `<0x00>` .. `<0xFF>` spells UTF-8.

    The library decodes such a run as a whole: if any byte of it is wrong, each of its bytes becomes one U+FFFD. So a
    run is held back until another token ends it, or until it is known to be wrong.

    Args:
        replacements: (what, by what) applied to each token's text; U+2581 by a space, as a rule.
        stripped: the character dropped from the start of the whole text.
        strip_count: how often at most.
    """

    def __init__(self, replacements: Sequence[tuple[str, str]], stripped: str, strip_count: int) -> None:
        self._replacements = replacements
        self._stripped = stripped
        self._strip_left = strip_count
        self._start_run()

    def _start_run(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._run_text: list[str] = []
        self._run_bytes = 0
        self._run_is_wrong = False

    def push(self, token: str) -> str:
        """The run of bytes that this token ends, and its own text."""
        for what, by in self._replacements:
            token = token.replace(what, by)
        match = _BYTE_TOKEN.fullmatch(token)
        return self._strip(self._push_byte(int(match[1], 16)) if match else self._end_run() + token)

    def finish(self) -> str:
        """The run of bytes at the end of the text."""
        return self._strip(self._end_run())

    def _push_byte(self, byte: int) -> str:
        self._run_bytes += 1
        if self._run_is_wrong:
            return _REPLACEMENT
        try:
            self._run_text.append(self._utf8.decode(bytes([byte])))
        except UnicodeDecodeError:
            self._run_is_wrong = True
            return _REPLACEMENT * self._run_bytes
        return ""

    def _end_run(self) -> str:
        if not self._run_bytes:
            return ""
        incomplete = bool(self._utf8.getstate()[0])
        text = _REPLACEMENT * self._run_bytes if incomplete else "".join(self._run_text)
        text = "" if self._run_is_wrong else text
        self._start_run()
        return text

    def _strip(self, text: str) -> str:
        while self._strip_left and text.startswith(self._stripped):
            text = text[len(self._stripped) :]
            self._strip_left -= 1
        if text:
            self._strip_left = 0
        return text


class MetaspaceDetokenizer:
    """Tokens are text with U+2581 (or another character) for a space.

    Args:
        replacement: the character that stands for a space.
        drop_in_first: it was put before the text when encoding, so the first token loses it.
    """

    def __init__(self, replacement: str, drop_in_first: bool) -> None:
        self._replacement = replacement
        self._by = "" if drop_in_first else " "

    def push(self, token: str) -> str:
        """The token's text."""
        text = token.replace(self._replacement, self._by)
        self._by = " "
        return text

    def finish(self) -> str:
        """Nothing: all text was released at once."""
        return ""


def detokenizer_factory(decoder: Mapping[str, Any] | None) -> Callable[[], Detokenizer]:
    """What makes the detokenizers for a tokenizer's decoder.

    Args:
        decoder: the `decoder` entry of a tokenizer.json.

    Returns:
        A function that makes a fresh detokenizer for one sequence.

    Raises:
        TokenizerError: a decoder that is not read here.
    """
    steps = [] if decoder is None else [decoder]
    if decoder is not None and decoder.get("type") == "Sequence":
        steps = list(decoder["decoders"])
    kinds = [step["type"] for step in steps]

    if kinds == ["ByteLevel"]:
        return ByteLevelDetokenizer
    if kinds == ["Metaspace"]:
        replacement, scheme = steps[0]["replacement"], steps[0].get("prepend_scheme", "always")
        return lambda: MetaspaceDetokenizer(replacement, drop_in_first=scheme != "never")
    replaces = [step for step in steps if step["type"] == "Replace" and "String" in step["pattern"]]
    after = [step for step in steps[len(replaces) :] if step["type"] != "Strip"]
    strips = [step for step in steps if step["type"] == "Strip"]
    if (
        steps == [*replaces, *after, *strips]
        and [step["type"] for step in after] == ["ByteFallback", "Fuse"]
        and len(strips) <= 1
        and all(strip["stop"] == 0 for strip in strips)
    ):
        replacements = [(step["pattern"]["String"], step["content"]) for step in replaces]
        stripped, count = (strips[0]["content"], strips[0]["start"]) if strips else (" ", 0)
        return lambda: ByteFallbackDetokenizer(replacements, stripped, count)
    raise TokenizerError(
        f"the tokenizer's decoder is {' + '.join(kinds) or 'missing'}; read here are ByteLevel, Metaspace, and "
        "Replace + ByteFallback + Fuse + Strip (at the start)"
    )


class TextStream:
    """The text of one growing sequence of token ids.

    All `push` results and then `finish`, joined, are `Tokenizer.decode` of all the ids. `Tokenizer.stream` makes it.

    Args:
        token_of: the token of an id, None for an id that has no text (special, or a gap in the vocabulary); raises
            RequestError for an id out of range.
        detokenizer: fresh.
    """

    def __init__(self, token_of: Callable[[int], str | None], detokenizer: Detokenizer) -> None:
        self._token_of = token_of
        self._detokenizer = detokenizer

    def push(self, token_id: int) -> str:
        """The text that this token makes certain: never half a character, and often nothing.

        Raises:
            RequestError: an id that the tokenizer does not know.
        """
        token = self._token_of(token_id)
        return "" if token is None else self._detokenizer.push(token)

    def finish(self) -> str:
        """The text still held back; call it once, after the last token."""
        return self._detokenizer.finish()
