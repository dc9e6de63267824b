"""Everything that can go wrong because of what a user asked for or brought along.

Each message says what was wrong, what was seen, and what to do. The command line prints it in one line and exits with
`exit_code`; a Python caller catches `AnthesisError`, or the builtin class it also is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class AnthesisError(Exception):
    """Base of all errors that a user can cause."""

    exit_code = 1


def printable(text: str, most: int = 300) -> str:
    """What somebody else wrote, for people to read: in one line, cut, and with control characters escaped."""
    line = " ".join(text[: 2 * most].split())[:most]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line, or at least what it is."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], 1000)


def few(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class RequestError(AnthesisError, ValueError):
    """The request itself can't be carried out: a wrong argument, an impossible combination, too long a prompt."""

    exit_code = 2


def check_counts(**counts: int | None) -> None:
    """Refuses numbers of things that are none.

    Args:
        counts: by the name they were given under; None: not given.

    Raises:
        RequestError: one is below 1.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise RequestError(f"{name} is {value}; it must be at least 1")


class ConfigError(RequestError):
    """A model's configuration is contradictory, incomplete, or names something we do not compute."""


class UnsupportedError(RequestError):
    """A feature that does not exist here; the message names it and says what does."""


class DeviceMemoryError(RequestError):
    """The memory of a device is too small for what was asked for."""


class CheckpointError(AnthesisError, OSError):
    """A checkpoint is missing, damaged, incomplete, or does not hold what its configuration says."""


class TokenizerError(AnthesisError, ValueError):
    """A tokenizer is missing, damaged, or of a kind we do not read."""


class ClaimError(AnthesisError):
    """A shard of a data set that this process worked on is another one's now, or nobody's."""


class DataSetError(AnthesisError, OSError):
    """A data set can't be read, or is not what it was when the run began."""


class RankError(AnthesisError):
    """One of several ranks has failed or ended, or can't be reached.

    Args:
        message: which, and by what.
        details: the traceback of that rank, or what it wrote last; empty where nothing is known.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
        if details and hasattr(self, "add_note"):  # from Python 3.11 on: shown below the traceback of who asked
            self.add_note(details)


ERRORS = {
    error.__name__: error
    for error in (
        RequestError,
        ConfigError,
        UnsupportedError,
        DeviceMemoryError,
        CheckpointError,
        TokenizerError,
        DataSetError,
    )
}
"""Those that a user can mend, by name: a rank that meets one tells it to rank 0."""


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Makes what goes wrong in here say of which file or directory it is true, where it doesn't say so already.

    Args:
        path: of the file or directory; None for no change.

    Raises:
        AnthesisError: of the class that was raised.
    """
    try:
        yield
    except AnthesisError as error:
        said = str(error)
        if path is None or str(path) in said:
            raise
        begins_with_name = said.startswith(f"{path.name} ")
        raise type(error)(f"{path.parent / said}" if begins_with_name else f"{path}: {said}") from error
