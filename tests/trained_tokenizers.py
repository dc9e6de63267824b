"""Small tokenizers of both kinds, trained on the spot, and texts that try them."""

import json

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog. The dog, being lazy, does not jump!",
    "for i in range(10):\n    print(i, 'and', i * 2)\n\n\treturn  None",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "日本語のテキストです。私は学生です。",
    "Привет, как дела? Всё хорошо, спасибо.",
]
TEXTS = [
    "",
    " ",
    "Hello world",
    " Hello  world \n\n\t end ",
    "def f(x):\n        return x ** 2  # 12345 0.5",
    "日本語 한국어 العربية، हिन्दी",
    "emoji 😀👩‍👩‍👧‍👦 café e\u0301",
    "<s>The fox</s> jumps <extra> over",
    "\x00\x7f\u00a0\u200b\ufffd",
]


def train_byte_level(pre_tokenizer) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def train_byte_fallback() -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TRAINING_TEXT, BpeTrainer(vocab_size=450, special_tokens=specials))
    # The trainer marks its initial tokens special; in Llama's files the byte tokens are ordinary ones.
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(raw))
