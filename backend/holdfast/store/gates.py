"""Limits: tasks are taken by their gates. Lock the limit, not the task; count its use, never store it.

A task names its gates (`task_gates`); each lets `capacity` tasks be active at once. Who takes tasks locks their gates
in the order of their ids, skipping those that somebody else holds, looks again under the locks, and takes what fits:
by priority, then rank. On SQLite the transaction itself (BEGIN IMMEDIATE) is the lock.

A session is a line besides: its tasks are taken one after the other, in the order of their places. Any other gate
lets the next one pass when the first is held up elsewhere; nobody is held up by a gate that has room.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    RowMapping,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.domain.tasks import ACTIVE, TaskState
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.tables import gates, task_gates, tasks

UNLIMITED = 2**31 - 1


class Taken(NamedTuple):
    """Tasks as they were before they were taken, the first in line first; and whether to come again at once."""

    tasks: Sequence[RowMapping]
    again: bool


async def ensure(tx: Tx, gate: str, capacity: int | None, owner: str | None = None) -> None:
    """A gate, which may be there already; then it stays as it is."""
    statement = _insert(tx)(gates).values(id=gate, capacity=capacity, owner=owner)
    await tx.conn.execute(statement.on_conflict_do_nothing())


async def set_capacity(tx: Tx, gate: str, capacity: int, owner: str | None) -> None:
    """A gate with that capacity, whether it is there already or not; those that have passed stay."""
    statement = _insert(tx)(gates).values(id=gate, capacity=capacity, owner=owner)
    await tx.conn.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"capacity": capacity}))


def _insert(tx: Tx) -> Any:
    return sqlite.insert if tx.dialect == "sqlite" else postgresql.insert


async def remove(tx: Tx, gate: str) -> None:
    """Take a gate away that no task names any more."""
    await tx.conn.execute(delete(gates).where(gates.c.id == gate))


async def name(tx: Tx, task: str, *through: str) -> None:
    """A task must pass these gates."""
    await tx.conn.execute(insert(task_gates), [{"task_id": task, "gate_id": gate} for gate in through])


async def take(tx: Tx, executor: str, node: str, *, limit: int, default: int = UNLIMITED) -> Taken:
    """Make up to `limit` pending tasks of an executor running on `node`. `default` is for gates without capacity.

    `again` is true when there may be more at once: not all that was looked at was taken, or no more was looked at.
    """
    wanted = {"executor": executor, "now": tx.now, "default": default, "limit": limit}
    found = (await tx.conn.execute(_PENDING, wanted)).mappings().all()
    if not found:
        return Taken([], False)
    through, capacities = await _lock(tx, [row["id"] for row in found], limit, default)
    used = Counter(await _used(tx, sorted(capacities)))
    chosen: list[RowMapping] = []
    for row in found:
        names = through.get(row["id"])
        if names is not None and all(used[gate] < capacities[gate] for gate in names):
            used.update(names)
            chosen.append(row)
    mine = await _start(tx, node, [row["id"] for row in chosen], limit)
    return Taken([row for row in chosen if row["id"] in mine], len(found) == limit or len(mine) < len(found))


async def next_due(conn: Connection, now: datetime) -> datetime | None:
    """When the next task is due that waits for its time."""
    later = select(func.min(tasks.c.run_at)).where(tasks.c.state == TaskState.PENDING, tasks.c.run_at > now)
    return await conn.scalar(later)


async def waiting(conn: Connection) -> dict[str, int]:
    """How many tasks of each executor wait."""
    statement = select(tasks.c.executor, func.count()).where(tasks.c.state == TaskState.PENDING)
    return {row[0]: row[1] for row in await conn.execute(statement.group_by(tasks.c.executor))}


def _before() -> ColumnElement[bool]:
    """Whether another task of the same session is active, or comes first."""
    other = tasks.alias("other")
    first = or_(other.c.place < tasks.c.place, and_(other.c.place == tasks.c.place, other.c.id < tasks.c.id))
    waits = and_(other.c.state == TaskState.PENDING, first)
    return exists().where(
        other.c.session_id == tasks.c.session_id,
        or_(other.c.state.in_([*ACTIVE, TaskState.PAUSED]), waits),
    )


def _usage() -> Select[str, int]:
    """How many active tasks each gate has let pass; begins with the active ones, which are few."""
    active = select(tasks.c.id).where(tasks.c.node_id.is_not(None))
    return (
        select(task_gates.c.gate_id, func.count().label("active"))
        .where(task_gates.c.task_id.in_(active))
        .group_by(task_gates.c.gate_id)
    )


def _full() -> CTE:
    """The gates that let nobody pass at this moment."""
    used = _usage().cte("used")
    capacity = func.coalesce(gates.c.capacity, bindparam("default", type_=Integer))
    return select(used.c.gate_id).join(gates, gates.c.id == used.c.gate_id).where(used.c.active >= capacity).cte("full")


def _pending() -> Select[*tuple[Any, ...]]:
    """Tasks that may be taken as far as one can see without a lock, in order: due, in turn, and no gate full."""
    held_up = exists().where(task_gates.c.task_id == tasks.c.id, task_gates.c.gate_id.in_(select(_full().c.gate_id)))
    due = or_(tasks.c.run_at.is_(None), tasks.c.run_at <= bindparam("now", type_=tasks.c.run_at.type))
    return (
        select(tasks)
        .where(tasks.c.executor == bindparam("executor"), tasks.c.state == TaskState.PENDING, due)
        .where(not_(_before()), not_(held_up))
        .order_by(tasks.c.priority.desc(), tasks.c.rank)
        .limit(bindparam("limit", type_=Integer))
    )


# Built once: to put them together costs more than to run them.
_PENDING = _pending()
_USED = _usage().where(task_gates.c.gate_id.in_(bindparam("gates", expanding=True)))
_COUNT = select(func.count()).where(task_gates.alias("all").c.task_id == task_gates.c.task_id).correlate(task_gates)
_THROUGH = (
    select(task_gates.c.task_id, task_gates.c.gate_id, gates.c.capacity, _COUNT.scalar_subquery())
    .join_from(task_gates, gates, gates.c.id == task_gates.c.gate_id)
    .where(task_gates.c.task_id.in_(bindparam("tasks", expanding=True)))
    .order_by(gates.c.id)
)
_THROUGH_LOCKED = _THROUGH.with_for_update(of=gates, skip_locked=True, key_share=True)
_START = (
    update(tasks)
    .where(tasks.c.id.in_(bindparam("tasks", expanding=True)), tasks.c.state == TaskState.PENDING, not_(_before()))
    .values(
        state=TaskState.RUNNING,
        attempt=tasks.c.attempt + 1,
        node_id=bindparam("node"),
        started_at=func.coalesce(tasks.c.started_at, bindparam("now", type_=tasks.c.started_at.type)),
        last_updated=bindparam("now", type_=tasks.c.last_updated.type),
    )
    .returning(tasks.c.id)
)


async def _lock(tx: Tx, candidates: list[str], limit: int, default: int) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Lock gates in order, but those that somebody else holds: (the gates by task, the capacities by gate).

    A task is left out unless all of its gates are locked.
    """
    statement = _THROUGH_LOCKED if tx.dialect == "postgresql" else _THROUGH
    through: dict[str, set[str]] = {}
    capacities: dict[str, int] = {}
    many: dict[str, int] = {}
    for task, gate, capacity, count in await tx.conn.execute(statement, {"tasks": _padded(candidates, limit)}):
        through.setdefault(task, set()).add(gate)
        capacities[gate] = default if capacity is None else capacity
        many[task] = count
    return {task: names for task, names in through.items() if len(names) == many[task]}, capacities


async def _used(tx: Tx, names: list[str]) -> dict[str, int]:
    if not names:
        return {}
    rows = await tx.conn.execute(_USED, {"gates": _padded(names, 64)})
    return {row[0]: row[1] for row in rows}


async def _start(tx: Tx, node: str, chosen: list[str], limit: int) -> set[str]:
    """Pending to Running; those that somebody has cancelled, paused or overtaken meanwhile are not."""
    if not chosen:
        return set()
    values = {"tasks": _padded(chosen, limit), "node": node, "now": tx.now}
    return set(await tx.conn.scalars(_START, values))


def _padded(values: list[str], size: int) -> list[str]:
    """The values, the last one again and again up to a size, so that a statement has few forms to be prepared for."""
    return values + [values[-1]] * (-len(values) % size)
