"""Runs are asked for: a message is sent, an answer is continued; who may see them.

Each step of a run is one transaction that also tells the journal: see `claims`, `endings` and `cancels`.
Lock order: gates by id, the session, tasks; the journal's events come last.
"""

from typing import Any, Literal

import msgspec
from sqlalchemy import RowMapping, insert, select, update

from holdfast import tracing
from holdfast.clock import rfc3339
from holdfast.domain import events as ev
from holdfast.domain.errors import Conflict, InterruptsPending, Overloaded, RunActive, RunNotFound
from holdfast.domain.tasks import TaskState, UiStatus, run_status
from holdfast.domain.users import User, access
from holdfast.store import cancels, gates, idempotency, queue, sessions, texts
from holdfast.store.connection import Connection
from holdfast.store.database import Tx, Written
from holdfast.store.tables import sessions as sessions_table
from holdfast.store.tables import tasks

MAX_QUEUED = 100
"""The most messages that may wait in one session."""


class Sent(msgspec.Struct, frozen=True):
    """The answer to a message: its run, the message, and whether something stands before it."""

    run: str
    message: str
    state: Literal["running", "queued"]


async def visible(conn: Connection, user: User, run: str) -> RowMapping:
    """The task of a run that `user` may see.

    Raises:
        RunNotFound: there is none, or it is somebody else's.
    """
    statement = (
        select(tasks, sessions_table.c.owner, sessions_table.c.assignee)
        .join(sessions_table, sessions_table.c.id == tasks.c.session_id)
        .where(tasks.c.id == run, tasks.c.executor == "agent")
    )
    row = (await conn.execute(statement)).mappings().first()
    if row is None or access(user, owner=row["owner"], assignee=row["assignee"]) is None:
        raise RunNotFound
    return row


def body(row: RowMapping) -> dict[str, Any]:
    """A run as HTTP gives it."""
    times = {name: row[name] for name in ("created_at", "started_at", "ended_at")}
    return {
        "id": row["id"],
        "session": row["session_id"],
        "message": row["message_id"],
        "status": run_status(TaskState(row["state"])),
        "attempt": row["attempt"],
        **{name: rfc3339(moment) if moment else None for name, moment in times.items()},
        "error": row["error"],
    }


async def send(
    tx: Tx,
    user: User,
    session: str,
    content: str,
    *,
    key: str | None,
    if_busy: str,
    ids: tuple[str, str, str],
) -> tuple[Sent, bool]:
    """Accept a user's message: the message, its run, and the queue's event. (result, dup).

    `ids` are new ids for the run, the user's message and the assistant's. With `if_busy` "interrupt"
    the active run's cancel is requested in the same transaction.

    Raises:
        SessionNotFound, RunActive, Overloaded, IdempotencyConflict.
    """
    row = await sessions.lock(tx, user, session)
    wanted = idempotency.request_hash(content, if_busy)
    if (known := await idempotency.recall(tx, user.id, session, "send", key, wanted)) is not None:
        return msgspec.convert(known, Sent), True
    waiting, active = await queue.standing(tx, session)
    if (waiting or active) and if_busy == "reject":
        raise InterruptsPending if any(task["state"] == TaskState.PAUSED for task in waiting) else RunActive
    if if_busy == "interrupt":
        for task in active:
            await cancels.request_cancel(tx, task, user.id, "interrupted by a new message")
        for task in [task for task in waiting if task["started_at"] or task["input_message_id"] is None]:
            await cancels.cancel_waiting(tx, task, user.id, "interrupted by a new message", nested=False)
            waiting.remove(task)
    run, message, reply = ids
    first = if_busy == "interrupt"
    values = {
        "id": run,
        "input_message_id": message,
        "message_id": reply,
        "place": queue.next_place(waiting, first=first),
    }
    await texts.insert_one(tx, session, run, message, "user", content)
    await _enqueue(tx, user, row, values, content, waiting)
    sent = Sent(run, message, "queued" if active or (waiting and not first) else "running")
    await idempotency.remember(tx, user.id, session, "send", key, wanted, sent)
    return sent, False


async def continue_run(tx: Tx, user: User, run: str, *, key: str | None, ids: tuple[str, str]) -> tuple[Sent, bool]:
    """A new run that goes on from what `run` said before it was cut short. (result, dup).

    Raises:
        RunNotFound: no such run of this user.
        Conflict: it ended by itself, has not ended, or is not the last of its session.
    """
    session = str((await visible(tx.conn, user, run))["session_id"])
    row = await sessions.lock(tx, user, session)
    wanted = idempotency.request_hash(run)
    if (known := await idempotency.recall(tx, user.id, session, "continue", key, wanted)) is not None:
        return msgspec.convert(known, Sent), True
    task = await visible(tx.conn, user, run)
    if task["state"] not in (TaskState.FAILURE, TaskState.CANCELED) or task["started_at"] is None:
        raise Conflict("Only a run that was cut short can be continued", current=body(task))
    waiting, active = await queue.standing(tx, session)
    last = await tx.conn.scalar(
        select(tasks.c.id)
        .where(tasks.c.session_id == session, tasks.c.started_at.is_not(None))
        .order_by(tasks.c.started_at.desc(), tasks.c.id.desc())
        .limit(1)
    )
    if active or waiting or last != run:
        raise Conflict("The conversation has gone on since that run", current=body(task))
    values = {"id": ids[0], "message_id": ids[1], "parent_task_id": run, "place": 0}
    await _enqueue(tx, user, row, values, "", [])
    sent = Sent(ids[0], ids[1], "running")
    await idempotency.remember(tx, user.id, session, "continue", key, wanted, sent)
    return sent, False


async def _enqueue(
    tx: Tx, user: User, session: RowMapping, values: dict[str, Any], content: str, waiting: list[RowMapping]
) -> None:
    fresh = [row for row in waiting if row["started_at"] is None]
    if len(fresh) >= MAX_QUEUED:
        raise Overloaded(f"At most {MAX_QUEUED} messages may wait in a session", retry_after_s=1.0)
    task = {
        "executor": "agent",
        "session_id": session["id"],
        "user_id": user.id,
        "state": TaskState.PENDING,
        "priority": 0,
        "rank": values["id"],
        "traceparent": tracing.traceparent(),
        "attempt": 0,
        "version": 1,
        "created_at": tx.now,
        "last_updated": tx.now,
        **values,
    }
    await tx.conn.execute(insert(tasks).values(**task))
    await gates.name(tx, values["id"], f"session:{task['session_id']}", f"user:{task['user_id']}")
    told = await _touch_session(tx, session, content)
    if values.get("input_message_id") is not None:
        told.insert(0, _queue_changed(tx, user, values, content, fresh))
    if told:
        await tx.append(session["id"], told)


async def enqueue_first(tx: Tx, user: User, session: RowMapping, values: dict[str, Any], owner: str) -> None:
    """A run without a message of its own, of the user `owner`, before all that wait."""
    waiting, _ = await queue.standing(tx, session["id"])
    first = {**values, "user_id": owner, "place": queue.next_place(waiting, first=True)}
    await _enqueue(tx, user, session, first, "", [])


def _queue_changed(tx: Tx, user: User, values: dict[str, Any], content: str, fresh: list[RowMapping]) -> Written:
    line = [(row["place"], row["id"], row["version"]) for row in fresh if row["input_message_id"] is not None]
    order = sorted([*line, (values["place"], values["id"], 1)])
    item = {
        "task": values["id"],
        "version": 1,
        "content": content,
        "by": user.id,
        "created_at": rfc3339(tx.now),
    }
    value = {"items": [item], "order": [{"task": task, "version": version} for _, task, version in order]}
    return None, 0, ev.Custom(name="queue.changed", value=value)


async def _touch_session(tx: Tx, session: RowMapping, content: str) -> list[Written]:
    """A new message: the session is in progress, its cancel is forgotten, an untitled one is named."""
    values: dict[str, Any] = {
        "ui_status": UiStatus.IN_PROGRESS,
        "cancellation_status": None,
        "cancelled_at": None,
        "cancelled_by": None,
        "updated_at": tx.now,
    }
    told: list[Written] = []
    if not session["title"] and (title := " ".join(content.split())[:80]):
        values |= {"title": title, "version": session["version"] + 1}
        changed = ev.Custom(name="session.updated", value={"title": title, "version": values["version"]})
        told = [(None, 0, changed)]
    await tx.conn.execute(update(sessions_table).where(sessions_table.c.id == session["id"]).values(**values))
    return told
