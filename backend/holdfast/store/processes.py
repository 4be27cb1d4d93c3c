"""Processes that nodes have started: written before the start, forgotten when all of one is gone."""

from typing import Any

import msgspec
from sqlalchemy import and_, delete, insert, not_, or_, select, update

from holdfast.store.database import Tx
from holdfast.store.tables import nodes, processes, sessions, tasks


class Known(msgspec.Struct, frozen=True):
    """A process as the store knows it; `pid` and `started` are null until it has told them."""

    mark: str
    boot_id: str
    pid: int | None
    started: str | None
    run: str


def row(mark: str, node: str, host: str, boot: str, run: str) -> dict[str, Any]:
    """The row of a process that is about to be started."""
    return {"mark": mark, "node_id": node, "host": host, "boot_id": boot, "task_id": run}


async def announce(tx: Tx, values: dict[str, Any], action: str | None) -> None:
    """A process is about to be started; `values` are of `row`."""
    await tx.conn.execute(insert(processes).values(**values, action_id=action, created_at=tx.now))


async def started(tx: Tx, mark: str, pid: int, started: str, session: str | None) -> None:
    """A process runs, for a session or for none."""
    await tx.conn.execute(update(processes).where(processes.c.mark == mark).values(pid=pid, started=started))
    if session is not None:
        await tx.conn.execute(update(sessions).where(sessions.c.id == session).values(process_pid=pid))


async def gone(tx: Tx, mark: str) -> None:
    """Nothing of a process lives."""
    run = select(processes.c.task_id).where(processes.c.mark == mark).scalar_subquery()
    session = select(tasks.c.session_id).where(tasks.c.id == run).scalar_subquery()
    await tx.conn.execute(update(sessions).where(sessions.c.id == session).values(process_pid=None, kill_failures=0))
    await tx.conn.execute(delete(processes).where(processes.c.mark == mark))


async def gone_of_task(tx: Tx, task: str) -> None:
    """Nothing of a task lives; for tasks without a session."""
    await tx.conn.execute(delete(processes).where(processes.c.task_id == task))


async def hand_over(tx: Tx, mark: str, node: str) -> None:
    """Another node of the same host looks after a process from now on."""
    await tx.conn.execute(update(processes).where(processes.c.mark == mark).values(node_id=node))


async def stuck(tx: Tx, mark: str, session: str, failures: int) -> None:
    """Kills of a session's process that did not work so far, for people to see as long as it lives."""
    lives = select(processes.c.mark).where(processes.c.mark == mark).exists()
    await tx.conn.execute(update(sessions).where(sessions.c.id == session, lives).values(kill_failures=failures))


async def of_run(tx: Tx, run: str) -> list[Known]:
    """What may live of a run."""
    return await _known(tx, processes.c.task_id == run)


async def left_behind(tx: Tx, host: str, boot: str) -> list[Known]:
    """What dead nodes have left on this host: of another boot nothing lives, but the rows do.

    Processes of a task that its dead node still holds are not among them: the recovery of that task decides.
    """
    dead = or_(nodes.c.id.is_(None), nodes.c.dead_at.is_not(None))
    held = select(tasks.c.id).where(tasks.c.id == processes.c.task_id, tasks.c.node_id == processes.c.node_id)
    here = or_(processes.c.boot_id == boot, processes.c.host == host)
    return await _known(tx, and_(here, dead, not_(held.exists())))


async def _known(tx: Tx, wanted: Any) -> list[Known]:
    statement = (
        select(processes.c.mark, processes.c.boot_id, processes.c.pid, processes.c.started, processes.c.task_id)
        .outerjoin(nodes, nodes.c.id == processes.c.node_id)
        .where(wanted)
        .order_by(processes.c.created_at, processes.c.mark)
    )
    return [Known(*found) for found in await tx.conn.execute(statement)]
