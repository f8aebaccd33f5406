"""A headless Chromium for the tests of the page.

Without one, the tests are skipped, or fail if MINIGDINO_BROWSER=required.
"""

import importlib.util
import os
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip


def missing():
    """Return what is not installed, with the command that installs it; None if nothing is missing."""
    if importlib.util.find_spec("playwright") is None:
        return "the Python package playwright is not installed: make test-browser"
    if CHROMIUM is None:
        return "no Chromium is installed: apt-get install chromium"
    return None


def pytest_collection_modifyitems(items):
    reason = missing()
    in_this_folder = [item for item in items if item.path.parent == item.config.rootpath / "tests" / "browser"]
    for item in in_this_folder:
        item.add_marker("browser")
        if reason and os.environ.get("MINIGDINO_BROWSER") != "required":
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")  # not the session's: other modules may start Playwright, which refuses a second one
def chromium():
    """A running browser."""
    assert missing() is None, missing()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()
