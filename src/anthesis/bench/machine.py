"""The computer and the software a measurement ran on."""

from __future__ import annotations

import os
import platform

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


def versions() -> dict[str, str]:
    """Of anthesis and of what computes."""
    return {"anthesis": anthesis.__version__, "python": platform.python_version(), "numpy": np.__version__}
