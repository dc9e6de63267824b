"""The CPU device: programs run by the C++ extension on this machine's processor."""

from anthesis.devices.cpu.device import CpuDevice

__all__ = ["CpuDevice"]
