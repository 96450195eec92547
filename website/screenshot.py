"""Draw the picture of a run's page: ``python -m website.screenshot results/x_run-1.html docs/report.png``.

It needs the Python package playwright and a Chromium, whose path the variable ``CHROMIUM`` may give.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT = 1200, 890
"""Of the part of the page that is shown, from its top, in pixels."""


def main(arguments: Sequence[str]) -> int:
    """Open a page and write what a browser shows of it.

    Args:
        arguments: The page and the picture.

    Returns:
        The exit status.
    """
    from playwright.sync_api import sync_playwright  # the tests of this folder need no browser

    page_file, picture = map(Path, arguments)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_file.resolve().as_uri())
        page.wait_for_load_state("load")
        page.screenshot(path=picture, animations="disabled")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
