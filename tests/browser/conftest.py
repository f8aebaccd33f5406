"""A headless Chromium for the tests of the pages, and a server for those of its page.

Without one, the tests are skipped, or fail if MINIGDINO_BROWSER=required.
"""

import importlib.util
import os
import shutil

import pytest

import minigdino

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


@pytest.fixture(scope="session")
def model():
    return minigdino.load("shapes")


@pytest.fixture(scope="session")
def site():
    """URL of a server with the embedded checkpoint."""
    from serving_page import serving  # beside this file, which the tests of the guide import from elsewhere

    with serving() as url:
        yield url


@pytest.fixture
def visit(chromium, site):
    """visit(url, **options) -> a tab with the page of a server

    `messages`: from console and errors; `requests`: (method, URL)
    """
    contexts = []

    def visit_page(url=site, *, width=1280, height=800, init=None, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.messages, tab.requests = [], []
        tab.on("console", lambda message: tab.messages.append(message.text))
        tab.on("pageerror", lambda error: tab.messages.append(str(error)))
        tab.on("request", lambda request: tab.requests.append((request.method, request.url)))
        if init:
            tab.add_init_script(init)
        tab.goto(url)
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield visit_page
    for context in contexts:
        context.close()
