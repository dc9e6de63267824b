"""A picture of an HTML report, by the Chromium of this machine and Playwright (`pip install playwright`).

python benchmarks/picture.py report.html docs/report.png [--width 1280] [--height 1700] [--dark]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Takes the picture: the top of the page, as high as is asked for, or all of it."""
    parser = argparse.ArgumentParser(description="A picture of an HTML report.")
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path, help="a .png to write")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, help="left out: the whole page")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("picture: no chromium, chromium-browser or google-chrome is installed")
    from playwright.sync_api import sync_playwright

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=options)
        page = chromium.new_page(
            viewport={"width": arguments.width, "height": arguments.height or 900},
            color_scheme="dark" if arguments.dark else "light",
            reduced_motion="reduce",
        )
        page.goto(arguments.report.resolve().as_uri())
        page.wait_for_selector(".plot [data-mark]")
        page.screenshot(path=arguments.picture, full_page=arguments.height is None)
        chromium.close()


if __name__ == "__main__":
    main()
