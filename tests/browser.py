"""A headless Chromium for tests of pages: what it logs and asks for is kept, and screenshots are put away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium(*switches: str) -> Iterator[Any]:
    """Yield Playwright's browser; the test is skipped where Playwright or Chromium is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed")
    # Chromium's sandbox refuses to run as root.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*arguments, *switches])
        try:
            yield browser
        finally:
            browser.close()


def watched(browser: Any, **options: Any) -> tuple[Any, list[str], list[str]]:
    """Open an empty page in a context of its own; give it with its errors and the addresses it asks for.

    Both lists grow while the page is used. ``options`` are those of a browser context (viewport,
    color_scheme, ...).
    """
    page = browser.new_context(**options).new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    return page, errors, requests


def screenshot(page: Any, name: str, tmp_path: Path) -> Path:
    """Keep a picture of what is seen in the folder MINIRES_SCREENSHOTS, else in ``tmp_path``."""
    folder = Path(os.environ.get("MINIRES_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    return path
