"""A real browser for tests of pages: Chromium where one is installed, driven by Playwright where that is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Nothing that Chromium does by itself: no updates, no look-ups.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""With which Chromium is started."""
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Returns the browser's path; $CHROMIUM names another. Skips the test, saying so, where there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: {', '.join(_NAMES)}")
    return path


@contextmanager
def browser() -> Iterator[Any]:
    """Yields Playwright's browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: see `make play`")
    path = chromium()
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield opened
        finally:
            opened.close()
