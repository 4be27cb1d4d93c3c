"""The messages of runs: made, placed, folded; and the event that begins a run with what was said."""

from typing import Any

import msgspec
from sqlalchemy import RowMapping, insert, select, text, update

from holdfast.domain import events as ev
from holdfast.domain.errors import LeaseLost
from holdfast.domain.tasks import ACTIVE
from holdfast.domain.transcript import fresh_metadata
from holdfast.store import actions
from holdfast.store.actions import Owner
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.tables import messages, tasks


async def checkpoint(
    tx: Tx, run: str, attempt: int, message: str, tail: str, metadata: dict[str, Any], seq: int
) -> None:
    """Fold what was said through `seq` into the message's row, so that a read stays cheap.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    owned = select(tasks.c.id).where(tasks.c.id == run, tasks.c.attempt == attempt, tasks.c.state.in_(ACTIVE))
    done = await tx.conn.execute(
        update(messages)
        .where(messages.c.id == message, messages.c.content_seq < seq, owned.exists())
        .values(content=messages.c.content + tail, content_seq=seq, metadata=metadata)
    )
    if done.rowcount == 0:
        folded = await tx.conn.scalar(select(messages.c.content_seq).where(messages.c.id == message))
        if folded != seq:  # Else an earlier try was committed after all.
            raise LeaseLost(f"run {run} attempt {attempt} is over")


async def note(tx: Tx, owner: Owner, message: str, event: ev.Custom, key: str) -> list[ev.Recorded]:
    """Tell something of an active run, and keep it as `key` in the metadata of its message.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    await actions.own(tx, owner)
    known = await tx.conn.scalar(select(messages.c.metadata).where(messages.c.id == message))
    await tx.conn.execute(
        update(messages).where(messages.c.id == message).values(metadata={**(known or {}), key: event.value})
    )
    return await tx.append(owner.session, [(owner.run, owner.attempt, event)])


async def insert_one(
    tx: Tx, session: str, run: str, message: str, role: str, content: str, seq: int | None = None
) -> None:
    """A message; one of a user has no `seq` as long as its run waits."""
    streaming = role == "assistant"
    await tx.conn.execute(
        insert(messages).values(
            id=message,
            session_id=session,
            task_id=run,
            role=role,
            content=content,
            content_seq=0,
            streaming=int(streaming),
            metadata=fresh_metadata(streaming=streaming),
            seq=seq,
            created_at=tx.now,
        )
    )


async def prompt_of(tx: Tx, task: RowMapping) -> str:
    """What the user wrote that a run answers; empty for one that goes on."""
    if task["input_message_id"] is None:
        return ""
    content = select(messages.c.content).where(messages.c.id == task["input_message_id"])
    return await tx.conn.scalar(content) or ""


def started_event(task: RowMapping, prompt: str, agent: str | None) -> ev.RunStarted:
    """The event that begins a run, with the user's message; without an agent, of one that never ran."""
    session, run = task["session_id"], task["id"]
    said: tuple[ev.UserMessage, ...] = ()
    if task["input_message_id"] is not None:
        said = (ev.UserMessage(task["input_message_id"], prompt),)
    metadata: dict[str, Any] = {"attempt": task["attempt"] + 1}
    if agent is not None:
        metadata |= {"message": task["message_id"], "agent": agent}
    return ev.RunStarted(
        thread_id=session,
        run_id=run,
        input=ev.RunInput(session, run, said),
        parent_run_id=task["parent_task_id"] or msgspec.UNSET,
        metadata=metadata,
    )


async def take_place(tx: Tx, task: RowMapping, seq: int) -> None:
    """Put the user's message into the conversation, at the event that did so."""
    if task["input_message_id"] is not None:
        await tx.conn.execute(
            update(messages)
            .where(messages.c.id == task["input_message_id"])
            .values(seq=seq, created_at=tx.now, task_id=task["id"])
        )


_TAIL = {
    "sqlite": """
        SELECT group_concat(json_extract(e.data, '$.delta'), '')
        FROM (SELECT data FROM events, (SELECT * FROM messages WHERE id = :id) m
              WHERE events.session_id = m.session_id AND events.seq > m.content_seq
                AND events.task_id = m.task_id AND events.type = 'TEXT_MESSAGE_CONTENT'
              ORDER BY events.seq) e
    """,
    "postgresql": """
        SELECT string_agg(e.data::json ->> 'delta', '' ORDER BY e.seq)
        FROM events e JOIN messages m ON m.id = :id AND e.session_id = m.session_id
        WHERE e.seq > m.content_seq AND e.task_id = m.task_id AND e.type = 'TEXT_MESSAGE_CONTENT'
    """,
}


async def tail(conn: Connection, message_id: str) -> str:
    """The text that a message's row does not hold yet, joined by the database."""
    return await conn.scalar(text(_TAIL[conn.dialect.name]), {"id": message_id}) or ""
