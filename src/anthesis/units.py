"""Amounts and durations as people read them."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T", "P")


def amount(value: float, unit: str) -> str:
    """A size or rate with a decimal prefix, three or four digits: amount(44.1e9, "B") is "44.1 GB"."""
    size = float(value)
    for prefix in _PREFIXES:
        if abs(size) < 999.5 or prefix == _PREFIXES[-1]:
            return f"{size:.0f} {unit}" if not prefix else f"{size:#.3g}".rstrip(".") + f" {prefix}{unit}"
        size /= 1000
    raise AssertionError("the last prefix takes whatever is left")


def counted(number: int, what: str) -> str:
    """A number of things: "1 row", "2,225 rows"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def rate(per_second: float) -> str:
    """How often something happens: "33.1/s", "1,024/s"."""
    return f"{per_second:,.{1 if per_second < 999.5 else 0}f}/s"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: "18.1 ms", "1.81 s"."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= scale:
            shown = f"{seconds / scale:#.3g}" if abs(seconds) < 999.5 else f"{seconds:,.0f}"
            return f"{shown.rstrip('.')} {unit}"
    return f"{seconds * 1e6:#.3g}".rstrip(".") + " µs"
