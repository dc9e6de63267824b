"""A transformers model in memory, as a checkpoint: its tensors are read where they are, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from anthesis.checkpoint import InMemoryModel
from anthesis.checkpoint.safetensors import take
from anthesis.checkpoint.store import Rows, StoredTensor
from anthesis.errors import UnsupportedError, few
from anthesis.quantize import WeightTensor

_KINDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class TorchStore:
    """The tensors of a state dictionary, wherever torch keeps them.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._host: tuple[str, NDArray[Any]] | None = None  # the one that is being read, on the host
        self.tensors: dict[str, StoredTensor] = {}
        for name, tensor in tensors.items():
            kind = str(tensor.dtype).removeprefix("torch.")
            self.tensors[name] = StoredTensor(name, tuple(tensor.shape), kind, _KINDS.get(kind))

    def read(self, name: str, rows: Rows, columns: slice, *, transpose: bool, exact: bool) -> WeightTensor:
        """See `TensorStore.read`; devices make their own layout of it, so that nothing of it is shared in the end."""
        kind = self.tensors[name].kind
        assert kind is not None
        held = self._host
        if held is None or held[0] != name:
            self._host = held = name, as_array(self._tensors[name])
        return take(held[1], kind, rows, columns, transpose)

    def release(self) -> None:
        """See `TensorStore.release`; a tensor of the host's memory is another's and stays."""
        self._host = None


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor (...) of any dtype as an array (...) on the same memory, if that is the host's."""
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:  # which NumPy lacks, so it crosses as integers
        return np.asarray(plain.view(torch.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(plain)


def in_memory_model(model: Any) -> InMemoryModel:
    """A transformers model as `LLM` takes it.

    Args:
        model: a `PreTrainedModel` for causal language modelling; it is only read, while `LLM` loads.

    Raises:
        UnsupportedError: no such model, or one that is quantised, adapted, or not in memory.
    """
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        merge = "; merge its adapter first: model.merge_and_unload()" if hasattr(model, "merge_and_unload") else ""
        raise UnsupportedError(f"accelerate takes a transformers model (PreTrainedModel), and this is a {kind}{merge}")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if causal is None or not isinstance(model, causal):
        wanted = "" if causal is None else f"; of this family {causal.__name__} is one"
        raise UnsupportedError(f"accelerate takes a model for causal language modelling, and this is a {kind}{wanted}")
    if getattr(model, "is_quantized", False):
        raise UnsupportedError(
            f"this {kind} is quantised, which is not read; load it without quantization_config, and choose weights="
        )
    tensors = model.state_dict()
    away = sorted(name for name, tensor in tensors.items() if tensor.device.type == "meta")
    if away:
        raise UnsupportedError(f"this {kind} is not all in memory: {few(away)}; load it without device_map offloading")
    adapters = sorted(name for name in tensors if ".lora_" in name or ".base_layer." in name)
    if adapters:
        raise UnsupportedError(
            f"this {kind} has an adapter that is not merged: {few(adapters)}; take the model without it, and give "
            "accelerate adapter= the adapter's directory"
        )
    raw = model.config.to_dict()
    # whether the head is tied is what the model in memory does, not what its configuration wanted
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    raw["tie_word_embeddings"] = head.weight.data_ptr() == embedding.weight.data_ptr()
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    if ends is not None:
        raw["eos_token_id"] = ends
    return InMemoryModel(f"{kind} in memory", raw, TorchStore(tensors))
