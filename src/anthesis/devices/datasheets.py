"""Accelerators by name, as their vendors' data sheets describe them: what `plan` computes with when none is there.

The figures are the vendors' peaks, none of them measured. Sizes and rates are in decimal units, as the sheets print
them ("80 GB" is 80e9 bytes; most cards hold a few per cent more). Peak rates are of dense matrix products with sums in
fp32; a sheet that prints rates "with sparsity" is halved. Link rates are per direction, the sum of a device's links to
the others in its machine; a sheet that prints both directions together is halved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Datasheet:
    """One accelerator.

    Attributes:
        name: as in `plan --device`.
        description: vendor, product and form.
        memory_bytes: its memory.
        read_bytes_per_s: bandwidth of that memory.
        bf16_flops_per_s: peak of bf16 products, a multiply-add being two; None where the vendor states none.
        fp8_flops_per_s: peak of fp8 products, or None.
        int8_flops_per_s: peak of int8 products, or None.
        link_bytes_per_s: to the other devices of its machine, per direction, all its links together.
        link: what these links are.
        devices_per_machine: how many a machine usually has.
        source: where the figures stand.
    """

    name: str
    description: str
    memory_bytes: int
    read_bytes_per_s: float
    bf16_flops_per_s: float | None
    fp8_flops_per_s: float | None = None
    int8_flops_per_s: float | None = None
    link_bytes_per_s: float
    link: str
    devices_per_machine: int
    source: str


_GAUDI_ARCHITECTURE = "docs.habana.ai, Gaudi Architecture (1.8 and later)"
_NVIDIA_ADA = "NVIDIA Ada GPU Architecture white paper, v2 (2022-2023)"

DATASHEETS: Mapping[str, Datasheet] = MappingProxyType(
    {
        sheet.name: sheet
        for sheet in (
            Datasheet(
                name="gaudi1",
                description="Habana Gaudi (first generation), HL-205",
                memory_bytes=32 * 10**9,
                read_bytes_per_s=1.0e12,
                bf16_flops_per_s=None,
                link_bytes_per_s=87.5e9,
                link="7 x 100 Gb/s Ethernet, one to each of seven others",
                devices_per_machine=8,
                source=f"Habana Gaudi Training Platform white paper (2019); {_GAUDI_ARCHITECTURE}",
            ),
            Datasheet(
                name="gaudi2",
                description="Intel Gaudi 2, HL-225",
                memory_bytes=96 * 10**9,
                read_bytes_per_s=2.45e12,
                bf16_flops_per_s=432e12,
                fp8_flops_per_s=865e12,
                link_bytes_per_s=262.5e9,
                link="21 x 100 Gb/s Ethernet, three to each of seven others",
                devices_per_machine=8,
                source=f"Intel Gaudi 3 white paper (2024), comparison with Gaudi 2; {_GAUDI_ARCHITECTURE}",
            ),
            Datasheet(
                name="gaudi3",
                description="Intel Gaudi 3, HL-325L",
                memory_bytes=128 * 10**9,
                read_bytes_per_s=3.7e12,
                bf16_flops_per_s=1835e12,
                fp8_flops_per_s=1835e12,
                link_bytes_per_s=525e9,
                link="21 x 200 Gb/s Ethernet, three to each of seven others",
                devices_per_machine=8,
                source="Intel Gaudi 3 white paper (2024); docs.habana.ai, Network Configuration",
            ),
            Datasheet(
                name="a100-40gb",
                description="NVIDIA A100 SXM4 40 GB",
                memory_bytes=40 * 10**9,
                read_bytes_per_s=1.555e12,
                bf16_flops_per_s=312e12,
                int8_flops_per_s=624e12,
                link_bytes_per_s=300e9,
                link="NVLink 3 through NVSwitch",
                devices_per_machine=8,
                source="NVIDIA A100 Tensor Core GPU data sheet (2020-2021)",
            ),
            Datasheet(
                name="a100-80gb",
                description="NVIDIA A100 SXM4 80 GB",
                memory_bytes=80 * 10**9,
                read_bytes_per_s=2.039e12,
                bf16_flops_per_s=312e12,
                int8_flops_per_s=624e12,
                link_bytes_per_s=300e9,
                link="NVLink 3 through NVSwitch",
                devices_per_machine=8,
                source="NVIDIA A100 Tensor Core GPU data sheet (2021)",
            ),
            Datasheet(
                name="h100",
                description="NVIDIA H100 SXM5 80 GB",
                memory_bytes=80 * 10**9,
                read_bytes_per_s=3.35e12,
                bf16_flops_per_s=989.5e12,
                fp8_flops_per_s=1979e12,
                int8_flops_per_s=1979e12,
                link_bytes_per_s=450e9,
                link="NVLink 4 through NVSwitch",
                devices_per_machine=8,
                source="NVIDIA H100 Tensor Core GPU data sheet (2023); its rates with sparsity halved",
            ),
            Datasheet(
                name="h200",
                description="NVIDIA H200 SXM 141 GB",
                memory_bytes=141 * 10**9,
                read_bytes_per_s=4.8e12,
                bf16_flops_per_s=989.5e12,
                fp8_flops_per_s=1979e12,
                int8_flops_per_s=1979e12,
                link_bytes_per_s=450e9,
                link="NVLink 4 through NVSwitch",
                devices_per_machine=8,
                source="NVIDIA H200 Tensor Core GPU data sheet (2023-2024); its rates with sparsity halved",
            ),
            Datasheet(
                name="l4",
                description="NVIDIA L4 24 GB",
                memory_bytes=24 * 10**9,
                read_bytes_per_s=300e9,
                bf16_flops_per_s=121e12,
                fp8_flops_per_s=242.5e12,
                int8_flops_per_s=242.5e12,
                link_bytes_per_s=32e9,
                link="PCIe 4.0 x16",
                devices_per_machine=1,
                source="NVIDIA L4 Tensor Core GPU data sheet (2023); its rates with sparsity halved",
            ),
            Datasheet(
                name="l40s",
                description="NVIDIA L40S 48 GB",
                memory_bytes=48 * 10**9,
                read_bytes_per_s=864e9,
                bf16_flops_per_s=362.05e12,
                fp8_flops_per_s=733e12,
                int8_flops_per_s=733e12,
                link_bytes_per_s=32e9,
                link="PCIe 4.0 x16",
                devices_per_machine=4,
                source="NVIDIA L40S data sheet (2023), dense rates",
            ),
            Datasheet(
                name="rtx-4090",
                description="NVIDIA GeForce RTX 4090 24 GB",
                memory_bytes=24 * 10**9,
                read_bytes_per_s=1.008e12,
                bf16_flops_per_s=165.2e12,
                fp8_flops_per_s=330.3e12,
                int8_flops_per_s=660.6e12,
                link_bytes_per_s=32e9,
                link="PCIe 4.0 x16",
                devices_per_machine=1,
                source=f"{_NVIDIA_ADA}, appendix A; sums in fp32",
            ),
        )
    }
)
