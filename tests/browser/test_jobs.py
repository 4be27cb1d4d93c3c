"""The page of jobs, in a real Chromium against the real server."""

import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.jobs import alive, new_tag
from tests.support.page import AXE
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(120)]

SHOTS = os.environ.get("SCREENSHOTS")


def shoot(page: Page, name: str) -> None:
    """Keep a picture for a person to look at, when a folder for them is named."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def jobs(page: Page, status: str) -> Locator:
    return page.locator(f"[data-testid=job][data-status={status}]")


def submit(page: Page, command: str, **options: Any) -> None:
    if options and not page.get_by_label("Name").is_visible():
        page.get_by_text("Options").click()
    for label, value in options.items():
        page.get_by_label(label.capitalize()).fill(str(value))
    page.get_by_label("Command").fill(command)
    page.get_by_role("button", name="Submit").click()


def status(page: Page) -> Locator:
    return page.get_by_test_id("job-status")


def output(page: Page) -> Locator:
    return page.get_by_test_id("job-output")


@pytest.fixture
def page_of_jobs(page: Page) -> Page:
    page.get_by_role("button", name="Jobs").click()
    expect(page).to_have_url(re.compile(r"/jobs$"))
    expect(page.get_by_text("No jobs in this queue yet.")).to_be_visible()
    return page


def test_a_job_is_seen_from_its_submission_to_its_end(page_of_jobs: Page) -> None:
    page = page_of_jobs
    submit(page, "for n in 1 2 3; do echo line $n; sleep 1; done; echo oops >&2; exit 3", name="Count")
    expect(jobs(page, "running")).to_contain_text("Count")
    expect(output(page)).to_contain_text("line 1")
    expect(output(page)).not_to_contain_text("line 3")
    shoot(page, "job-running")
    expect(output(page).locator(".stderr")).to_have_text("oops\n")
    expect(status(page)).to_contain_text("Exited with code 3")
    expect(jobs(page, "failed")).to_contain_text("Count")
    shoot(page, "job-failed")


def test_a_reload_shows_the_same_job_with_all_its_output(page_of_jobs: Page) -> None:
    page = page_of_jobs
    submit(page, "echo first; sleep 1.5; echo second")
    expect(output(page)).to_contain_text("first")
    page.reload()
    expect(output(page)).to_contain_text("first")
    expect(output(page)).to_contain_text("second")
    expect(output(page)).to_have_text("first\nsecond\n")
    expect(status(page)).to_contain_text("completed")


def test_the_queue_shows_places_and_is_reordered(page_of_jobs: Page) -> None:
    page = page_of_jobs
    submit(page, f"sleep {new_tag()}", name="blocker")
    expect(jobs(page, "running")).to_have_count(1)
    for name in ("one", "two", "three"):
        submit(page, "true", name=name)
        expect(jobs(page, "queued").filter(has_text=name)).to_be_visible()
    expect(jobs(page, "queued").nth(2)).to_contain_text("position 3")
    page.get_by_role("button", name="Move three up").click()
    expect(jobs(page, "queued").nth(1)).to_contain_text("three")
    expect(jobs(page, "queued").nth(1)).to_contain_text("position 2")
    shoot(page, "job-queue")
    jobs(page, "running").get_by_role("button").first.click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(jobs(page, "completed")).to_have_count(3)


def test_cancel_ends_the_process_and_run_again_runs_it_again(page_of_jobs: Page) -> None:
    page, tag = page_of_jobs, new_tag()
    submit(page, f"trap '' TERM; echo ready; while :; do sleep {tag} & wait; done")
    expect(output(page)).to_contain_text("ready")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("button", name="Stopping…")).to_be_visible()
    shoot(page, "job-stopping")
    expect(status(page)).to_contain_text("cancelled")
    assert not alive(tag)
    page.get_by_role("button", name="Run again").click()
    expect(jobs(page, "running")).to_have_count(1)
    expect(output(page)).to_contain_text("ready")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(jobs(page, "cancelled")).to_have_count(2)


def test_more_run_at_once_when_the_limit_is_raised(page_of_jobs: Page) -> None:
    page, tag = page_of_jobs, new_tag()
    for _ in range(2):
        submit(page, f"sleep {tag}")
    expect(jobs(page, "queued")).to_have_count(1)
    page.get_by_role("button", name="More at once").click()
    expect(page.get_by_test_id("max-running")).to_have_text("2")
    expect(jobs(page, "running")).to_have_count(2)
    expect(page.get_by_role("button", name="Fewer at once")).to_be_enabled()


def test_a_queue_of_ones_own(page_of_jobs: Page) -> None:
    page = page_of_jobs
    page.get_by_label("New queue").fill("gpu")
    page.keyboard.press("Enter")
    expect(page.get_by_role("combobox", name="Queue")).to_have_value("gpu")
    submit(page, "echo in the other queue")
    expect(jobs(page, "completed")).to_have_count(1)
    page.get_by_role("combobox", name="Queue").select_option("default")
    expect(page.get_by_text("No jobs in this queue yet.")).to_be_visible()
    page.get_by_label("New queue").fill("not a name")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("must be 1 to 100 letters")


def test_what_is_wrong_with_a_job_is_told_where_it_is_asked_for(page_of_jobs: Page) -> None:
    page = page_of_jobs
    page.route("**/api/jobs", lambda route: route.continue_(post_data='{"command": ["nope"]}'))
    submit(page, "nope")
    expect(page.get_by_role("alert")).to_contain_text("there is no program 'nope'")
    expect(page.get_by_label("Command")).to_have_value("nope")


def test_a_restart_of_the_server_is_survived(page_of_jobs: Page, server: ServerProcess) -> None:
    page = page_of_jobs
    page.get_by_text("Options").click()
    page.get_by_label("goes on when the service restarts").check()
    submit(page, "for n in $(seq 1 30); do echo tick $n; sleep 0.2; done")
    expect(output(page)).to_contain_text("tick 2")
    server.kill9()
    server.start()
    expect(output(page)).to_contain_text("tick 30", timeout=30_000)
    assert output(page).inner_text().split("\n")[:30] == [f"tick {n}" for n in range(1, 31)]
    expect(status(page)).to_contain_text("completed")


def test_a_flood_of_output_does_not_freeze_the_page(page_of_jobs: Page) -> None:
    page = page_of_jobs
    submit(page, "head -c 20000000 /dev/zero | tr '\\0' x | fold -w 100; echo; echo the end")
    expect(status(page)).to_contain_text("completed", timeout=30_000)
    expect(output(page)).to_contain_text("the end")
    assert len(output(page).inner_text()) <= 210_000


def test_nobody_is_shut_out(page_of_jobs: Page) -> None:
    page = page_of_jobs
    submit(page, "echo hello; exit 1", name="fails")
    expect(status(page)).to_contain_text("Exited with code 1")
    page.evaluate(AXE.read_text())
    for theme in ("light", "dark"):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        found = page.evaluate("() => axe.run()")["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
        shoot(page, f"jobs-{theme}")


def test_on_a_narrow_screen_a_job_takes_the_page(page_of_jobs: Page) -> None:
    page = page_of_jobs
    page.set_viewport_size({"width": 400, "height": 800})
    submit(page, "echo hello")
    expect(output(page)).to_contain_text("hello")
    expect(page.get_by_label("Command")).to_be_hidden()
    shoot(page, "job-narrow")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_label("Command")).to_be_visible()
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 400


def test_the_chat_and_its_address_are_still_there(page_of_jobs: Page, server: ServerProcess) -> None:
    page = page_of_jobs
    page.get_by_role("button", name="New chat").click()
    expect(page).to_have_url(f"{server.base_url}/")
    expect(page.get_by_label("Message", exact=True)).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Command")).to_be_visible()
    with urllib.request.urlopen(f"{server.base_url}/jobs") as answer:
        assert answer.status == 200
    assert psutil.Process(server.pid).is_running()
