"""What a person sees of actions, decides about them, and stops, in a real Chromium."""

import os
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.page import AXE, complete, say
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(120)]

SHOTS = os.environ.get("SCREENSHOTS")


def shoot(page: Page, name: str) -> None:
    """Keep a picture for a person to look at, when a folder for them is named."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def action(page: Page, place: int = -1) -> Locator:
    found = page.get_by_test_id("action")
    return found.last if place == -1 else found.nth(place)


def status(page: Page, words: str, place: int = -1) -> None:
    expect(action(page, place).get_by_test_id("action-status")).to_have_text(words)


def approval(page: Page) -> Locator:
    return page.get_by_test_id("approval")


class TestActions:
    """From the moment they start."""

    def test_one_is_there_while_it_runs_with_live_output_and_time(self, page: Page) -> None:
        say(page, "run echo first; sleep 2; echo second; exit 3")
        status(page, "running")
        expect(action(page)).to_have_attribute("data-type", "bash")
        expect(action(page)).to_contain_text("echo first; sleep 2")
        expect(action(page).get_by_test_id("output")).to_contain_text("first")
        expect(action(page).get_by_test_id("output")).not_to_contain_text("second")
        expect(action(page).get_by_test_id("elapsed")).to_have_text(re.compile(r"^[01] s$"))
        shoot(page, "action-running")
        status(page, "failed")
        expect(action(page).get_by_test_id("exit")).to_have_text("exit 3")
        expect(action(page).get_by_test_id("output")).to_contain_text("second")
        expect(action(page).get_by_test_id("elapsed")).to_have_text(re.compile(r"^2\.\d s$"))
        complete(page)
        shoot(page, "action-failed")

    def test_a_reload_and_a_second_tab_show_it_where_it_stands(self, page: Page) -> None:
        say(page, "run echo first; sleep 3; echo second")
        expect(action(page).get_by_test_id("output")).to_contain_text("first")
        page.reload()
        status(page, "running")
        expect(action(page).get_by_test_id("output")).to_contain_text("first")
        second = page.context.new_page()
        second.goto(page.url)
        expect(action(second).get_by_test_id("output")).to_contain_text("first")
        for tab in (page, second):
            status(tab, "done")
            expect(action(tab).get_by_test_id("output")).to_contain_text("second")

    def test_long_output_folds_and_all_of_it_can_be_had(self, page: Page) -> None:
        say(page, "run seq 1 100000")
        status(page, "done")
        shown = action(page).get_by_test_id("output")
        assert len(shown.inner_text()) < 60_000
        shoot(page, "action-long")
        with page.context.expect_page() as opened, page.expect_download() as download:
            action(page).get_by_role("link", name="Whole output").click()
        text = Path(download.value.path()).read_text() if download else opened.value.content()
        assert text.split() == [str(n) for n in range(1, 100_001)]

    def test_one_very_long_line_and_strange_bytes_do_not_freeze_the_page(self, page: Page) -> None:
        say(page, r"run head -c 3000000 /dev/zero | tr '\0' x; echo; printf '\033[31mred\033[0m \x00\xff <b>bold</b>'")
        status(page, "done")
        began = time.monotonic()
        page.evaluate("() => new Promise(requestAnimationFrame)")
        assert time.monotonic() - began < 2
        expect(action(page).get_by_test_id("output")).to_contain_text("<b>bold</b>")
        assert action(page).locator("b").count() == 0

    def test_a_written_file_shows_its_diff(self, page: Page) -> None:
        say(page, "write notes.txt one")
        expect(action(page).get_by_test_id("diff")).to_contain_text("one")
        say(page, "write notes.txt two")
        expect(page.get_by_test_id("action")).to_have_count(2)
        diff = action(page).get_by_test_id("diff")
        expect(diff).to_contain_text("one")
        expect(diff).to_contain_text("two")
        shoot(page, "action-diff")

    def test_files_can_be_looked_at_and_downloaded(self, page: Page) -> None:
        say(page, "write a/b/notes.txt <b>text</b>\nrun head -c 10 /dev/urandom > raw.bin")
        complete(page)
        page.get_by_role("button", name="Files").click()
        names = page.get_by_test_id("file")
        expect(names).to_have_count(2)
        shoot(page, "files")
        names.filter(has_text="a").first.get_by_role("button").first.click()
        names.filter(has_text="b").first.get_by_role("button").first.click()
        names.filter(has_text="notes.txt").get_by_role("button").first.click()
        expect(page.get_by_test_id("file-text")).to_have_text("<b>text</b>\n")
        shoot(page, "file")

    def test_what_the_agent_got_wrong_is_shown(self, page: Page) -> None:
        say(page, "read ../../etc/passwd")
        status(page, "failed")
        expect(action(page).get_by_test_id("output")).not_to_contain_text("root:")
        complete(page)


class TestApprovals:
    """A person decides."""

    def test_allow_once(self, page: Page) -> None:
        say(page, "ask echo allowed")
        expect(approval(page)).to_contain_text("bash")
        expect(approval(page)).to_contain_text("echo allowed")
        expect(approval(page).get_by_test_id("countdown")).to_contain_text("left")
        status(page, "waits for your approval")
        expect(page.locator("[data-testid=session][data-waiting=true]")).to_have_count(1)
        shoot(page, "approval")
        approval(page).get_by_role("button", name="Allow once").click()
        status(page, "done")
        expect(action(page).get_by_test_id("output")).to_contain_text("allowed")
        expect(approval(page)).to_have_count(0)
        complete(page)
        expect(page.locator("[data-testid=session][data-waiting=true]")).to_have_count(0)
        shoot(page, "approved")

    def test_deny_with_a_reason(self, page: Page) -> None:
        say(page, "ask echo denied")
        approval(page).get_by_label("Why not").fill("not today")
        shoot(page, "approval-denial")
        approval(page).get_by_role("button", name="Deny").click()
        status(page, "denied")
        expect(action(page)).to_contain_text("not today")
        complete(page)

    def test_always_asks_no_more_in_this_session(self, page: Page) -> None:
        say(page, "ask echo one\nask echo two")
        approval(page).get_by_role("button", name=re.compile("Always allow bash")).click()
        expect(page.get_by_test_id("action")).to_have_count(2)
        status(page, "done", 0)
        status(page, "done", 1)
        complete(page)

    def test_edited_arguments(self, page: Page) -> None:
        say(page, "ask echo before")
        approval(page).get_by_role("button", name="Edit arguments").click()
        field = approval(page).get_by_label("Arguments as JSON")
        field.fill("{")
        expect(approval(page).get_by_role("alert")).to_be_visible()
        expect(approval(page).get_by_role("button", name="Allow with these")).to_be_disabled()
        shoot(page, "approval-edit-wrong")
        field.fill('{"command": "echo after"}')
        approval(page).get_by_role("button", name="Allow with these").click()
        expect(action(page).get_by_test_id("output")).to_contain_text("after")
        status(page, "done")

    def test_another_tab_decides_and_a_restart_changes_nothing(self, page: Page, server: ServerProcess) -> None:
        say(page, "ask echo survived")
        expect(approval(page)).to_be_visible()
        server.kill9()
        expect(page.get_by_test_id("banner")).to_be_visible()
        server.start()
        expect(page.get_by_test_id("banner")).to_have_count(0)
        second = page.context.new_page()
        second.goto(page.url)
        approval(second).get_by_role("button", name="Allow once").click()
        status(page, "done")
        expect(approval(page)).to_have_count(0)
        expect(action(page).get_by_test_id("output")).to_contain_text("survived")

    def test_a_message_while_it_waits_is_in_the_queue(self, page: Page) -> None:
        say(page, "ask echo first")
        expect(approval(page)).to_be_visible()
        say(page, "fast 3")
        expect(page.get_by_text("fast 3").first).to_be_visible()
        shoot(page, "approval-queue")
        approval(page).get_by_role("button", name="Allow once").click()
        status(page, "done")
        expect(page.locator("[data-testid=message][data-role=assistant]")).to_have_count(3)
        complete(page)

    def test_stop_while_it_waits(self, page: Page) -> None:
        say(page, "ask echo never")
        expect(approval(page)).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        status(page, "stopped")
        expect(approval(page)).to_have_count(0)

    def test_a_question_is_answered_by_keys_alone(self, page: Page) -> None:
        say(page, "ask echo keys")
        expect(approval(page)).to_be_visible()
        page.keyboard.press("Alt+A")
        expect(approval(page)).to_be_focused()
        allow = approval(page).get_by_role("button", name="Allow once")
        for _ in range(3):
            page.keyboard.press("Tab")
            if allow.evaluate("button => button === document.activeElement"):
                break
        page.keyboard.press("Enter")
        status(page, "done")


class TestStop:
    """What was stopped, and how fast."""

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            ("exec sleep 300", r"Stopped in \d+ ms · 1 process ended\."),
            ("trap '' TERM; while :; do sleep 0.1; done", r"Stopped in \d\.\d s · 1 process ended \(1 killed\)\."),
        ],
        ids=["obeys", "ignores"],
    )
    def test_a_command_is_gone_when_the_page_says_so(self, page: Page, command: str, words: str) -> None:
        tag = f"page-{os.getpid()}-{time.monotonic_ns()}"
        say(page, f"run exec -a {tag} bash -c 'echo begun; {command.replace(chr(39), chr(34))}' {tag}")
        expect(action(page).get_by_test_id("output")).to_contain_text("begun")
        page.reload()
        expect(action(page).get_by_test_id("output")).to_contain_text("begun")
        page.keyboard.press("Escape")
        expect(page.get_by_test_id("cut")).to_contain_text(re.compile(words))
        assert not [p for p in psutil.process_iter(["cmdline"]) if tag in " ".join(p.info["cmdline"] or [])]
        status(page, "stopped")
        shoot(page, f"stopped-{'killed' if 'killed' in words else 'obeyed'}")
        page.reload()
        expect(page.get_by_test_id("cut")).to_contain_text(re.compile(words))

    def test_a_crash_in_the_middle_is_said(self, page: Page, server: ServerProcess) -> None:
        say(page, "run echo begun; sleep 300")
        expect(action(page).get_by_test_id("output")).to_contain_text("begun")
        server.kill9()
        server.start()
        status(page, "interrupted")
        expect(action(page)).to_contain_text("not known")
        expect(action(page).get_by_test_id("output")).to_contain_text("begun")
        shoot(page, "interrupted")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_actions_and_approvals(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    say(page, "write a.txt one\nrun echo hello; exit 2\nask rm -rf a.txt")
    expect(approval(page)).to_be_visible()
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then((result) => result.violations.map((one) => one.id))")
    shoot(page, f"axe-{scheme}")
    assert found == []


def test_a_server_without_a_sandbox_says_so(browser: Any, make_server: Any) -> None:
    server = make_server("--sandbox", "off")
    page = browser.new_context(base_url=server.base_url).new_page()
    page.goto("/")
    say(page, "run echo open")
    expect(approval(page)).to_contain_text("not confined")
    expect(approval(page).get_by_role("button", name=re.compile("Always"))).to_have_count(0)
    shoot(page, "unconfined")
    approval(page).get_by_role("button", name="Allow once").click()
    status(page, "done")
    page.context.close()
