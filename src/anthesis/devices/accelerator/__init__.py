"""What accelerators driven through PyTorch share: weights as tensors, steps of fixed sizes, plain operations."""
