"""What a device that has run out of memory is told as."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anthesis.errors import DeviceMemoryError, first_line


@contextmanager
def saying_what_for(device: torch.device, what: str, remedy: str) -> Iterator[None]:
    """Makes running out of memory in here an error that says what it was wanted for, and what to do.

    Args:
        device: whose memory it is.
        what: it was wanted for.
        remedy: what would take less.

    Raises:
        DeviceMemoryError: there was too little.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the {device.type} device ran out of memory for {what}; {remedy}. It says: {first_line(error)}"
        ) from error
