"""A session from elsewhere, written whole: its journal, and the messages and actions that it folds into."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert

from holdfast.clock import parse_rfc3339
from holdfast.domain import events as ev
from holdfast.domain.actions import Action
from holdfast.domain.transcript import Message, Transcript
from holdfast.domain.users import User
from holdfast.store import sessions
from holdfast.store.database import Tx
from holdfast.store.tables import actions, events, messages

_EXTRA = ("link", "diff", "exit_code")
_KEPT = ("title", "notes", "repository", "branch", "target_branch")


async def write(
    tx: Tx, user: User, head: dict[str, Any], records: Sequence[ev.Recorded], transcript: Transcript
) -> None:
    """A new session of `user` with these events; `transcript` is their fold, `head` the body of the original."""
    session = transcript.session
    await sessions.create(tx, user, session, {name: head.get(name) for name in _KEPT})
    of_actions = [(message, action) for message in transcript.messages for action in message.actions]
    if records:
        await tx.conn.execute(insert(events), [_event(session, record) for record in records])
    if transcript.messages:
        rows = [_message(transcript, message, place) for place, message in enumerate(transcript.messages, start=1)]
        await tx.conn.execute(insert(messages), rows)
    if of_actions:
        await tx.conn.execute(
            insert(actions), [_action(message, action, transcript.seq) for message, action in of_actions]
        )


def _event(session: str, record: ev.Recorded) -> dict[str, Any]:
    return {
        "session_id": session,
        "seq": record.seq,
        "task_id": record.run,
        "attempt": 1,
        "type": ev.event_type(ev.decode(record.data)),
        "data": record.data,
        "created_at": parse_rfc3339(record.ts),
    }


def _message(transcript: Transcript, message: Message, place: int) -> dict[str, Any]:
    return {
        "id": message.id,
        "session_id": transcript.session,
        "task_id": message.run,
        "role": message.role,
        "content": message.content,
        "content_seq": transcript.seq,
        "streaming": 0,
        "metadata": message.metadata,
        "seq": place,
        "created_at": parse_rfc3339(message.created_at),
    }


def _action(message: Message, action: Action, seq: int) -> dict[str, Any]:
    return {
        "id": action.id,
        "message_id": message.id,
        "session_id": message.session,
        "seq": seq,
        "type": action.type,
        "position": action.position,
        "offset": action.offset,
        "input": action.input,
        "output": action.output,
        "live": action.live,
        "extra": {name: value for name in _EXTRA if (value := getattr(action, name)) is not None} or None,
        "status": action.status,
        "outcome": action.outcome,
        "started_at": parse_rfc3339(action.started_at) if action.started_at else None,
        "ended_at": parse_rfc3339(action.ended_at) if action.ended_at else None,
    }
