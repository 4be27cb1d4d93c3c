"""Jobs: commands that wait in a queue; how they are asked for, shown, reordered and cancelled.

A job is a task of the executor `process`. What happens to it while a node owns it is in `job_steps`.
Lock order: the task's row alone; gates are locked by who claims.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import RowMapping, Select, case, func, insert, literal, or_, select, tuple_, update

from holdfast import tracing
from holdfast.clock import is_id, rfc3339
from holdfast.domain.errors import Conflict, FieldError, InvalidRequest, JobNotFound
from holdfast.domain.tasks import CancellationStatus, JobStatus, TaskState, job_states, job_status
from holdfast.domain.users import User
from holdfast.store import cancels, gates
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.endings import End, end_task
from holdfast.store.tables import gates as gates_table
from holdfast.store.tables import jobs, tasks

SHOWN = 500
"""The most waiting jobs of a queue that are listed at once."""

CANCELLED = "Cancelled by user"


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: `command` is a program with its arguments, or text for a shell."""

    name: str
    command: list[str] | str
    env: dict[str, str] = {}
    cwd: str | None = None
    queue: str = "default"
    priority: int = 0
    run_at: datetime | None = None
    sandbox: Literal["on", "off"] = "on"
    on_restart: Literal["end", "keep"] = "end"
    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    memory_mb: int | None = None
    retries: int = 0
    retry_backoff_s: float = 1.0
    metadata: dict[str, Any] = {}


class JobCancel(msgspec.Struct, frozen=True):
    """What a cancel found; `active` is true when the job still has to be stopped."""

    previous: JobStatus
    active: bool = False


def gate_of(user: str, queue: str) -> str:
    """The gate of a user's queue."""
    return f"queue:{user}:{queue}"


async def submit(tx: Tx, user: User, job: str, spec: JobSpec) -> dict[str, Any]:
    """Put a job into its queue.

    Raises:
        InvalidRequest: the user has no such queue.
    """
    await capacity(tx.conn, user, spec.queue)
    task = {
        "id": job,
        "executor": "process",
        "user_id": user.id,
        "state": TaskState.PENDING,
        "priority": spec.priority,
        "place": 0,
        "rank": job,
        "queue": spec.queue,
        "run_at": spec.run_at,
        "attempt": 0,
        "version": 1,
        "traceparent": tracing.traceparent(),
        "created_at": tx.now,
        "last_updated": tx.now,
    }
    kept = ("name", "command", "env", "cwd", "sandbox", "on_restart", "timeout_s", "idle_timeout_s", "memory_mb")
    kept = (*kept, "retries", "retry_backoff_s", "metadata")
    await tx.conn.execute(insert(tasks).values(**task))
    values = {name: getattr(spec, name) for name in kept}
    await tx.conn.execute(insert(jobs).values(id=job, user_id=user.id, failures=0, kill_failures=0, **values))
    await gates.name(tx, job, gate_of(user.id, spec.queue))
    return await show(tx.conn, await row_of(tx.conn, job), tx.now)


async def capacity(conn: Connection, user: User, queue: str) -> int:
    """How many jobs of a user's queue run at once.

    Raises:
        InvalidRequest: the user has no such queue.
    """
    found = await conn.scalar(select(gates_table.c.capacity).where(gates_table.c.id == gate_of(user.id, queue)))
    if found is None:
        fault = FieldError("/queue", f"there is no queue {queue!r}; PATCH /api/queues/{queue} makes it")
        raise InvalidRequest(fault.detail, errors=[fault])
    return found


async def row_of(conn: Connection, job: str) -> RowMapping:
    """The row of a job, with that of its task.

    Raises:
        JobNotFound: there is none.
    """
    row = (await conn.execute(_rows().where(jobs.c.id == job))).mappings().first() if is_id(job) else None
    if row is None:
        raise JobNotFound
    return row


async def visible(conn: Connection, user: User, job: str) -> RowMapping:
    """The row of a job that `user` may see.

    Raises:
        JobNotFound: there is none, or it is somebody else's.
    """
    row = await row_of(conn, job)
    if not user.is_admin and row["user_id"] != user.id:
        raise JobNotFound
    return row


_TASK_COLUMNS = ("executor", "state", "queue", "priority", "rank", "version", "attempt", "node_id", "run_at")
_CANCEL_COLUMNS = ("cancellation_status", "cancel_requested_at", "cancel_requested_by", "cancel_reason")
_TIMES = ("created_at", "started_at", "ended_at")


def _rows() -> Select[Any]:
    columns = (tasks.c[name] for name in (*_TASK_COLUMNS, *_CANCEL_COLUMNS, *_TIMES))
    return select(jobs, *columns).join_from(jobs, tasks, tasks.c.id == jobs.c.id)


async def show(conn: Connection, row: RowMapping, now: datetime) -> dict[str, Any]:
    """A job as HTTP gives it."""
    position = await _position(conn, row, now) if job_status(TaskState(row["state"])) == "queued" else None
    return body(row, position)


def body(row: RowMapping, position: int | None) -> dict[str, Any]:
    """A job as HTTP gives it, at a known position."""
    shown = ("name", "command", "cwd", "sandbox", "on_restart", "queue", "priority", "exit_code", "signal", "error")
    more = ("cpu_s", "max_rss_bytes", "kill_failures", "attempt", "retries", "failures", "version", "metadata")
    return {
        "job_id": row["id"],
        "status": job_status(TaskState(row["state"])),
        "position": position,
        **{name: row[name] for name in (*shown, *more)},
        "cancellation_status": row["cancellation_status"],
        "cancelled_by": row["cancel_requested_by"],
        "created_at": _moment(row["created_at"]),
        "run_at": _moment(row["run_at"]),
        "started_at": _moment(row["started_at"]),
        "completed_at": _moment(row["ended_at"]),
    }


def _moment(moment: datetime | None) -> str | None:
    return rfc3339(moment) if moment else None


class JobFilters(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of jobs is narrowed to."""

    status: JobStatus | None = None
    queue: str | None = None
    name: str | None = None


async def list_for(
    conn: Connection, user: User, filters: JobFilters, after: str | None, limit: int, now: datetime
) -> list[dict[str, Any]]:
    """A user's jobs, the newest first; an admin gets everybody's. `after` is the last of the page before."""
    statement = _rows().order_by(jobs.c.id.desc()).limit(limit)
    if not user.is_admin:
        statement = statement.where(jobs.c.user_id == user.id)
    if filters.status is not None:
        statement = statement.where(tasks.c.state.in_(job_states(filters.status)))
    if filters.queue is not None:
        statement = statement.where(tasks.c.queue == filters.queue)
    if filters.name is not None:
        statement = statement.where(jobs.c.name == filters.name)
    if after is not None:
        statement = statement.where(jobs.c.id < after)
    rows = (await conn.execute(statement)).mappings().all()
    return await _with_positions(conn, rows, now)


async def queue_of(conn: Connection, user: User, queue: str, now: datetime) -> dict[str, Any]:
    """A user's queue: its numbers, what runs in it, and what waits, the first in line first.

    Raises:
        InvalidRequest: the user has no such queue.
    """
    max_running = await capacity(conn, user, queue)
    mine = (tasks.c.user_id == user.id, tasks.c.queue == queue, tasks.c.ended_at.is_(None))
    states = await conn.execute(select(tasks.c.state, func.count()).where(*mine).group_by(tasks.c.state))
    counts = {"queued": 0, "running": 0}
    for state, count in states:
        counts[job_status(TaskState(state))] += count
    rank = case((tasks.c.node_id.is_not(None), 0), else_=1)
    statement = _rows().where(*mine).order_by(rank, *_order(now)).limit(SHOWN)
    rows = (await conn.execute(statement)).mappings().all()
    shown = await _with_positions(conn, rows, now)
    return {"queue": queue, **counts, "max_running": max_running, "jobs": shown}


async def queues_of(conn: Connection, user: User) -> list[dict[str, Any]]:
    """A user's queues, by name, with their numbers."""
    statement = select(gates_table.c.id, gates_table.c.capacity).where(gates_table.c.owner == user.id)
    prefix = gate_of(user.id, "")
    found = {row[0].removeprefix(prefix): row[1] for row in await conn.execute(statement)}
    counts = dict.fromkeys(((queue, status) for queue in found for status in ("queued", "running")), 0)
    of_user = (tasks.c.user_id == user.id, tasks.c.queue.is_not(None), tasks.c.ended_at.is_(None))
    used = select(tasks.c.queue, tasks.c.state, func.count()).where(*of_user).group_by(tasks.c.queue, tasks.c.state)
    for queue, state, count in await conn.execute(used):
        counts[queue, job_status(TaskState(state))] += count
    return [
        {"name": queue, "max_running": limit, "running": counts[queue, "running"], "queued": counts[queue, "queued"]}
        for queue, limit in sorted(found.items())
    ]


async def cancel(tx: Tx, user: User, job: str, reason: str | None) -> JobCancel:
    """Take a waiting job out of its queue, or write down that a running one is to stop. Twice is the same as once.

    Raises:
        JobNotFound: there is none, or it is somebody else's.
    """
    await visible(tx.conn, user, job)
    task = (await tx.conn.execute(select(tasks).filter_by(id=job).with_for_update())).mappings().one()
    previous = job_status(TaskState(task["state"]))
    if previous == "running":
        await cancels.request_cancel(tx, task, user.id, reason)
        return JobCancel(previous, active=True)
    if previous == "queued":
        asked = {"cancel_requested_at": tx.now, "cancel_requested_by": user.id, "cancel_reason": reason}
        await tx.conn.execute(update(tasks).where(tasks.c.id == job).values(**asked))
        await end_task(tx, task, End(outcome="cancelled"))
        await tx.conn.execute(update(jobs).where(jobs.c.id == job).values(error=CANCELLED))
    return JobCancel(previous)


async def cancel_queue(tx: Tx, user: User, queue: str, reason: str | None) -> tuple[int, list[str]]:
    """Cancel all of a user's queue: (how many were taken out of it, those that run and are to stop).

    Raises:
        InvalidRequest: the user has no such queue.
    """
    await capacity(tx.conn, user, queue)
    mine = (tasks.c.user_id == user.id, tasks.c.queue == queue, tasks.c.ended_at.is_(None))
    statement = select(tasks).where(*mine).order_by(tasks.c.id).with_for_update()
    rows = (await tx.conn.execute(statement)).mappings().all()
    active = [row for row in rows if row["node_id"] is not None]
    for row in active:
        await cancels.request_cancel(tx, row, user.id, reason)
    waiting = [row["id"] for row in rows if row["node_id"] is None]
    values = {"state": TaskState.CANCELED, "ended_at": tx.now, "last_updated": tx.now}
    values |= {"cancellation_status": CancellationStatus.CANCELLED, "cancel_requested_at": tx.now}
    values |= {"cancel_requested_by": user.id, "cancel_reason": reason}
    out = (tasks.c.node_id.is_(None), *mine)
    ended = select(tasks.c.id).where(*out).scalar_subquery()
    await tx.conn.execute(update(jobs).where(jobs.c.id.in_(ended)).values(error=CANCELLED))
    await tx.conn.execute(update(tasks).where(*out).values(**values))
    return len(waiting), [row["id"] for row in active]


async def swap(tx: Tx, user: User, one: tuple[str, int], other: tuple[str, int]) -> None:
    """Exchange the places of two waiting jobs of one queue, priorities with them: (job, version) each.

    Raises:
        JobNotFound: there is none, or it is somebody else's.
        InvalidRequest: they are not of one queue, or the same.
        Conflict: one has started or changed.
    """
    a, b = await visible(tx.conn, user, one[0]), await visible(tx.conn, user, other[0])
    if a["id"] == b["id"] or (a["user_id"], a["queue"]) != (b["user_id"], b["queue"]):
        fault = FieldError("/b", "must be another job of the same queue")
        raise InvalidRequest(fault.detail, errors=[fault])
    ids = sorted([a["id"], b["id"]])
    statement = select(tasks).where(tasks.c.id.in_(ids)).order_by(tasks.c.id).with_for_update()
    rows = {row["id"]: row for row in (await tx.conn.execute(statement)).mappings()}
    for job, version in (one, other):
        if rows[job]["state"] != TaskState.PENDING or rows[job]["version"] != version:
            raise Conflict("It has started or changed", current=await queue_of(tx.conn, user, a["queue"], tx.now))
    for job, place in ((one[0], rows[other[0]]), (other[0], rows[one[0]])):
        values = {"rank": place["rank"], "priority": place["priority"], "version": tasks.c.version + 1}
        await tx.conn.execute(update(tasks).where(tasks.c.id == job).values(**values, last_updated=tx.now))


def _order(now: datetime) -> tuple[Any, ...]:
    """The order in which waiting jobs are taken; those whose time has not come are last, by their time."""
    later = case((tasks.c.run_at > now, tasks.c.run_at))
    return (case((tasks.c.run_at > now, 1), else_=0), later, tasks.c.priority.desc(), tasks.c.rank)


async def _position(conn: Connection, row: RowMapping, now: datetime) -> int:
    """The place of a waiting job in its queue, from 1."""
    line = [tasks.c.user_id == row["user_id"], tasks.c.queue == row["queue"], tasks.c.ended_at.is_(None)]
    line.append(tasks.c.state == TaskState.PENDING)
    due = or_(tasks.c.run_at.is_(None), tasks.c.run_at <= now)
    ahead = (-tasks.c.priority, tasks.c.rank)
    mine = (literal(-row["priority"]), literal(row["rank"]))
    if row["run_at"] is not None and row["run_at"] > now:
        sooner = tuple_(tasks.c.run_at, *ahead) < tuple_(literal(row["run_at"], tasks.c.run_at.type), *mine)
        before = or_(due, sooner)
    else:
        before = due & (tuple_(*ahead) < tuple_(*mine))
    return 1 + (await conn.scalar(select(func.count()).select_from(tasks).where(*line, before)) or 0)


async def _with_positions(conn: Connection, rows: Sequence[RowMapping], now: datetime) -> list[dict[str, Any]]:
    """Jobs as HTTP gives them; the positions of all that wait come from one look at each of their queues."""
    waiting = [row for row in rows if row["state"] == TaskState.PENDING]
    lines = sorted({(row["user_id"], row["queue"]) for row in waiting})
    place = func.row_number().over(partition_by=[tasks.c.user_id, tasks.c.queue], order_by=_order(now))
    positions: dict[str, int] = {}
    for user, queue in lines:
        statement = select(tasks.c.id, place).where(
            tasks.c.user_id == user,
            tasks.c.queue == queue,
            tasks.c.ended_at.is_(None),
            tasks.c.state == TaskState.PENDING,
        )
        positions |= {found[0]: found[1] for found in await conn.execute(statement)}
    return [body(row, positions.get(row["id"])) for row in rows]
