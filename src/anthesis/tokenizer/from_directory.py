"""The tokenizer in a Hugging Face model directory.

tokenizer.json says nearly all; tokenizer_config.json and special_tokens_map.json name the special tokens, and the chat
template is in chat_template.jinja or tokenizer_config.json. What is put around a text is tokenizer.json's business
alone: beside it, `add_bos_token` and `add_eos_token` in tokenizer_config.json mean nothing, in transformers as here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anthesis.errors import TokenizerError, naming
from anthesis.json_text import MAX_BYTES, parse_object
from anthesis.regular_file import read_regular
from anthesis.tokenizer.backend import add_whole_tokens, library_errors
from anthesis.tokenizer.chat import MAX_SOURCE_CHARACTERS, ChatTemplate
from anthesis.tokenizer.growth import check_growth
from anthesis.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MAX_TOKENIZER_BYTES = 64 << 20
"""Twice the largest in use, Gemma's."""
_MOST = {b":": 1 << 19, b",": 1 << 21, b"{": 1 << 16}
"""Of what tokenizer.json takes memory for, in the tokens themselves too: a colon for each token, some 350 bytes of it;
one or two commas for each merge, some 500; a brace for each added token or step, some 1,200. In Gemma's there are
310,000, 1,340,000 and 6,500 of them."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def tokenizer_from_directory(directory: Path, usable_vocab_size: int | None) -> Tokenizer:
    """Reads tokenizer.json and the files beside it; see `anthesis.tokenizer.open_tokenizer`."""
    backend = _load_backend(directory)
    config = _read_json(directory / "tokenizer_config.json")
    names = _special_token_names(config, _read_json(directory / "special_tokens_map.json"))
    _mark_special(backend, config, names)
    bos = _token_id(backend, names.get("bos_token"))
    eos = _token_id(backend, names.get("eos_token"))
    return Tokenizer(
        backend,
        bos_token_id=bos,
        eos_token_ids=() if eos is None else (eos,),
        chat_template=_chat_template(directory, config, names),
        usable_vocab_size=usable_vocab_size,
    )


def _load_backend(directory: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    path = directory / "tokenizer.json"
    data = _read(path, MAX_TOKENIZER_BYTES)
    if data is None:
        raise TokenizerError(_no_tokenizer_json(directory))
    for mark, most in _MOST.items():
        if (count := data.count(mark)) > most:
            raise TokenizerError(
                f"{path} is larger than that of any model: {mark.decode()!r} stands in it {count:,} times, and at most "
                f"{most:,} are read"
            )
    with library_errors(f"{path} is no tokenizer; download it again"):
        backend = Backend.from_buffer(data)
    check_growth(backend, path)
    return backend


def _no_tokenizer_json(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory} is not a directory; a tokenizer is read from the directory that holds tokenizer.json"
    others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (directory / name).exists()]
    if not others:
        return f"{directory} holds no tokenizer.json; copy it from the model, or give prompts as token ids"
    return (
        f"{directory} holds {others[0]} but no tokenizer.json, the only format read here; write one with transformers: "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def _read(path: Path, most: int) -> bytes | None:
    """What is in an optional file of at most so many bytes; None where there is no file."""
    try:
        return read_regular(path, most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The object in an optional JSON file; empty where there is no file."""
    data = _read(path, MAX_BYTES)
    try:
        return {} if data is None else parse_object(data)
    except ValueError as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error


def _content(token: object) -> str | None:
    """A token is written as its text, or as an object with the text in `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    # JSON can spell half a character, which no vocabulary holds
    return token if isinstance(token, str) and not _HALF_CHARACTER.search(token) else None


def _special_token_names(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    """{"bos_token": "<s>", ...}; tokenizer_config.json wins over the older special_tokens_map.json."""
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    found = {name: _content(config.get(name)) or _content(special_map.get(name)) for name in names}
    return {name: content for name, content in found.items() if content is not None}


def _mark_special(backend: Backend, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Makes every token special that any of the files calls so, as transformers does.

    Tokens the vocabulary lacks are left out: the model has no embedding for them.
    """
    extra = _entries(config, "additional_special_tokens") or _entries(config, "extra_special_tokens")
    listed = _entries(config, "added_tokens_decoder")
    called_special = [
        *names.values(),
        *map(_content, extra),
        *(_content(token) for token in listed if isinstance(token, Mapping) and token.get("special")),
    ]
    already = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [
        token
        for token in dict.fromkeys(called_special)
        if token is not None and token not in already and backend.token_to_id(token) is not None
    ]
    add_whole_tokens(backend, missing, special=True)


def _entries(config: Mapping[str, Any], name: str) -> list[object]:
    """What a list, or an object, of tokenizer_config.json holds."""
    found = config.get(name) or []
    if not isinstance(found, list | dict):
        raise TokenizerError(f"tokenizer_config.json has {name} = {found!r:.60}; a list or an object is needed")
    return list(found.values()) if isinstance(found, dict) else found


def _token_id(backend: Backend, token: str | None) -> int | None:
    return None if token is None else backend.token_to_id(token)


def _chat_template(directory: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> ChatTemplate | None:
    """The default template: the file if there is one, else the configuration's, which may be a list of named ones."""
    path = directory / "chat_template.jinja"
    data = _read(path, 4 * MAX_SOURCE_CHARACTERS)
    try:
        template = config.get("chat_template") if data is None else data.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, Mapping)]
        template = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    with naming(directory / "tokenizer_config.json" if data is None else path):
        return ChatTemplate(template, names) if isinstance(template, str) else None
