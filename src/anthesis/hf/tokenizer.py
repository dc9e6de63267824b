"""The tokenizer of a loaded model, as transformers' own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from anthesis.errors import RequestError
from anthesis.tokenizer import Tokenizer


def transformers_tokenizer(tokenizer: Tokenizer | None, path: Path | None, description: str) -> Any:
    """A tokenizer for `generate` and pipelines, which pads on the left.

    Args:
        tokenizer: that Anthesis has read.
        path: of the model; what a directory says for transformers, transformers reads itself.
        description: of the model, for messages.

    Raises:
        RequestError: the model has none.
    """
    if tokenizer is None:
        raise RequestError(f"{description} has no tokenizer; load the one that belongs to it by AutoTokenizer")
    if path is not None and (path / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(path, padding_side="left")
    template = tokenizer.chat_template
    special: dict[str, Any] = dict(template.special_tokens) if template is not None else {}
    for name, ids in (("bos_token", [tokenizer.bos_token_id]), ("eos_token", list(tokenizer.eos_token_ids))):
        if ids and ids[0] is not None:
            special.setdefault(name, tokenizer.backend.id_to_token(ids[0]))
    if "eos_token" in special:
        special.setdefault("pad_token", special["eos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        chat_template=None if template is None else template.source,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **special,
    )
