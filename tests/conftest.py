"""Which tests run where."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    # A shell that starts something in the background has it ignore Ctrl-C, and the commands that tests start would too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Triton's kernels run on tensors of the host, interpreted, where there is no card; it reads this when they are
    # defined.
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    contract = [item for item in items if item.path.name == "test_device_contract.py"]
    if contract:
        from devices_under_test import is_quick

        for item in contract:
            if not is_quick(item):
                item.add_marker(pytest.mark.slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-files", action="store_true", help="also run the tests that need real model files")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real_files") and not item.config.getoption("--real-files"):
        pytest.skip("needs real model files: --real-files")
    if item.get_closest_marker("cuda") and not _has_cuda():
        pytest.skip("needs an NVIDIA GPU")
    if item.get_closest_marker("hpu") and importlib.util.find_spec("habana_frameworks") is None:
        pytest.skip("needs a Gaudi accelerator")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)
