"""SmolLM2-135M-Instruct, the embedded model, for transformers: its weights dequantised to float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anthesis.checkpoint import open_checkpoint
from anthesis.models import preset, trace
from anthesis.models.llama import sources

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def transformers_model() -> PreTrainedModel:
    """The model as transformers runs it; `tests/parity/test_smollm2.py` shows that its own reader finds the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with open_checkpoint(None, weights="fp32") as checkpoint:
        names = sources(checkpoint.config)
        weights = trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight")
        tensors = {
            f"model.{names[weight.name].name}": torch.from_numpy(np.array(checkpoint.load(weight).values))
            for weight in weights
        }
    config = AutoConfig.for_model(**preset("smollm2-135m"), bos_token_id=1, eos_token_id=2, pad_token_id=2)
    with torch.device("meta"):  # random numbers for 135 million weights would take longer than everything else
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # which is no weight
    return model.eval()
