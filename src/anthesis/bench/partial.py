"""The rows of a sweep that is not finished, in a file, so that it can go on where it was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from anthesis.atomic import replace_file
from anthesis.bench.result import Report, read_report
from anthesis.errors import AnthesisError, RequestError
from anthesis.json_text import format_json


class Partial:
    """A result document with `finished` false, written anew after each row.

    Args:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, fresh: Report) -> Report:
        """What was measured before, or `fresh` where nothing was.

        Args:
            fresh: the report of the same sweep, without a row.

        Raises:
            RequestError: the file is not of this sweep, on this machine, by this version; the message has what differs.
        """
        if not self.path.exists():
            return fresh
        remedy = "remove it, or take another -o"
        try:
            found = read_report(self.path)
        except RequestError as error:
            raise RequestError(f"{error}; {remedy}") from error
        different = [f"{name} was {was!r}, and is {now!r}" for name, was, now in _differences(found, fresh)]
        if different:
            raise RequestError(f"{self.path} has rows of another sweep: {'; '.join(different)}; {remedy}")
        return found

    def save(self, report: Report) -> None:
        """Keeps the rows so far.

        Raises:
            AnthesisError: the operating system can't write them.
        """
        try:
            replace_file(self.path, format_json(replace(report, finished=False).document()), alone=False)
        except OSError as error:
            raise AnthesisError(f"{self.path} could not be written: {error.strerror}") from error

    def remove(self) -> None:
        """Removes the file, once the result is complete in another."""
        self.path.unlink(missing_ok=True)


def _differences(found: Report, fresh: Report) -> list[tuple[str, Any, Any]]:
    """(name, there, now) of what makes rows of one report no rows of the other."""
    request = fresh.document()["request"]  # with lists, as in a file
    names = sorted(found.request.keys() | request.keys())
    pairs = [(name, found.request.get(name), request.get(name)) for name in names]
    pairs.append(("processor", found.machine.processor, fresh.machine.processor))
    pairs.append(("usable cores", found.machine.usable_cores, fresh.machine.usable_cores))
    pairs += [(name, found.versions.get(name), version) for name, version in fresh.versions.items()]
    pairs.append(("commit", found.commit, fresh.commit))
    return [(name, there, now) for name, there, now in pairs if there != now]
