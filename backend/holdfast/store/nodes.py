"""Nodes: one row a process, whose lease is the lease of all its tasks."""

from collections.abc import Collection
from datetime import timedelta

import msgspec
from sqlalchemy import insert, or_, select, update

from holdfast.domain.tasks import ACTIVE, CancellationStatus
from holdfast.store.database import Tx
from holdfast.store.tables import nodes, tasks


class NodeIdentity(msgspec.Struct, frozen=True):
    """Which process a node is: a pid alone may be used again, with its start time it may not."""

    id: str
    host: str
    boot_id: str
    pid: int
    process_started: str


async def register(tx: Tx, node: NodeIdentity, lease_s: float) -> None:
    """Enter a process; from now on it must beat."""
    await tx.conn.execute(
        insert(nodes).values(
            **msgspec.structs.asdict(node),
            started_at=tx.now,
            lease_until=tx.now + timedelta(seconds=lease_s),
        )
    )


async def beat(tx: Tx, node_id: str, lease_s: float) -> bool:
    """Lengthen the lease of a node, and with it of all its tasks; False when it was declared dead."""
    beaten = await tx.conn.execute(
        update(nodes)
        .where(nodes.c.id == node_id, nodes.c.dead_at.is_(None))
        .values(lease_until=tx.now + timedelta(seconds=lease_s))
    )
    return beaten.rowcount == 1


async def retire(tx: Tx, node_id: str) -> None:
    """A node leaves by itself."""
    await tx.conn.execute(update(nodes).where(nodes.c.id == node_id).values(dead_at=tx.now))


async def living(tx: Tx) -> int:
    """How many nodes hold a lease."""
    rows = await tx.conn.execute(select(nodes.c.id).where(nodes.c.dead_at.is_(None), nodes.c.lease_until >= tx.now))
    return len(rows.all())


async def on_host(tx: Tx, host: str) -> list[NodeIdentity]:
    """The nodes of a host that are not known to be dead."""
    columns = [nodes.c.id, nodes.c.host, nodes.c.boot_id, nodes.c.pid, nodes.c.process_started]
    rows = await tx.conn.execute(select(*columns).where(nodes.c.host == host, nodes.c.dead_at.is_(None)))
    return [NodeIdentity(*row) for row in rows]


async def declare_dead(tx: Tx, node_id: str) -> None:
    """Nobody may beat for this node again."""
    await tx.conn.execute(update(nodes).where(nodes.c.id == node_id, nodes.c.dead_at.is_(None)).values(dead_at=tx.now))


async def declare_expired_dead(tx: Tx) -> int:
    """Declare dead every node whose lease has run out; how many those were."""
    done = await tx.conn.execute(
        update(nodes).where(nodes.c.dead_at.is_(None), nodes.c.lease_until < tx.now).values(dead_at=tx.now)
    )
    return done.rowcount


class Orphan(msgspec.Struct, frozen=True):
    """A task whose node is dead."""

    task: str
    executor: str
    attempt: int


class Held(msgspec.Struct, frozen=True):
    """A task of a living node; `cancelled` is whether its cancel is requested."""

    task: str
    executor: str
    attempt: int
    cancelled: bool


async def orphans(tx: Tx, but: Collection[str] = (), limit: int = 100) -> list[Orphan]:
    """Tasks that a dead (or unknown) node still holds, but those named in `but`."""
    statement = (
        select(tasks.c.id, tasks.c.executor, tasks.c.attempt)
        .outerjoin(nodes, nodes.c.id == tasks.c.node_id)
        .where(
            tasks.c.node_id.is_not(None),
            tasks.c.state.in_(ACTIVE),
            or_(nodes.c.id.is_(None), nodes.c.dead_at.is_not(None)),
            tasks.c.id.not_in(but),
        )
        .limit(limit)
    )
    return [Orphan(*row) for row in await tx.conn.execute(statement)]


async def held(tx: Tx, node_id: str) -> list[Held]:
    """What a node holds."""
    columns = (tasks.c.id, tasks.c.executor, tasks.c.attempt, tasks.c.cancellation_status)
    rows = await tx.conn.execute(select(*columns).where(tasks.c.node_id == node_id))
    return [Held(row[0], row[1], row[2], row[3] == CancellationStatus.REQUESTED) for row in rows]
