"""The CUDA device: programs run on an NVIDIA card, each step of a size captured in one graph."""

from anthesis.devices.cuda.device import CudaDevice, open_card

__all__ = ["CudaDevice", "open_card"]
