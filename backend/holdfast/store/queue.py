"""The queue of a session: the messages that wait, and their reordering, editing and removal.

A run that goes on from another has no message and is no item; it goes before all of them.

Every change names the version of the item that it is based on; what has started or changed since is
answered with `Conflict` and the queue as it is.
"""

from typing import Any

from sqlalchemy import RowMapping, delete, select, update

from holdfast.clock import rfc3339
from holdfast.domain import events as ev
from holdfast.domain.errors import Conflict, InvalidRequest
from holdfast.domain.tasks import TERMINAL, CancellationStatus, TaskState, UiStatus
from holdfast.domain.transcript import QueueItem
from holdfast.domain.users import User
from holdfast.store import sessions
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.tables import messages, tasks
from holdfast.store.tables import sessions as sessions_table


async def read(conn: Connection, session: str) -> list[QueueItem]:
    """The messages that wait in a session, first in line first."""
    statement = (
        select(tasks.c.id, tasks.c.version, messages.c.content, tasks.c.user_id, tasks.c.created_at)
        .join(messages, messages.c.id == tasks.c.input_message_id)
        .where(tasks.c.session_id == session, tasks.c.state == TaskState.PENDING, tasks.c.started_at.is_(None))
        .order_by(tasks.c.place, tasks.c.id)
    )
    rows = await conn.execute(statement)
    return [
        QueueItem(row[0], row[1], row[2], row[3], rfc3339(row[4]), position)
        for position, row in enumerate(rows, start=1)
    ]


async def move(tx: Tx, user: User, session: str, task: str, version: int, position: int) -> list[QueueItem]:
    """Put an item at `position` (from 1); beyond the end is the end.

    Raises:
        SessionNotFound, Conflict.
    """
    line = await _line(tx, user, session)
    item = await _based_on(tx, session, line, task, version)
    line.remove(item)
    line.insert(position - 1, item)
    return await _rearrange(tx, session, line, {task})


async def swap(
    tx: Tx, user: User, session: str, task: str, version: int, other: str, other_version: int
) -> list[QueueItem]:
    """Exchange the places of two items, priorities with them.

    Raises:
        SessionNotFound, Conflict.
        InvalidRequest: both are the same.
    """
    if task == other:
        raise InvalidRequest("An item cannot be exchanged with itself", field="with")
    line = await _line(tx, user, session)
    one = await _based_on(tx, session, line, task, version)
    two = await _based_on(tx, session, line, other, other_version)
    a, b = line.index(one), line.index(two)
    line[a], line[b] = two, one
    for row, priority in ((one, two["priority"]), (two, one["priority"])):
        await tx.conn.execute(update(tasks).where(tasks.c.id == row["id"]).values(priority=priority))
    return await _rearrange(tx, session, line, {task, other})


async def edit(tx: Tx, user: User, session: str, task: str, version: int, content: str) -> list[QueueItem]:
    """Change what a waiting message says.

    Raises:
        SessionNotFound, Conflict.
    """
    line = await _line(tx, user, session)
    item = await _based_on(tx, session, line, task, version)
    await tx.conn.execute(update(messages).where(messages.c.id == item["input_message_id"]).values(content=content))
    return await _rearrange(tx, session, line, {task}, tell_items=True)


async def remove(tx: Tx, user: User, session: str, task: str, version: int) -> list[QueueItem]:
    """Take a message out of the queue, and out of the conversation.

    Raises:
        SessionNotFound, Conflict.
    """
    line = await _line(tx, user, session)
    item = await _based_on(tx, session, line, task, version)
    values: dict[str, Any] = {
        "state": TaskState.CANCELED,
        "cancellation_status": CancellationStatus.CANCELLED,
        "cancel_requested_at": tx.now,
        "cancel_requested_by": user.id,
        "ended_at": tx.now,
        "last_updated": tx.now,
    }
    await tx.conn.execute(update(tasks).where(tasks.c.id == task).values(**values))
    await tx.conn.execute(delete(messages).where(messages.c.id == item["input_message_id"]))
    line.remove(item)
    left = select(tasks.c.id).where(tasks.c.session_id == session, tasks.c.state.not_in(TERMINAL)).limit(1)
    if not line and await tx.conn.scalar(left) is None:
        idle = {"ui_status": UiStatus.IDLE}
        await tx.conn.execute(update(sessions_table).where(sessions_table.c.id == session).values(**idle))
    return await _rearrange(tx, session, line, set(), removed=[task])


async def _line(tx: Tx, user: User, session: str) -> list[RowMapping]:
    await sessions.lock(tx, user, session)
    statement = (
        select(tasks)
        .where(tasks.c.session_id == session, tasks.c.state == TaskState.PENDING, tasks.c.started_at.is_(None))
        .where(tasks.c.input_message_id.is_not(None))
        .order_by(tasks.c.place, tasks.c.id)
        .with_for_update()
    )
    return list((await tx.conn.execute(statement)).mappings())


async def _based_on(tx: Tx, session: str, line: list[RowMapping], task: str, version: int) -> RowMapping:
    found = next((row for row in line if row["id"] == task and row["version"] == version), None)
    if found is None:
        raise Conflict("It has started or changed", current=await read(tx.conn, session))
    return found


async def _rearrange(
    tx: Tx,
    session: str,
    line: list[RowMapping],
    changed: set[str],
    *,
    tell_items: bool = False,
    removed: list[str] | None = None,
) -> list[QueueItem]:
    for place, row in enumerate(line):
        version = row["version"] + (row["id"] in changed)
        if (place, version) != (row["place"], row["version"]):
            values = {"place": place, "version": version, "last_updated": tx.now}
            await tx.conn.execute(update(tasks).where(tasks.c.id == row["id"]).values(**values))
    items = await read(tx.conn, session)
    value: dict[str, Any] = {"order": [{"task": item.task, "version": item.version} for item in items]}
    if tell_items:
        names = ("task", "version", "content", "by", "created_at")
        value["items"] = [{name: getattr(item, name) for name in names} for item in items if item.task in changed]
    if removed:
        value["removed"] = removed
    await tx.append(session, [(None, 0, ev.Custom(name="queue.changed", value=value))])
    return items


async def standing(tx: Tx, session: str) -> tuple[list[RowMapping], list[RowMapping]]:
    """The session's tasks that wait, first in line first, and those that are active."""
    statement = (
        select(tasks)
        .where(tasks.c.session_id == session, tasks.c.state.not_in(TERMINAL))
        .order_by(tasks.c.place, tasks.c.id)
        .with_for_update()
    )
    rows = (await tx.conn.execute(statement)).mappings().all()
    return [row for row in rows if row["node_id"] is None], [row for row in rows if row["node_id"] is not None]


def next_place(waiting: list[RowMapping], *, first: bool) -> int:
    """The place of one more in the line: before all that has not started, or behind it."""
    fresh = [row["place"] for row in waiting if row["started_at"] is None]
    if not fresh:
        return 0
    return min(fresh) - 1 if first else max(fresh) + 1
