"""What a plan knows of the hardware: from a data sheet, or of this machine, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from anthesis.cores import usable_cores
from anthesis.devices import DEVICES, open_device
from anthesis.devices.datasheets import DATASHEETS, Datasheet
from anthesis.devices.device import Device, DeviceInfo
from anthesis.errors import RequestError
from anthesis.program.cost import kind_bytes
from anthesis.program.ir import Value
from anthesis.units import counted

THIS_MACHINE = ("auto", *DEVICES)
"""What names a device of this machine."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device as a plan computes with it.

    Attributes:
        name: of the data sheet or of the device, as in `--device`.
        description: what it is.
        figures: where memory and rates come from.
        memory_bytes: of one device; of this machine what is available now.
        memory_is_shared: all ranks share the one memory and its bandwidth.
        read_bytes_per_s: bandwidth of the memory, or None where it is unknown.
        bf16_flops_per_s, fp8_flops_per_s, int8_flops_per_s: peaks of matrix products, or None where unknown.
        link_bytes_per_s: from one device to the others of its machine, per direction, or None where unknown.
        devices_per_machine: how many a machine usually has, or None.
    """

    name: str
    description: str
    figures: str
    memory_bytes: int
    memory_is_shared: bool
    read_bytes_per_s: float | None
    bf16_flops_per_s: float | None = None
    fp8_flops_per_s: float | None = None
    int8_flops_per_s: float | None = None
    link_bytes_per_s: float | None = None
    devices_per_machine: int | None = None

    @staticmethod
    def of_device(info: DeviceInfo) -> Hardware:
        """A device of this machine, of whose speeds nothing is known yet; `at_speeds` adds them."""
        return Hardware(
            name=info.name,
            description=f"this machine, {counted(usable_cores(), 'usable core')}"
            if info.uses_host_memory
            else info.description,
            figures="memory: available now",
            memory_bytes=info.memory_bytes,
            memory_is_shared=info.uses_host_memory,
            read_bytes_per_s=None,
            devices_per_machine=1 if info.uses_host_memory else None,
        )

    def at_speeds(
        self, read_bytes_per_s: float | None, multiply_adds_per_s: Mapping[str, float], machines: int = 1
    ) -> Hardware:
        """The same with speeds that were measured.

        Args:
            read_bytes_per_s: of its memory, or None.
            multiply_adds_per_s: peaks by the kind of the inputs, bf16 and int8; empty where unknown.
            machines: as fast as this one, whose memories are read at the same time.
        """
        bf16, int8 = (multiply_adds_per_s.get(kind) for kind in ("bf16", "int8"))
        return replace(
            self,
            read_bytes_per_s=None if read_bytes_per_s is None else machines * read_bytes_per_s,
            bf16_flops_per_s=None if bf16 is None else 2 * machines * bf16,
            int8_flops_per_s=None if int8 is None else 2 * machines * int8,
        )

    def flops_per_s(self, weight_kinds: Iterable[str]) -> float | None:
        """The highest stated peak that products with these weights could reach, so that a floor stays a floor.

        fp8 weights may reach the fp8 peak, integer weights (which take 8-bit inputs) the int8 peak, all the bf16 peak.

        Args:
            weight_kinds: kinds of the matrices.

        Returns:
            Multiply-adds times two per second, or None where no peak is known.
        """
        peaks = [self.bf16_flops_per_s]
        for kind in weight_kinds:
            if kind == "fp8":
                peaks.append(self.fp8_flops_per_s)
            elif kind.startswith("int"):
                peaks.append(self.int8_flops_per_s)
        return max((peak for peak in peaks if peak is not None), default=None)


def find_hardware(device: str | None) -> Hardware:
    """The hardware that `--device` names.

    Args:
        device: the name of a data sheet, or of a device of this machine, whose bandwidth is measured, which takes
            about a second; None for the fastest of these.

    Raises:
        RequestError: neither; the message lists the names.
        UnsupportedError: a device that is not there.
    """
    if device is not None and device in DATASHEETS:
        return _from_datasheet(DATASHEETS[device])
    if device is not None and device not in THIS_MACHINE:
        raise RequestError(
            f"unknown device {device!r}; a plan knows this machine ({', '.join(THIS_MACHINE)}) and by data sheet: "
            f"{', '.join(DATASHEETS)}"
        )
    return _of_this_machine(open_device(device or "auto"))


def _from_datasheet(sheet: Datasheet) -> Hardware:
    return Hardware(
        name=sheet.name,
        description=f"{sheet.description}, {sheet.link}",
        figures=f"data sheet: {sheet.source}",
        memory_bytes=sheet.memory_bytes,
        memory_is_shared=False,
        read_bytes_per_s=sheet.read_bytes_per_s,
        bf16_flops_per_s=sheet.bf16_flops_per_s,
        fp8_flops_per_s=sheet.fp8_flops_per_s,
        int8_flops_per_s=sheet.int8_flops_per_s,
        link_bytes_per_s=sheet.link_bytes_per_s,
        devices_per_machine=sheet.devices_per_machine,
    )


def holding(hardware: Hardware) -> Callable[[Value], int]:
    """What tells the bytes that the device takes to hold a weight, or one block of a cache.

    A device of this machine says it itself; of a data sheet's one it is taken that it keeps the kinds as they are.
    """
    return kind_bytes if hardware.name in DATASHEETS else open_device(hardware.name).held_bytes


def _of_this_machine(device: Device) -> Hardware:
    bandwidth, peaks = device.read_bandwidth(), device.multiply_add_peaks()
    known = "unknown" if bandwidth.median is None else f"measured, median of {len(bandwidth.samples)} samples"
    hardware = Hardware.of_device(device.info()).at_speeds(bandwidth.median, peaks)
    return replace(
        hardware,
        figures=f"{hardware.figures}; bandwidth: {known} ({bandwidth.note}); "
        f"arithmetic: {'measured' if peaks else 'unknown'}",
    )
