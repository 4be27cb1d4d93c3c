"""Runs are claimed: the next of each session, within the limits, which are counted under their gates.

Lock order: see `runs`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import RowMapping, and_, func, not_, or_, select, update

from holdfast.domain import events as ev
from holdfast.domain.tasks import ACTIVE, TaskState
from holdfast.domain.transcript import fresh_metadata
from holdfast.store import texts
from holdfast.store.database import Tx
from holdfast.store.tables import gates, tasks


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A run that this node may carry out: `prompt` is empty when it continues another run."""

    run: str
    session: str
    user: str
    attempt: int
    message: str
    prompt: str
    parent: str | None
    resumed: bool
    head: int


async def claim(tx: Tx, node: str, agent: str, *, limit: int, per_user: int) -> list[Claim]:
    """Take up to `limit` runs whose turn it is, for `node`: at most one a session, `per_user` a user.

    The limits are kept by locking their gates and counting under the lock.
    """
    candidates = (await tx.conn.execute(_turn().limit(limit))).mappings().all()
    if not candidates:
        return []
    locked = await _lock_gates(tx, candidates)
    mine = [row["id"] for row in candidates if _gates(row) <= locked]
    rows = (await tx.conn.execute(_turn().where(tasks.c.id.in_(mine)))).mappings().all()
    used = await _running_by_user(tx, {row["user_id"] for row in rows})
    claims: list[Claim] = []
    for row in sorted(rows, key=lambda row: row["session_id"]):
        if used.get(row["user_id"], 0) < per_user:
            used[row["user_id"]] = used.get(row["user_id"], 0) + 1
            claims.append(await _start(tx, row, node, agent))
    return claims


def _turn() -> Any:
    """Runs whose turn it is: pending, first of their session, and nothing active before them."""
    other = tasks.alias("other")
    before = or_(other.c.place < tasks.c.place, and_(other.c.place == tasks.c.place, other.c.id < tasks.c.id))
    blocked = (
        select(other.c.id)
        .where(other.c.session_id == tasks.c.session_id)
        .where(
            or_(
                other.c.state.in_(ACTIVE),
                other.c.state == TaskState.PAUSED,
                and_(other.c.state == TaskState.PENDING, before),
            )
        )
    )
    return (
        select(tasks)
        .where(tasks.c.executor == "agent", tasks.c.state == TaskState.PENDING, not_(blocked.exists()))
        .order_by(tasks.c.priority.desc(), tasks.c.id)
    )


def _gates(task: RowMapping) -> set[str]:
    return {f"session:{task['session_id']}", f"user:{task['user_id']}"}


async def _lock_gates(tx: Tx, candidates: Sequence[RowMapping]) -> set[str]:
    """Lock the candidates' gates; those that somebody else holds are left out."""
    wanted = set[str]().union(*(_gates(row) for row in candidates))
    statement = select(gates.c.id).where(gates.c.id.in_(wanted)).order_by(gates.c.id)
    if tx.dialect == "postgresql":
        statement = statement.with_for_update(skip_locked=True, key_share=True)
    return set(await tx.conn.scalars(statement))


async def _running_by_user(tx: Tx, wanted: set[str]) -> dict[str, int]:
    statement = (
        select(tasks.c.user_id, func.count())
        .where(tasks.c.user_id.in_(wanted), tasks.c.node_id.is_not(None), tasks.c.executor == "agent")
        .group_by(tasks.c.user_id)
    )
    return {row[0]: row[1] for row in await tx.conn.execute(statement)}


async def _start(tx: Tx, task: RowMapping, node: str, agent: str) -> Claim:
    """Pending to Claimed to Running, with the events that tell it, in the claim's own transaction."""
    attempt, session, run = task["attempt"] + 1, task["session_id"], task["id"]
    resumed = task["started_at"] is not None
    values = {"state": TaskState.RUNNING, "attempt": attempt, "node_id": node, "last_updated": tx.now}
    if not resumed:
        values["started_at"] = tx.now
    await tx.conn.execute(update(tasks).where(tasks.c.id == run).values(**values))
    prompt = await texts.prompt_of(tx, task)
    if resumed:
        told = ev.Custom(name="run.resumed", value={"attempt": attempt})
        records = await tx.append(session, [(run, attempt, told)])
    else:
        started = texts.started_event(task, prompt, agent)
        opened = ev.TextMessageStart(
            message_id=task["message_id"], role="assistant", metadata=fresh_metadata(streaming=True)
        )
        records = await tx.append(session, [(run, attempt, started), (run, attempt, opened)])
        await texts.take_place(tx, task, records[0].seq)
        await texts.insert_one(tx, session, run, task["message_id"], "assistant", "", records[1].seq)
    return Claim(
        run=run,
        session=session,
        user=task["user_id"],
        attempt=attempt,
        message=task["message_id"],
        prompt=prompt,
        parent=task["parent_task_id"],
        resumed=resumed,
        head=records[-1].seq,
    )
