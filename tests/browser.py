"""Pages in a real browser, and what is wrong with them for people who don't see or use a mouse."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

expect.set_options(timeout=60_000)  # on a busy machine a page takes longer than Playwright's 5 s


@contextmanager
def launch_browser() -> Iterator[Browser]:
    """Runs a headless Chromium; skips the test if there is none."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not executable:
        pytest.skip("there is no Chromium here")
    # As root, as in a container, Chromium doesn't start with its sandbox.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def find_violations(page: Page) -> list[str]:
    """Returns axe-core's findings for people who use a keyboard, a screen reader or little contrast."""
    findings = Axe().run(page).response["violations"]
    return [f"{f['id']} ({f['impact']}): {node['html'][:120]}" for f in findings for node in f["nodes"]]
