"""What the tests of the page do and look at."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

AXE = Path(__file__).resolve().parents[2] / "frontend/node_modules/axe-core/axe.min.js"


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer(page: Page) -> Any:
    return page.locator("[data-testid=message][data-role=assistant]").last.locator("[data-testid=markdown]")


def words(page: Page) -> int:
    return len(answer(page).inner_text().split())


def streaming(page: Page, at_least: int = 3) -> None:
    expect(page.locator("[data-streaming=true]")).to_be_visible()
    page.wait_for_function(
        "n => (document.querySelector('[data-streaming=true] [data-testid=markdown]')?.innerText ?? '')"
        ".split(/\\s+/).length > n",
        arg=at_least,
    )


def complete(page: Page) -> None:
    expect(page.get_by_test_id("status")).to_contain_text("Complete")
    expect(page.locator("[data-streaming=true]")).to_have_count(0)
