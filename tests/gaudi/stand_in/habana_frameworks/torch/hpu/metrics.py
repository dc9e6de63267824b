"""What the software counts."""

from __future__ import annotations

from gaudi_card import card


class Metric:
    """As the class of that name.

    Args:
        name: of what is counted.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def stats(self) -> list[tuple[str, int]]:
        """Pairs, of which the first is how often it happened."""
        count = card.compilations if self._name == "graph_compilation" else 0
        return [("TotalNumber", count), ("TotalTime", 0)]


def metric_global(name: str) -> Metric | None:
    """By its name; None for one that is not counted."""
    return Metric(name) if name in ("graph_compilation", "cpu_fallback") else None
