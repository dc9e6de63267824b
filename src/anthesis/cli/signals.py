"""The signals that end a command."""

from __future__ import annotations

import signal
import sys

TERMINATED = 128 + signal.SIGTERM


def exit_on_sigterm() -> None:
    """Makes SIGTERM, a scheduler's way to end a job, a SystemExit: as with Ctrl-C, what cleans up gets its turn."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
