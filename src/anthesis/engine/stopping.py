"""Stop strings: finding them in a text that arrives in pieces, and holding back what may be the start of one."""

from __future__ import annotations

from collections.abc import Sequence

from anthesis.errors import RequestError


class StopStrings:
    """Releases a growing text up to the first stop string.

    The first is the one that is complete first; of those complete at the same character, the longest. So the result
    depends on the text alone, not on the pieces it comes in, and generation stops as soon as any stop string is there,
    even if a longer one that began earlier might have been completed later.

    Args:
        stop: the stop strings; none is fine.

    Raises:
        RequestError: an empty stop string, or one string instead of a list of them.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if isinstance(stop, str) or not all(isinstance(string, str) for string in stop):
            raise RequestError(f"stop = {stop!r}; a list of strings is needed")
        if not all(stop):
            raise RequestError("a stop string is empty, so it would stop before the first token; leave it out")
        self._stop = tuple(dict.fromkeys(stop))
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Takes the next piece of text.

        Returns:
            The text that cannot be part of a stop string any more, and whether a stop string was found: then the text
            ends just before it, and nothing is released from then on.
        """
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            _, start = min(found)
            self._held, self._stopped = "", True
            return text[:start], True
        keep = self._start_of_a_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """The text held back, now that nothing follows that could complete a stop string."""
        held, self._held = self._held, ""
        return held

    def _start_of_a_stop(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
