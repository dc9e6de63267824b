"""What a plan knows of the hardware: from a data sheet, or of this machine, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from anthesis.cores import usable_cores
from anthesis.devices import open_device
from anthesis.devices.datasheets import DATASHEETS, Datasheet
from anthesis.errors import RequestError, UnsupportedError
from anthesis.host import memory_bandwidth
from anthesis.memory import available_memory_bytes
from anthesis.native import multiply_add_peak
from anthesis.program.cost import kind_bytes
from anthesis.program.ir import Value
from anthesis.units import counted

PEAK_S = 0.02

THIS_MACHINE = ("auto", "cpu", "reference", "reference-fp64")
"""Devices that live in this machine's own memory."""


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
        device: the name of a data sheet, or of a device in this machine's memory, whose bandwidth is measured, which
            takes about a second; None for the fastest of these.

    Raises:
        RequestError: neither; the message lists the names.
        UnsupportedError: a device that this version does not have.
    """
    if device is None or device in THIS_MACHINE:
        return _this_machine(open_device(device or "auto").info().name)
    if device not in DATASHEETS:
        raise RequestError(
            f"unknown device {device!r}; a plan knows this machine ({', '.join(THIS_MACHINE)}) and by data sheet: "
            f"{', '.join(DATASHEETS)}"
        )
    return _from_datasheet(DATASHEETS[device])


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
    if hardware.memory_is_shared:
        return open_device(hardware.name).held_bytes
    return kind_bytes


def _this_machine(device: str) -> Hardware:
    cores = usable_cores()
    bandwidth = None
    try:
        found = memory_bandwidth()
        bandwidth, figures = found.median, f"measured, {found}"
    except UnsupportedError as error:
        figures = f"unknown: {error}"
    bf16 = int8 = None
    if device == "cpu":
        bf16, int8 = (multiply_add_peak(kind, cores, PEAK_S) for kind in ("bf16", "int8"))
    return Hardware(
        name=device,
        description=f"this machine, {counted(cores, 'usable core')}",
        figures=f"memory: available now; bandwidth: {figures}; arithmetic: {'unknown' if bf16 is None else 'measured'}",
        memory_bytes=available_memory_bytes(),
        memory_is_shared=True,
        read_bytes_per_s=bandwidth,
        bf16_flops_per_s=None if bf16 is None else 2 * bf16,
        int8_flops_per_s=None if int8 is None else 2 * int8,
        devices_per_machine=1,
    )
