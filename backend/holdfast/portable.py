"""Sessions as files: the journal line by line, the state, or a text to read; and back again."""

import json
import re
from typing import Any

import msgspec

from holdfast.clock import new_id, parse_rfc3339
from holdfast.domain import events as ev
from holdfast.domain.actions import Action
from holdfast.domain.errors import InvalidRequest
from holdfast.domain.transcript import Transcript
from holdfast.domain.users import User
from holdfast.store import copies, sessions
from holdfast.store.database import Database
from holdfast.store.journal import Journal

FORMATS = {
    "jsonl": ("jsonl", "application/x-ndjson"),
    "json": ("json", "application/json"),
    "markdown": ("md", "text/markdown; charset=utf-8"),
}
_HEADER = "holdfast.session.v1"


async def export(database: Database, journal: Journal, row: sessions.Row, kind: str) -> str:
    """A session as text in one of `FORMATS`."""
    records = await _all(journal, row["id"])
    if kind == "jsonl":
        head = {"format": _HEADER, "session": sessions.body(row), "epoch": database.epoch}
        lines = [msgspec.json.encode(head).decode()]
        lines += [
            f'{{"seq":{record.seq},"run":{json.dumps(record.run)},"ts":"{record.ts}","event":{record.data}}}'
            for record in records
        ]
        return "\n".join(lines) + "\n"
    transcript = Transcript(row["id"])
    transcript.apply_all(records)
    state = transcript.snapshot()
    if kind == "json":
        return msgspec.json.encode({"session": sessions.body(row), **state}).decode()
    return markdown(row["title"], transcript)


async def load(database: Database, user: User, text: str) -> str:
    """A new session of `user` from an exported journal; its id. Messages and runs get new ids.

    Raises:
        InvalidRequest: it is no exported journal, or a run in it has not ended.
    """
    head, records = _parse(text)
    session = new_id()
    names: dict[str, str] = {str(head["id"]): session}
    for record in records:
        if record.run is not None:
            names.setdefault(record.run, new_id())
    for name in _message_ids(records):
        names.setdefault(name, new_id())
    renamed = [_rename(record, names) for record in records]
    transcript = Transcript(session)
    transcript.apply_all(renamed)
    transcript.settle()
    if transcript.active_run is not None:
        raise InvalidRequest("A run of this session has not ended; export it afterwards")
    await database.transact(lambda tx: copies.write(tx, user, head, renamed, transcript))
    return session


async def _all(journal: Journal, session: str) -> list[ev.Recorded]:
    records: list[ev.Recorded] = []
    while found := await journal.read(session, records[-1].seq if records else 0, 4096):
        records += found
    return records


def markdown(title: str, transcript: Transcript) -> str:
    """A conversation as a text to read."""
    parts = [f"# {title or 'Untitled'}\n"]
    for message in transcript.messages:
        who = "You" if message.role == "user" else "Assistant"
        flags = [name for name in ("cancelled", "has_error", "interrupted") if message.metadata.get(name)]
        note = f" ({', '.join(flags).replace('has_error', 'failed')})" if flags else ""
        parts.append(f"## {who}{note}\n\n*{message.created_at}*\n")
        start = 0
        for action in sorted(message.actions, key=lambda action: action.offset or 0):
            place = max(start, action.offset or 0)
            parts += [message.content[start:place], _action(action)]
            start = place
        parts.append(message.content[start:])
    return "\n".join(part for part in parts if part.strip()) + "\n"


def _action(action: Action) -> str:
    """An action as Markdown: what was called with what, how it went, and what it gave."""
    args = json.dumps(action.input, ensure_ascii=False)
    output = str(action.output or action.live).rstrip("\n")
    code = f", exit code {action.exit_code}" if action.exit_code is not None else ""
    title = f"**{action.type}** {_fenced(args, inline=True)}: {action.outcome or 'waits for an answer'}{code}\n"
    return f"\n{title}" + (f"\n{_fenced(output)}\n" if output else "")


def _fenced(text: str, *, inline: bool = False) -> str:
    """The text as code, in more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    if inline:
        fence = "`" * (longest + 1)
        return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _parse(text: str) -> tuple[dict[str, Any], list[ev.Recorded]]:
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        head = json.loads(lines[0])
        if head["format"] != _HEADER:
            raise ValueError
        records: list[ev.Recorded] = []
        for place, line in enumerate(lines[1:], start=1):
            raw = msgspec.json.decode(line, type=_Line)
            if raw.seq != place:
                raise ValueError
            parse_rfc3339(raw.ts)
            ev.decode(bytes(raw.event))
            records.append(ev.Recorded(raw.seq, raw.run, raw.ts, bytes(raw.event).decode()))
        return dict(head["session"]), records
    except (ValueError, KeyError, TypeError, IndexError, msgspec.DecodeError):
        raise InvalidRequest("This is not a journal that `holdfast export --format jsonl` wrote") from None


class _Line(msgspec.Struct):
    seq: int
    run: str | None
    ts: str
    event: msgspec.Raw


def _message_ids(records: list[ev.Recorded]) -> list[str]:
    found: list[str] = []
    for record in records:
        event = ev.decode(record.data)
        if isinstance(event, ev.RunStarted):
            found += [message.id for message in event.input.messages]
        elif isinstance(event, ev.TextMessageStart):
            found.append(event.message_id)
    return found


def _rename(record: ev.Recorded, names: dict[str, str]) -> ev.Recorded:
    def walk(value: Any) -> Any:
        if isinstance(value, str):
            head, colon, tail = value.partition(":")
            return names.get(head, head) + colon + tail if head in names else value
        if isinstance(value, dict):
            pairs: Any = value.items()
            return {key: part if key in ("delta", "content") else walk(part) for key, part in pairs}
        if isinstance(value, list):
            parts: list[Any] = value
            return [walk(part) for part in parts]
        return value

    event = walk(json.loads(record.data))
    if event["type"] == "TOOL_CALL_RESULT" and isinstance(told := (event.get("metadata") or {}).get("action"), dict):
        told.pop("link", None)  # The whole output is no part of an export.
    data = msgspec.json.encode(event).decode()
    return ev.Recorded(record.seq, names.get(record.run or ""), record.ts, data)
