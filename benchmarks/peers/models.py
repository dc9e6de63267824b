"""The model files: one set of random weights, written in the formats that the systems read.

Every system computes the same model: Anthesis, transformers and vLLM read the same directory, and the GGUF files hold
its numbers, as they are or quantised. All matrices are of the kind in the file's name, the embedding, which is also the
head, among them (llama.cpp's own tool would by default keep the head wider, and read more).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from anthesis.checkpoint import Checkpoint, open_checkpoint
from anthesis.checkpoint.default import default_model
from anthesis.models import trace
from anthesis.models.bloom import TOKENS, BloomConfig
from anthesis.models.family import Sources
from anthesis.program.attend import Attend
from anthesis.program.ir import Step
from anthesis.program.ops import Linear
from peers.systems import BLOOM, Comparison

PRESET = "random:bloomz-560m"
SEED = 0
MAX_TOKENS = 2048
TYPES = {
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}
Tensors = dict[str, NDArray[Any]]


def path_of(model: str, folder: Path) -> Path:
    """The file or directory of a model, which is written if it is not there.

    Args:
        model: as in `Entry.model`.
        folder: where model files are kept.
    """
    if not model:
        return default_model()
    path = folder / model
    if not path.exists():
        print(f"peers: writing {model}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"unfinished.{model}"
        with open_checkpoint(PRESET, weights="bf16", seed=SEED) as checkpoint:
            if model == BLOOM:
                _write_directory(checkpoint, unfinished)
            else:
                _write_gguf(checkpoint, unfinished, TYPES[model.split(".")[-2]])
        unfinished.replace(path)
    return path


def vocab_size(model: str) -> int:
    """Ids below this are tokens."""
    if model.startswith(BLOOM):
        return TOKENS
    with open_checkpoint(None) as checkpoint:
        return checkpoint.config.vocab_size


def tensor_bytes(path: Path) -> int:
    """Bytes of all weights in a file: what a decode step reads, as the head is the embedding."""
    if path.is_dir():
        file = path / "model.safetensors"
        with file.open("rb") as opened:  # eight bytes with the header's length, the header, and nothing but tensors
            return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


def _stored(checkpoint: Checkpoint, sources: Sources) -> Tensors:
    """The weights under the names, and in the order of rows, that a format has for them.

    Returns:
        By name, (N, K) bfloat16 or (N,) bfloat16.
    """
    tensors: Tensors = {}
    for value in trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight"):
        array, source = checkpoint.load(value).values.astype(ml_dtypes.bfloat16), sources[value.name]
        if source.rows is None:
            tensors[source.name] = array
        else:  # query, key and value are parts of one matrix there
            shape = (3 * len(array), *array.shape[1:])
            tensors.setdefault(source.name, np.empty(shape, array.dtype))[source.rows] = array
    return tensors


def _write_directory(checkpoint: Checkpoint, path: Path) -> None:
    """What `save_pretrained` writes for a BloomForCausalLM: config.json and model.safetensors."""
    config = _config(checkpoint)
    raw = {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "layer_norm_epsilon": config.norm_epsilon,
        "seq_length": MAX_TOKENS,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "dtype": "bfloat16",
    }
    tensors = _stored(checkpoint, checkpoint.family.sources(config))
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw, indent=2))
    save_file(
        {f"transformer.{name}": array for name, array in tensors.items()}, path / "model.safetensors", {"format": "pt"}
    )


def _write_gguf(checkpoint: Checkpoint, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """A GGUF file without a vocabulary: prompts are token ids."""
    config = _config(checkpoint)
    writer = gguf.GGUFWriter(path, "bloom")
    writer.add_context_length(MAX_TOKENS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    family = checkpoint.family.gguf
    assert family is not None
    for name, array in _stored(checkpoint, family.sources(config)).items():
        stored = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(array.astype(np.float32), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _config(checkpoint: Checkpoint) -> BloomConfig:
    assert isinstance(checkpoint.config, BloomConfig)
    return checkpoint.config


def multiply_adds(model: str, comparison: Comparison) -> int:
    """Those of the matrices, and of attention, in all of a comparison's work; embeddings are only looked up.

    Args:
        model: as in `Entry.model`.
        comparison: the work.
    """
    with open_checkpoint(PRESET if model else str(default_model())) as checkpoint:
        program = trace(checkpoint.config, "argmax", checkpoint.kind_of)
    sequences, prompt, new = comparison.sequences, comparison.prompt_tokens, comparison.new_tokens
    if comparison.phase == "prefill":
        step = Step(rows=sequences * prompt, logit_rows=sequences, context=prompt // 2, sequences=sequences)
    elif comparison.phase == "all":
        rows = sequences * (prompt + new - 1)
        step = Step(rows=rows, logit_rows=sequences * new, context=(prompt + new) // 2, sequences=sequences)
    else:
        rows = sequences * (new - 1)
        step = Step(rows=rows, logit_rows=rows, context=prompt + new // 2, sequences=sequences)
    return sum(op.cost(program.values, step).flops for op in program.ops if isinstance(op, (Linear, Attend))) // 2
