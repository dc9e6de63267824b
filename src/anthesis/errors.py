"""Everything that can go wrong because of what a user asked for or brought along.

Each message says what was wrong, what was seen, and what to do. The command line prints it in one line and exits with
`exit_code`; a Python caller catches `AnthesisError`, or the builtin class it also is.
"""


class AnthesisError(Exception):
    """Base of all errors that a user can cause."""

    exit_code = 1


class RequestError(AnthesisError, ValueError):
    """The request itself can't be carried out: a wrong argument, an impossible combination, too long a prompt."""

    exit_code = 2


class ConfigError(RequestError):
    """A model's configuration is contradictory, incomplete, or names something we do not compute."""


class UnsupportedError(RequestError):
    """A feature that does not exist here; the message names it and says what does."""


class CheckpointError(AnthesisError, OSError):
    """A checkpoint is missing, damaged, incomplete, or does not hold what its configuration says."""


class TokenizerError(AnthesisError, ValueError):
    """A tokenizer is missing, damaged, or of a kind we do not read."""


class DataSetError(AnthesisError, OSError):
    """A data set can't be read, or is not what it was when the run began."""
