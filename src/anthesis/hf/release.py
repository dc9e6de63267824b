"""Which releases of transformers are supported."""

from __future__ import annotations

import importlib.metadata

from anthesis.errors import UnsupportedError

SUPPORTED_MAJOR = 5
"""All releases of this major number; what they share is documented, and nothing else of them is used."""

# What transformers has changed within these releases, and what is done as the installed one does it.
PADDING_IS_NOT_REPEATED = (5, 23)
"""From this release on a repetition penalty takes no notice of padding."""
BEST_DRAW_FIRST = (5, 24)
"""From this release on continuations that are drawn for beams are looked at best first, not in the order of drawing."""
PREFIXES_OF_PROMPTS = (5, 24)
"""From this release on prefix_allowed_tokens_fn is given a prompt's number also for several samples of one prompt."""


def release() -> tuple[int, int]:
    """The major and minor number of the installed transformers."""
    major, minor = importlib.metadata.version("transformers").split(".")[:2]
    return int(major), int(minor)


def check_release() -> None:
    """Finds out, before anything is imported, whether transformers and torch are there and of a supported release.

    Raises:
        UnsupportedError: they are not; the message says what to install.
    """
    advice = 'pip install "anthesis[transformers]"'
    for name in ("torch", "transformers"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise UnsupportedError(f"anthesis.hf needs {name}, which is not installed: {advice}") from None
    check_version(found, advice)


def check_version(found: str, advice: str) -> None:
    """Refuses a version of transformers that is not supported.

    Args:
        found: as the package has it: "5.23.0".
        advice: what to do.

    Raises:
        UnsupportedError: of another major number.
    """
    if found.split(".")[0] != str(SUPPORTED_MAJOR):
        raise UnsupportedError(
            f"anthesis.hf works with transformers {SUPPORTED_MAJOR}.x, and {found} is installed: {advice}"
        )
