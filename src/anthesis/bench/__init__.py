"""Measures how fast a model generates, with every sample kept and every figure explained (docs/measuring.md)."""

from anthesis.bench.measure import measure
from anthesis.bench.measurement import Measurement
from anthesis.bench.request import Request
from anthesis.bench.result import Report, read_report
from anthesis.bench.sweep import sweep

__all__ = ["Measurement", "Report", "Request", "measure", "read_report", "sweep"]
