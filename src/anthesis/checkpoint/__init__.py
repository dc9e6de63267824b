"""Checkpoints: streams of named tensors, of which a rank reads just its share."""

from anthesis.checkpoint.checkpoint import IN_MEMORY, Checkpoint, model_fingerprint, open_checkpoint
from anthesis.checkpoint.memory import InMemoryModel

__all__ = ["IN_MEMORY", "Checkpoint", "InMemoryModel", "model_fingerprint", "open_checkpoint"]
