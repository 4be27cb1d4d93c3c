"""An exported session comes back as it was: what it folds into is what the store then has."""

import json
from typing import Any

import msgspec
import pytest
from holdfast import portable
from holdfast.clock import SystemClock
from holdfast.domain.errors import InvalidRequest
from holdfast.domain.events import Recorded
from holdfast.domain.transcript import Message, Transcript
from holdfast.domain.users import User
from holdfast.store import sessions, transcripts
from holdfast.store.database import Database
from holdfast.store.journal import Journal

from tests.support.golden import FOLDER

ENDED = ["failed", "live", "plain", "strange", "thinking"]


def exported(golden: dict[str, Any]) -> str:
    """A golden journal as `holdfast export` writes it."""
    head = {"format": "holdfast.session.v1", "session": {"id": golden["session"], "title": "kept"}, "epoch": "x"}
    return "\n".join(json.dumps(line) for line in (head, *golden["events"]))


def told(messages: list[Message], *, is_copy: bool) -> list[dict[str, Any]]:
    """What the messages say and do, without what a copy has anew."""
    found: list[dict[str, Any]] = msgspec.to_builtins(messages)
    for message in found:
        for name in ("id", "session", "run"):
            message.pop(name)
        for action in message["actions"]:
            action.pop("id")
            if not is_copy:
                action["link"] = None  # The whole output is no part of an export.
    return found


@pytest.mark.parametrize("name", ENDED)
async def test_a_copy_has_the_messages_and_actions_of_the_original(database: Database, user: User, name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    session = await portable.load(database, user, exported(golden))
    rows = (await transcripts.load(database, session, 1)).transcript
    journal = Journal(database, SystemClock())
    folded = Transcript(session)
    folded.apply_all(await journal.read(session, 0, 10_000))
    assert rows.snapshot() == folded.snapshot()
    assert rows.seq == len(golden["events"])
    original = Transcript(golden["session"])
    original.apply_all([as_recorded(line) for line in golden["events"]])
    original.settle()
    assert told(rows.messages, is_copy=True) == told(original.messages, is_copy=False)
    assert any(message.actions for message in rows.messages) == (name == "live")


def as_recorded(line: dict[str, Any]) -> Recorded:
    """A line of a golden file as the journal has it."""
    return Recorded(line["seq"], line["run"], line["ts"], json.dumps(line["event"]))


async def test_a_file_that_is_no_export_changes_nothing(database: Database, user: User) -> None:
    with pytest.raises(InvalidRequest):
        await portable.load(database, user, '{"format": "holdfast.session.v1", "session": {"id": "a"}}\n{"seq": 2}')
    async with database.read() as conn:
        assert await sessions.list_for(conn, user, sessions.Filters(), None, 10) == []


def test_markdown_has_actions_where_they_happened_and_no_output_gets_out_of_its_fence() -> None:
    golden = json.loads((FOLDER / "live.json").read_text())
    transcript = Transcript(golden["session"])
    transcript.apply_all([as_recorded(line) for line in golden["events"]])
    transcript.settle()
    message = next(message for message in transcript.messages if message.actions)
    message.actions[0].output = "before\n````\n# no heading"
    written = portable.markdown("T", transcript)
    assert "\n`````\nbefore\n````\n# no heading\n`````\n" in written
    assert f"**{message.actions[0].type}**" in written
    offset = message.actions[0].offset or 0
    assert written.index(message.content[:offset].strip() or "## Assistant") < written.index("`````")
