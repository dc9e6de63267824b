"""The Chromium of the system, headless: it is never downloaded by a test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

NEEDED_VARIABLE = "ANTHESIS_NEED_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser with a fresh profile; the test is skipped where there is none, unless the environment asks for it."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        _give_up(f"no Chromium is installed: none of {', '.join(NAMES)} is found")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _give_up("playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def _give_up(reason: str) -> NoReturn:
    if os.environ.get(NEEDED_VARIABLE) == "1":
        pytest.fail(f"{NEEDED_VARIABLE}=1, and {reason}", pytrace=False)
    pytest.skip(reason)
