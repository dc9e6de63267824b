"""The computer and the software a measurement ran on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

import anthesis
from anthesis.bench.subject import Machine
from anthesis.cores import usable_cores
from anthesis.host import processor_name
from anthesis.memory import available_memory_bytes


def this_machine() -> Machine:
    """What it is, and what of it is free now."""
    return Machine(
        processor=processor_name(),
        usable_cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        available_memory_bytes=available_memory_bytes(),
        os=platform.platform(),
    )


def now() -> str:
    """UTC, ISO 8601, in seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def commit() -> str | None:
    """The commit of anthesis' own sources; None where that is not known.

    It is known of a git checkout, and of an installation that pip made from a git address. Where files of the checkout
    were changed, "-dirty-" follows and the start of a hash of the difference: two changes are two things to measure.

    Source:
        PEP 610, direct_url.json.
    """
    root = Path(anthesis.__file__).resolve().parents[2]
    if (root / ".git").exists() and (root / "src" / "anthesis").is_dir():
        head = _git(root, "rev-parse", "HEAD")
        # whatever the user's settings make of a difference otherwise
        plainly = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv")
        difference = _git(root, "diff", *plainly, "HEAD", "--", "src", "native")
        if head is None or difference is None:
            return None
        if not difference:
            return head.decode()
        return f"{head.decode()}-dirty-{hashlib.sha256(difference).hexdigest()[:12]}"
    try:
        address = json.loads(distribution("anthesis").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    found = address.get("vcs_info", {}).get("commit_id")
    return found if isinstance(found, str) else None


def _git(root: Path, *arguments: str) -> bytes | None:
    """What git says, or None where it doesn't: it is not there, or another user's checkout is none of its business."""
    try:
        found = subprocess.run(["git", "-C", root, *arguments], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """Of anthesis and of what computes."""
    return {"anthesis": anthesis.__version__, "python": platform.python_version(), "numpy": np.__version__}
