"""A real browser: Chromium without a window, driven by Playwright. What needs one is skipped where it is not there."""

import contextlib
import shutil

import pytest


@contextlib.contextmanager
def opened(*switches):
    """A page whose requests to anything but itself are noted in `page.outside`, and whose errors in `page.failures`."""
    playwright = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no Chromium on this machine")
    arguments = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", *arguments, *switches])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.outside, page.failures = [], []
        page.on("request", lambda request: page.outside.append(request.url) if _is_outside(request.url) else None)
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.on("console", lambda line: page.failures.append(line.text) if line.type == "error" else None)
        try:
            yield page
        finally:
            browser.close()


def _is_outside(url):
    return not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))
