"""Adapters made by peft on small models of transformers, and what peft computes with them in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from parity.truth import DTYPES, true_logits

TENSORS = "adapter_model.safetensors"


@dataclass
class Adapted:
    """A model with an adapter.

    Attributes:
        directory: where the adapter is saved.
        peft: the model, in float64, the adapter beside its weights.
    """

    directory: Path
    peft: PeftModel

    def logits(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """(T, V) float64, the adapter computed by itself."""
        return true_logits(self.peft, ids)

    def merged(self) -> PreTrainedModel:
        """The model after merge_and_unload."""
        return copy.deepcopy(self.peft).merge_and_unload()


def adapt(model: PreTrainedModel, directory: Path, dtype: str = "fp32", noise: float = 0.5, **lora: Any) -> Adapted:
    """Gives a model an adapter all of whose trained tensors are random, and saves it in this dtype."""
    torch.manual_seed(1)  # what of the factors is not trained (MiCA) is made up as well
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **{"r": 4, **lora})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                change = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                is_factor = "lora_" in name and "magnitude" not in name
                scale = noise / max(1, parameter.shape[-1]) ** 0.5 if is_factor else 0.1
                parameter.copy_((change * scale + (0 if is_factor else parameter)).to(DTYPES[dtype]))
    adapted.save_pretrained(directory)
    edit_adapter(directory, lambda tensors: {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()})
    return Adapted(directory, adapted)


def edit_adapter(directory: Path, edit: Any) -> None:
    """Changes adapter_model.safetensors by hand."""
    changed = edit(load_file(directory / TENSORS))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, directory / TENSORS)
