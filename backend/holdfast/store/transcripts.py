"""Reading conversations: the rows and the journal's tail, put together as the fold would."""

from typing import Any

import msgspec
from sqlalchemy import Select, bindparam, func, or_, select, text

from holdfast.clock import rfc3339
from holdfast.domain import events as ev
from holdfast.domain.actions import Action
from holdfast.domain.tasks import ACTIVE, TERMINAL, RunStatus, TaskState, run_status
from holdfast.domain.transcript import ActiveRun, Message, Transcript
from holdfast.store import actions as actions_store
from holdfast.store import approvals, queue, texts
from holdfast.store.connection import Connection
from holdfast.store.database import Database
from holdfast.store.tables import actions, events, messages, tasks

SNAPSHOT_BYTES = 16 * 1024 * 1024
"""The most content that a snapshot carries; older messages are read over HTTP."""

_REASONING = ["REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT"]


class Stored(msgspec.Struct):
    """A session's state as the store has it at one moment; `earlier` when older messages are left out."""

    transcript: Transcript
    oldest: int
    earlier: bool


async def load(database: Database, session: str, oldest: int) -> Stored:
    """The state of a session through its last event: what the fold of its journal gives."""
    async with database.read() as conn:
        if database.dialect == "postgresql":
            await conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        head = await conn.scalar(select(func.max(events.c.seq)).where(events.c.session_id == session)) or 0
        found, earlier = await _newest(conn, session)
        transcript = Transcript(session, head, found)
        transcript.active_run = await _active_run(conn, session)
        transcript.queue = await queue.read(conn, session)
        transcript.interrupts = await approvals.open_of(conn, session)
        return Stored(transcript, oldest, earlier)


async def page(
    database: Database, session: str, after: tuple[int, str] | None, limit: int
) -> list[tuple[tuple[int, str], Message]]:
    """Messages oldest first, each with its place for the next page's cursor; those that wait come last."""
    place = func.coalesce(messages.c.seq, _LAST)
    statement = select(messages, place.label("place")).where(messages.c.session_id == session)
    if after is not None:
        behind = or_(place > after[0], (place == after[0]) & (messages.c.id > after[1]))
        statement = statement.where(behind)
    statement = statement.order_by(place, messages.c.id).limit(limit)
    async with database.read() as conn:
        rows = (await conn.execute(statement)).mappings().all()
        found = [await _message(conn, row) for row in rows]
        await _add_actions(conn, found)
    return [((row["place"], row["id"]), message) for row, message in zip(rows, found, strict=True)]


async def history(database: Database, session: str, before: str) -> list[Message]:
    """What was said in a session before the message `before`, oldest first."""
    limit = select(messages.c.seq).where(messages.c.id == before).scalar_subquery()
    statement = _TOLD.where(messages.c.seq < limit).order_by(messages.c.seq, messages.c.id)
    async with database.read() as conn:
        rows = (await conn.execute(statement, {"session": session})).mappings().all()
        found = [await _message(conn, row) for row in rows]
        await _add_actions(conn, found)
    return found


async def message(database: Database, message_id: str) -> Message | None:
    """One message as it stands at this moment, with its actions."""
    async with database.read() as conn:
        row = (await conn.execute(select(messages).filter_by(id=message_id))).mappings().first()
        if row is None:
            return None
        found = await _message(conn, row)
        await _add_actions(conn, [found])
    return found


_LAST = 2**62


_TOLD = select(messages).where(messages.c.session_id == bindparam("session"), messages.c.seq.is_not(None))


def _with_totals() -> Select[Any]:
    """What was told, oldest first, and how much content there is from each message to the newest."""
    total = func.sum(func.length(messages.c.content)).over(order_by=[messages.c.seq.desc(), messages.c.id.desc()])
    sized = _TOLD.add_columns(total.label("total")).subquery()
    return select(sized).order_by(sized.c.seq, sized.c.id)


_NEWEST = _with_totals()
"""Put together once: that takes longer than to carry it out."""


async def _newest(conn: Connection, session: str) -> tuple[list[Message], bool]:
    """The newest messages, oldest first, as many as a snapshot may carry."""
    rows = (await conn.execute(_NEWEST, {"session": session})).mappings().all()
    kept = [row for row in rows if row["total"] <= SNAPSHOT_BYTES] or list(rows[-1:])
    found = [await _message(conn, row) for row in kept]
    await _add_actions(conn, found)
    return found, len(kept) < len(rows)


async def _message(conn: Connection, row: Any) -> Message:
    content, metadata = row["content"], row["metadata"]
    if row["streaming"]:
        content += await texts.tail(conn, row["id"])
        if reasoning := await _reasoning(conn, row):
            metadata = {**metadata, "reasoning": metadata.get("reasoning", "") + reasoning}
    if row["seq"] is None:
        metadata = {**metadata, "queued": True}
    return Message(
        row["id"],
        row["session_id"],
        row["role"],
        content,
        metadata,
        rfc3339(row["created_at"]),
        row["task_id"],
        [],
    )


async def _reasoning(conn: Connection, row: Any) -> str:
    statement = (
        select(events.c.data)
        .where(
            events.c.session_id == row["session_id"],
            events.c.seq > row["content_seq"],
            events.c.task_id == row["task_id"],
            events.c.type.in_(_REASONING),
        )
        .order_by(events.c.seq)
    )
    parts: list[str] = []
    known = bool(row["metadata"].get("reasoning"))
    for data in await conn.scalars(statement):
        event = ev.decode(data)
        if isinstance(event, ev.ReasoningMessageContent):
            parts.append(event.delta)
        elif known or parts:
            parts.append("\n\n")
    return "".join(parts)


async def _add_actions(conn: Connection, found: list[Message]) -> None:
    if not found:
        return
    of = {message.id: message for message in found if message.role == "assistant"}
    statement = (
        select(actions)
        .where(actions.c.session_id == found[0].session)
        .order_by(actions.c.message_id, actions.c.position)
    )
    for row in (await conn.execute(statement)).mappings().all():
        if (owner := of.get(row["message_id"])) is not None:
            owner.actions.append(await _action(conn, row))


async def _action(conn: Connection, row: Any) -> Action:
    started, ended, extra = row["started_at"], row["ended_at"], row["extra"] or {}
    live = row["live"]
    if row["status"] == "pending":
        live = await actions_store.live_of(conn, row["session_id"], row["id"], row["seq"])
    return Action(
        row["id"],
        row["type"],
        row["position"],
        row["input"],
        row["output"],
        row["status"],
        row["outcome"],
        rfc3339(started) if started else None,
        rfc3339(ended) if ended else None,
        row["offset"],
        live,
        extra.get("link"),
        extra.get("diff"),
        extra.get("exit_code"),
    )


async def _active_run(conn: Connection, session: str) -> ActiveRun | None:
    statement = select(tasks).where(
        tasks.c.session_id == session,
        tasks.c.executor == "agent",
        tasks.c.state.not_in(TERMINAL),
        or_(tasks.c.state.in_(ACTIVE), tasks.c.started_at.is_not(None)),
    )
    row = (await conn.execute(statement)).mappings().first()
    if row is None:
        return None
    status: RunStatus = run_status(TaskState(row["state"]))
    return ActiveRun(row["id"], status, row["message_id"], row["cancellation_status"] is not None)
