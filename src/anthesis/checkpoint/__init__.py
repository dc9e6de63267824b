"""Checkpoints: streams of named tensors, of which a rank reads just its share."""

from anthesis.checkpoint.checkpoint import Checkpoint, model_fingerprint, open_checkpoint

__all__ = ["Checkpoint", "model_fingerprint", "open_checkpoint"]
