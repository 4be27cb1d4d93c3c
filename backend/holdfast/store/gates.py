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

from sqlalchemy import CTE, RowMapping, Select, and_, delete, exists, func, insert, literal, not_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from holdfast.domain.tasks import ACTIVE, TaskState
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

    `again` is true when there may be more: some were taken, or somebody else held a gate.
    """
    found = await _candidates(tx, pending(executor, tx.now, default).limit(limit))
    if not found:
        return Taken([], False)
    through = await _gates_of(tx, found)
    capacities = await _lock(tx, set[str]().union(*through.values()))
    if tx.dialect == "postgresql":
        free = [task for task, names in through.items() if names <= capacities.keys()]
        found = await _candidates(tx, pending(executor, tx.now, default).where(tasks.c.id.in_(free))) if free else []
    used = Counter(await _used(tx, set(capacities)))
    chosen: list[RowMapping] = []
    for row in found:
        names = through[row["id"]]
        if all(used[gate] < _capacity(capacities[gate], default) for gate in names):
            used.update(names)
            chosen.append(row)
    mine = await _start(tx, node, [row["id"] for row in chosen])
    return Taken([row for row in chosen if row["id"] in mine], True)


async def next_due(conn: AsyncConnection, now: datetime) -> datetime | None:
    """When the next task is due that waits for its time."""
    later = select(func.min(tasks.c.run_at)).where(tasks.c.state == TaskState.PENDING, tasks.c.run_at > now)
    return await conn.scalar(later)


async def waiting(conn: AsyncConnection) -> dict[str, int]:
    """How many tasks of each executor wait."""
    statement = select(tasks.c.executor, func.count()).where(tasks.c.state == TaskState.PENDING)
    return {row[0]: row[1] for row in await conn.execute(statement.group_by(tasks.c.executor))}


def pending(executor: str, now: datetime, default: int) -> Select[Any]:
    """Tasks that may be taken as far as one can see without a lock, in order: due, in turn, and no gate full."""
    full = _full(default)
    held_up = exists().where(task_gates.c.task_id == tasks.c.id, task_gates.c.gate_id.in_(select(full.c.gate_id)))
    due = or_(tasks.c.run_at.is_(None), tasks.c.run_at <= now)
    return (
        select(tasks)
        .where(tasks.c.executor == executor, tasks.c.state == TaskState.PENDING, due, not_(_before()), not_(held_up))
        .order_by(tasks.c.priority.desc(), tasks.c.rank)
    )


def _before() -> Any:
    """Whether another task of the same session is active, or comes first."""
    other = tasks.alias("other")
    first = or_(other.c.place < tasks.c.place, and_(other.c.place == tasks.c.place, other.c.id < tasks.c.id))
    waits = and_(other.c.state == TaskState.PENDING, first)
    return exists().where(
        other.c.session_id == tasks.c.session_id,
        or_(other.c.state.in_([*ACTIVE, TaskState.PAUSED]), waits),
    )


def _full(default: int) -> CTE:
    """The gates that let nobody pass at this moment."""
    used = _usage().cte("used")
    capacity = func.coalesce(gates.c.capacity, default)
    return select(used.c.gate_id).join(gates, gates.c.id == used.c.gate_id).where(used.c.active >= capacity).cte("full")


def _usage() -> Select[str, int]:
    """How many active tasks each gate has let pass; begins with the active ones, which are few."""
    active = select(tasks.c.id).where(tasks.c.node_id.is_not(None))
    return (
        select(task_gates.c.gate_id, func.count().label("active"))
        .where(task_gates.c.task_id.in_(active))
        .group_by(task_gates.c.gate_id)
    )


async def _used(tx: Tx, names: set[str]) -> dict[str, int]:
    rows = await tx.conn.execute(_usage().where(task_gates.c.gate_id.in_(names)))
    return {row[0]: row[1] for row in rows}


async def _candidates(tx: Tx, statement: Select[Any]) -> Sequence[RowMapping]:
    return (await tx.conn.execute(statement)).mappings().all()


async def _gates_of(tx: Tx, found: Sequence[RowMapping]) -> dict[str, set[str]]:
    through: dict[str, set[str]] = {row["id"]: set() for row in found}
    statement = select(task_gates.c.task_id, task_gates.c.gate_id).where(task_gates.c.task_id.in_(through))
    for task, gate in await tx.conn.execute(statement):
        through[task].add(gate)
    return through


async def _lock(tx: Tx, wanted: set[str]) -> dict[str, int | None]:
    """Lock gates, but those that somebody else holds; their capacities."""
    statement = select(gates.c.id, gates.c.capacity).where(gates.c.id.in_(wanted)).order_by(gates.c.id)
    if tx.dialect == "postgresql":
        statement = statement.with_for_update(skip_locked=True, key_share=True)
    return {row[0]: row[1] for row in await tx.conn.execute(statement)}


def _capacity(own: int | None, default: int) -> int:
    return default if own is None else own


async def _start(tx: Tx, node: str, chosen: list[str]) -> set[str]:
    """Pending to Running; those that somebody has cancelled or paused meanwhile are not."""
    if not chosen:
        return set()
    statement = (
        update(tasks)
        .where(tasks.c.id.in_(chosen), tasks.c.state == TaskState.PENDING)
        .values(
            state=TaskState.RUNNING,
            attempt=tasks.c.attempt + 1,
            node_id=node,
            started_at=func.coalesce(tasks.c.started_at, literal(tx.now, tasks.c.started_at.type)),
            last_updated=tx.now,
        )
        .returning(tasks.c.id)
    )
    return set(await tx.conn.scalars(statement))
