"""A real Chromium, and a page that has met no fault when it is left."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.server import ServerProcess

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    context = browser.new_context(base_url=server.base_url)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    # A handler in what is being sanitised is stopped twice, by the policy first; nothing else may meet the policy.
    stopped = "inline event handler"
    page.on(
        "console",
        lambda said: faults.append(said.text) if "Content Security" in said.text and stopped not in said.text else None,
    )
    page.goto("/")
    yield page
    context.close()
    assert faults == []
