"""What is promised of hostile files: one error that names the file or a harmless reading, within a second and 200 MB.

`KINDS` names each kind of file, with a valid one to start from and the way in which users come to open it.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import gguf
import numpy as np

from anthesis.bench.result import Report
from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.convert import write_packed
from anthesis.dataset import open_dataset
from anthesis.dataset.summary import Summary
from anthesis.errors import AnthesisError, naming
from anthesis.models import trace
from anthesis.report import FORMATS, compose, render
from anthesis.report import read_result as read_for_report
from anthesis.tokenizer import open_tokenizer
from text_model import text_model

MAX_S = 1.0
MAX_TAKEN_KIB = 200_000
SHARD = "model-00001-of-00001.safetensors"


def check(kind: str, data: bytes) -> bool:
    """Opens the bytes as a file of this kind; whether they were read. Fails where the promise is broken."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        directory = Path(name)
        file = place(kind, directory)
        file.write_bytes(data)
        message = ""
        before, begin = forget_peak_kib(), time.process_time()
        try:
            KINDS[kind][1](directory)
            was_read = True
        except AnthesisError as error:
            was_read, message = False, str(error)
        took_s = time.process_time() - begin
        taken = peak_kib() - before
        assert took_s < MAX_S, f"{kind}: {took_s:.1f} s"
        for text in (message, *(str(warning.message) for warning in warned)):
            assert len(text) < 2000, f"a message of {len(text)} characters"
            assert text.isprintable(), f"a message with control characters: {text!r}"
        # what goes wrong with a text later is said of the text
        names_it = file.name in message or name in message or message.startswith(("the text needs", "the tokenizer is"))
        assert was_read or names_it, f"an error that names no file: {message}"
        assert taken < MAX_TAKEN_KIB, f"{kind}: {taken} KiB"
        return was_read


def peak_kib() -> int:
    """The most memory that the process held at once."""
    return int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0])


def forget_peak_kib() -> int:
    """Makes the peak what the process holds now, and gives it: a later one is not hidden by an earlier one."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_kib()


def place(kind: str, directory: Path) -> Path:
    """The file that the bytes become, in a directory that holds all other files it needs."""
    file = KINDS[kind][0]
    source = {"packed": packed_model, "weights": packed_model}.get(kind, plain_model)()
    if KINDS[kind][1] is open_model and kind != "gguf":
        for other in source.iterdir():
            name = SHARD if kind == "index" and other.suffix == ".safetensors" else other.name
            (directory / name).write_bytes(other.read_bytes())
    return directory / file


def sample(kind: str) -> bytes:
    """A valid file of this kind."""
    if kind in SAMPLES:
        return SAMPLES[kind]()
    source = packed_model() if kind in ("packed", "weights") else plain_model()
    path = source / KINDS[kind][0]
    return path.read_bytes() if path.exists() else b'{"eos_token_id": [2, 3]}'


@functools.cache
def plain_model() -> Path:
    """A directory with config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    directory = text_model(Path(tempfile.mkdtemp(prefix="anthesis-")) / "plain")
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "{{ messages }}"}')
    return directory


@functools.cache
def packed_model() -> Path:
    """The same as a packed directory."""
    target = plain_model().with_name("packed")
    with open_checkpoint(str(plain_model())) as checkpoint:
        write_packed(checkpoint, target, "native", lambda done, total: None)
    return target


def open_model(path: Path) -> None:
    """Opens a model as `LLM` does, encodes and decodes a text, and loads every weight."""
    with open_checkpoint(str(path)) as checkpoint:
        with naming(checkpoint.path):
            tokenizer = open_tokenizer(checkpoint.tokenizer_source, usable_vocab_size=checkpoint.config.vocab_size)
        if tokenizer is not None:
            tokenizer.decode(tokenizer.encode("a b\n\u00e9"))
            stream = tokenizer.stream()
            for token_id in range(min(tokenizer.size, 8)):
                stream.push(token_id)
            stream.finish()
        weights = trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight")
        checkpoint.check(weights)
        for value in weights:
            checkpoint.load(value)


def trace_random(directory: Path) -> None:
    """Traces a model of random weights, as `plan` does."""
    with open_checkpoint(f"random:{directory / 'config.json'}") as checkpoint:
        if checkpoint.config.num_layers <= 64:  # a model may have 4,096, which take longer
            trace(checkpoint.config, "argmax", checkpoint.kind_of)


def read_rows(name: str) -> Callable[[Path], None]:
    """Reads a data set to its end."""

    def read(directory: Path) -> None:
        for _ in open_dataset(str(directory / name)).rows(0):
            pass

    return read


def read_result(directory: Path) -> None:
    """Reads what `anthesis report` shows, in all of its forms."""
    contents = compose([read_for_report(directory / "result.json")])
    for form in FORMATS:
        render(contents, form)


def _gguf() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_embedding_length(32)
        writer.add_head_count(2)
        writer.add_context_length(64)
        writer.add_feed_forward_length(64)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", "</s>"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(3)
        shapes = {"token_embd": (4, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
        shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
        shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
        for tensor, shape in shapes.items():
            values = np.ones(shape, np.float32)
            if len(shape) == 2:
                kind = gguf.GGMLQuantizationType.Q4_1
                writer.add_tensor(f"{tensor}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(f"{tensor}.weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _torch_bin() -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"embed_tokens.weight": torch.ones(4, 32), "norm.weight": torch.ones(32, dtype=torch.bfloat16)}, file)
    return file.getvalue()


def open_bin(directory: Path) -> None:
    """Opens a `.bin` file and reads every tensor's first row."""
    from anthesis.checkpoint.torch_bin import TorchBinStore

    store = TorchBinStore(directory)
    for name, tensor in store.tensors.items():
        if tensor.kind is not None and 1 <= len(tensor.shape) <= 2 and tensor.shape[0]:
            store.read(name, slice(0, 1), slice(None), transpose=False, exact=False)


def _index() -> bytes:
    with open_checkpoint(str(plain_model())) as checkpoint:
        names = checkpoint._weights._store.tensors  # type: ignore[union-attr]
    return json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, SHARD)}).encode()


def _example(cls: Any) -> Any:
    """What a document of this type looks like; see `anthesis.records`."""
    origin, arguments = get_origin(cls), get_args(cls)
    if origin in (Union, types.UnionType):
        return _example(arguments[0])
    if origin is Literal:
        return arguments[0]
    if is_dataclass(cls):
        hints = get_type_hints(cls)
        defaults = {field.name: field.default for field in fields(cls)}
        return {
            name: default if isinstance(default, int | str) else _example(hints[name])
            for name, default in defaults.items()
        }
    if origin is tuple:
        return [_example(arguments[0])]
    return {} if dict in (cls, origin) else None if cls is Any else cls(1)


def _csv() -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([["id", "text"], [1, 'a "quoted", text'], [2, "two\nlines"]])
    return text.getvalue().encode()


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["a", None]}), file)
    return file.getvalue()


SAMPLES: dict[str, Callable[[], bytes]] = {
    "gguf": _gguf,
    "bin": _torch_bin,
    "jsonl": lambda: b'{"id": 1, "text": "a"}\n{"id": 2, "text": "\xc3\xa9"}\n',
    "csv": _csv,
    "text": lambda: "one\nzwölf\n".encode(),
    "parquet": _parquet,
    "tsv": lambda: _csv().replace(b",", b"\t"),
    "index": _index,
    "result": lambda: json.dumps(_example(Report)).encode(),
    "summary": lambda: json.dumps(_example(Summary)).encode(),
}

KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "safetensors": ("model.safetensors", open_model),
    "index": ("model.safetensors.index.json", open_model),
    "config": ("config.json", open_model),
    "random config": ("config.json", trace_random),
    "generation": ("generation_config.json", open_model),
    "tokenizer": ("tokenizer.json", open_model),
    "tokenizer config": ("tokenizer_config.json", open_model),
    "gguf": ("model.gguf", open_model),
    "bin": ("pytorch_model.bin", open_bin),
    "packed": ("anthesis.json", open_model),
    "weights": ("weights.safetensors", open_model),
    "jsonl": ("data.jsonl", read_rows("data.jsonl")),
    "csv": ("data.csv", read_rows("data.csv")),
    "tsv": ("data.tsv", read_rows("data.tsv")),
    "text": ("data.txt", read_rows("data.txt")),
    "parquet": ("data.parquet", read_rows("data.parquet")),
    "result": ("result.json", read_result),
    "summary": ("result.json", read_result),
}
