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

from anthesis.errors import TokenizerError
from anthesis.json_text import parse_object
from anthesis.tokenizer.backend import library_errors
from anthesis.tokenizer.chat import ChatTemplate
from anthesis.tokenizer.growth import check_growth
from anthesis.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MAX_TOKENIZER_BYTES = 128 << 20
"""Several times the largest in use."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def tokenizer_from_directory(directory: Path, usable_vocab_size: int | None) -> Tokenizer:
    """Reads tokenizer.json and the files beside it; see `anthesis.tokenizer.open_tokenizer`."""
    backend = _load_backend(directory)
    config = _read_json(directory / "tokenizer_config.json")
    names = _special_token_names(config, _read_json(directory / "special_tokens_map.json"))
    _mark_special(backend, config, names)
    bos = _token_id(backend, names.get("bos_token"))
    eos = _token_id(backend, names.get("eos_token"))
    source = _chat_template(directory, config)
    return Tokenizer(
        backend,
        bos_token_id=bos,
        eos_token_ids=() if eos is None else (eos,),
        chat_template=None if source is None else ChatTemplate(source, names),
        usable_vocab_size=usable_vocab_size,
    )


def _load_backend(directory: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    path = directory / "tokenizer.json"
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise TokenizerError(
                f"{path} has {path.stat().st_size:,} bytes; no tokenizer has more than {MAX_TOKENIZER_BYTES:,}"
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(_no_tokenizer_json(directory)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
    with library_errors(f"{path} is no tokenizer; download it again"):
        backend = Backend.from_str(text)
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


def _read_json(path: Path) -> dict[str, Any]:
    """The object in an optional JSON file; empty where there is no file."""
    try:
        return parse_object(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
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
    from tokenizers import AddedToken

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
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in missing])


def _entries(config: Mapping[str, Any], name: str) -> list[object]:
    """What a list, or an object, of tokenizer_config.json holds."""
    found = config.get(name) or []
    if not isinstance(found, list | dict):
        raise TokenizerError(f"tokenizer_config.json has {name} = {found!r:.60}; a list or an object is needed")
    return list(found.values()) if isinstance(found, dict) else found


def _token_id(backend: Backend, token: str | None) -> int | None:
    return None if token is None else backend.token_to_id(token)


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: the file if there is one, else the configuration's, which may be a list of named ones."""
    path = directory / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, Mapping)]
        template = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None
