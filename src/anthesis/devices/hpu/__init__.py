"""The Gaudi device: programs run on an Intel Gaudi card, each step of a size captured in one graph or compiled."""

from anthesis.devices.hpu.device import HpuDevice, open_card

__all__ = ["HpuDevice", "open_card"]
