"""Sessions: the rows, who may see them, and how they are changed."""

from typing import Any

import msgspec
from sqlalchemy import RowMapping, Select, delete, insert, literal, or_, select, tuple_, update

from holdfast.clock import parse_rfc3339, rfc3339
from holdfast.domain import events as ev
from holdfast.domain.errors import Conflict, Forbidden, InvalidRequest, RunActive, SessionNotFound
from holdfast.domain.tasks import TERMINAL, TaskState, UiStatus
from holdfast.domain.users import User, access
from holdfast.store import gates
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.tables import events, sessions, tasks, users

Row = RowMapping
"""The row of a session."""

EDITABLE = ("title", "notes", "repository", "branch", "target_branch", "sandbox", "assignee", "ui_status")


def body(row: Row) -> dict[str, Any]:
    """A session as HTTP gives it."""
    names = ("id", "owner", "title", "notes", "repository", "branch", "target_branch", "sandbox", "assignee")
    result: dict[str, Any] = {name: row[name] for name in names}
    result |= {"ui_status": row["ui_status"], "cancellation_status": row["cancellation_status"]}
    result["cancelled_at"] = rfc3339(row["cancelled_at"]) if row["cancelled_at"] else None
    result |= {"cancelled_by": row["cancelled_by"], "process_pid": row["process_pid"]}
    result["kill_failures"] = row["kill_failures"]
    result["version"] = row["version"]
    result["created_at"] = rfc3339(row["created_at"])
    result["updated_at"] = rfc3339(row["updated_at"])
    return result


async def create(tx: Tx, user: User, new_id: str, values: dict[str, Any]) -> dict[str, Any]:
    """A new session of `user`."""
    await _check_assignee(tx.conn, values.get("assignee"))
    row = {
        "title": "",
        "ui_status": UiStatus.IDLE,
        **{name: values[name] for name in EDITABLE if values.get(name) is not None},
        "id": new_id,
        "owner": user.id,
        "version": 1,
        "oldest_seq": 1,
        "created_at": tx.now,
        "updated_at": tx.now,
    }
    await tx.conn.execute(insert(sessions).values(**row))
    await gates.ensure(tx, f"session:{new_id}", 1)
    return body(await row_of(tx.conn, new_id))


async def row_of(conn: Connection, session: str) -> Row:
    """The row of a session.

    Raises:
        SessionNotFound: there is none.
    """
    row = (await conn.execute(select(sessions).filter_by(id=session))).mappings().first()
    if row is None:
        raise SessionNotFound
    return row


async def visible(conn: Connection, user: User, session: str) -> Row:
    """The row of a session that `user` may see.

    Raises:
        SessionNotFound: there is none, or it is somebody else's.
    """
    row = await row_of(conn, session)
    if access(user, owner=row["owner"], assignee=row["assignee"]) is None:
        raise SessionNotFound
    return row


async def lock(tx: Tx, user: User, session: str, *, assignee_may: bool = False) -> Row:
    """Lock the session's row for the rest of the transaction and return it.

    Raises:
        SessionNotFound: there is none, or it is somebody else's.
        Forbidden: an assignee wants what only an owner may.
    """
    row = (await tx.conn.execute(select(sessions).filter_by(id=session).with_for_update())).mappings().first()
    if row is None:
        raise SessionNotFound
    may = access(user, owner=row["owner"], assignee=row["assignee"])
    if may is None:
        raise SessionNotFound
    if may == "assignee" and not assignee_may:
        raise Forbidden("An assignee may read, cancel and write notes")
    return row


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of sessions is narrowed to."""

    ui_status: str | None = None
    cancellation_status: str | None = None
    assignee: str | None = None
    q: str | None = None


async def list_for(
    conn: Connection, user: User, filters: Filters, after: tuple[str, str] | None, limit: int
) -> list[dict[str, Any]]:
    """A user's sessions, the last changed first; an admin gets everybody's.

    `after` is the (updated_at, id) of the last one of the page before. Each tells in `waiting` whether a
    run of it waits for approval.
    """
    paused = select(tasks.c.id).where(tasks.c.session_id == sessions.c.id, tasks.c.state == TaskState.PAUSED)
    statement: Select[Any] = select(sessions, paused.exists().label("waiting"))
    if not user.is_admin:
        statement = statement.where(or_(sessions.c.owner == user.id, sessions.c.assignee == user.id))
    for name in ("ui_status", "cancellation_status", "assignee"):
        if (wanted := getattr(filters, name)) is not None:
            statement = statement.where(sessions.c[name] == wanted)
    if filters.q:
        pattern = filters.q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        statement = statement.where(sessions.c.title.ilike(f"%{pattern}%", escape="\\"))
    if after:
        moment = literal(parse_rfc3339(after[0]), sessions.c.updated_at.type)
        place = tuple_(sessions.c.updated_at, sessions.c.id)
        statement = statement.where(place < tuple_(moment, literal(after[1], sessions.c.id.type)))
    statement = statement.order_by(sessions.c.updated_at.desc(), sessions.c.id.desc()).limit(limit)
    rows = (await conn.execute(statement)).mappings()
    return [{**body(row), "waiting": bool(row["waiting"])} for row in rows]


async def edit(tx: Tx, user: User, session: str, changes: dict[str, Any], version: int | None) -> dict[str, Any]:
    """Write the named fields of a session; only those.

    Raises:
        Conflict: `version` is not the present one; `current` is the session as it is.
        Forbidden: an assignee writes more than notes.
    """
    row = await lock(tx, user, session, assignee_may=set(changes) <= {"notes"})
    if version is not None and version != row["version"]:
        raise Conflict(current=body(row))
    if "assignee" in changes:
        await _check_assignee(tx.conn, changes["assignee"])
    if "ui_status" in changes and changes["ui_status"] != row["ui_status"]:
        await _check_ui_status(tx, row, changes["ui_status"])
    new_version = row["version"] + 1
    values = {**changes, "version": new_version, "updated_at": tx.now}
    await tx.conn.execute(update(sessions).where(sessions.c.id == session).values(**values))
    told = ev.Custom(name="session.updated", value={**changes, "version": new_version})
    await tx.append(session, [(None, 0, told)])
    return body(await row_of(tx.conn, session))


async def remove(tx: Tx, user: User, session: str) -> None:
    """Delete a session and all that belongs to it.

    Raises:
        RunActive: a run goes on in it; cancel it first.
    """
    await lock(tx, user, session)
    open_task = await tx.conn.scalar(
        select(tasks.c.id).where(tasks.c.session_id == session, tasks.c.state.not_in(TERMINAL)).limit(1)
    )
    if open_task is not None:
        raise RunActive("A run is active in this session; cancel it first")
    await tx.conn.execute(delete(sessions).where(sessions.c.id == session))
    await tx.conn.execute(delete(events).where(events.c.session_id == session))
    await gates.remove(tx, f"session:{session}")


async def _check_assignee(conn: Connection, assignee: str | None) -> None:
    if assignee is None:
        return
    if await conn.scalar(select(users.c.id).where(users.c.id == assignee)) is None:
        raise InvalidRequest("No such user", field="assignee")


async def _check_ui_status(tx: Tx, row: Row, wanted: str) -> None:
    busy = row["ui_status"] == UiStatus.IN_PROGRESS
    if busy or wanted == UiStatus.IN_PROGRESS:
        raise Conflict("InProgress follows the runs of the session and is not set by hand", current=body(row))
