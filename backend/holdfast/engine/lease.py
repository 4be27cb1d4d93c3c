"""The lease of this node, and the recovery of what nodes that are gone have left.

A node beats for all its tasks in one update. Who does not beat is declared dead by any other node,
and can never beat again; its runs are ended as interrupted, with all that they had committed. At its
start a node declares dead those of its own host whose process is no more, at once.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable

from holdfast.clock import Clock, new_id
from holdfast.domain.errors import LeaseLost, Unavailable
from holdfast.engine.leftovers import Leftovers
from holdfast.engine.processes import boot_id, process_started
from holdfast.store import endings, nodes
from holdfast.store.database import Database, Tx
from holdfast.store.endings import End
from holdfast.store.nodes import NodeIdentity, Orphan
from holdfast.store.tables import tasks

log = logging.getLogger("holdfast.lease")

_INTERRUPTED = "The process that ran the agent has died; what it had said is kept"


def this_process() -> NodeIdentity:
    """A new identity for this process."""
    pid = os.getpid()
    return NodeIdentity(new_id(), socket.gethostname(), boot_id(), pid, process_started(pid) or "unknown")


def is_alive(node: NodeIdentity, boot: str) -> bool:
    """Whether a node of this host is still that very process."""
    return node.boot_id == boot and process_started(node.pid) == node.process_started


class Lease:
    """Keeps this node alive in the database, and buries those that are not.

    `on_lost` is called when the node was declared dead, or could not beat for most of its lease: it
    must stop all runs at once. Then the node goes on under a new identity.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        lease_s: float,
        heartbeat_s: float,
        on_lost: Callable[[], None],
        leftovers: Leftovers | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._on_lost = on_lost
        self._leftovers = leftovers
        self.recover_job: Callable[[Orphan], Awaitable[bool]] | None = None
        """Ends, or takes over, a job whose node is dead; False when that is for another host to do."""
        self._beaten_at = 0.0
        self._stopped = False
        self.node = this_process()

    @property
    def held(self) -> bool:
        """Whether the node may claim and write: it has beaten recently enough."""
        return not self._stopped and self._clock.monotonic() - self._beaten_at < self._lease_s * 0.75

    async def start(self) -> None:
        """Enter this process, and bury the dead of this host."""
        await self._database.transact(lambda tx: nodes.register(tx, self.node, self._lease_s))
        self._beaten_at = self._clock.monotonic()
        await self._bury_host()
        await self.recover()

    async def stop(self) -> None:
        """Leave: what this node still holds belongs to the recovery of others."""
        self._stopped = True
        await self._database.transact(lambda tx: nodes.retire(tx, self.node.id))

    async def beat_forever(self) -> None:
        """Beat every `heartbeat_s`; more often while the database does not answer."""
        while True:
            await asyncio.sleep(self._heartbeat_s if self.held else min(1.0, self._heartbeat_s))
            await self.beat()

    async def beat(self) -> None:
        """Lengthen the lease, or find that it is lost."""
        try:
            beaten = await self._database.transact(lambda tx: nodes.beat(tx, self.node.id, self._lease_s))
        except Unavailable:
            if not self.held:
                log.error("node %s cannot beat; its runs are stopped", self.node.id)
                self._on_lost()
            return
        if beaten:
            self._beaten_at = self._clock.monotonic()
            return
        log.error("node %s was declared dead; it goes on under a new identity", self.node.id)
        self._on_lost()
        self.node = this_process()
        await self._database.transact(lambda tx: nodes.register(tx, self.node, self._lease_s))
        self._beaten_at = self._clock.monotonic()

    async def recover_forever(self) -> None:
        """Look for dead nodes again and again."""
        while True:
            await asyncio.sleep(min(self._lease_s / 6, 5.0))
            try:
                await self.recover()
            except Unavailable:
                continue

    async def recover(self) -> int:
        """Declare dead whose lease has run out and end what dead nodes hold; how many tasks."""
        await self._database.transact(nodes.declare_expired_dead)
        ended, left = 0, set[str]()
        while found := await self._database.transact(lambda tx: nodes.orphans(tx, left)):
            for orphan in found:
                if await self.recover_one(orphan):
                    ended += 1
                left.add(orphan.task)
        if self._leftovers is not None:
            await self._leftovers.sweep()
        return ended

    async def recover_one(self, orphan: Orphan) -> bool:
        """End what is left of a task that nobody carries out any more; False when it was not this node's to do."""
        if orphan.executor == "agent":
            return await self.end_interrupted(orphan.task, orphan.attempt)
        return self.recover_job is not None and await self.recover_job(orphan)

    async def end_interrupted(self, run: str, attempt: int) -> bool:
        """End a run whose process is gone, with all that it had committed."""
        error = {"code": "interrupted", "id": new_id(), "message": _INTERRUPTED}
        if self._leftovers is not None:
            await self._leftovers.end_run(run)

        async def bury(tx: Tx) -> None:
            row = (await tx.conn.execute(tasks.select().filter_by(id=run))).mappings().one()
            closing = await endings.open_spans(tx.conn, row)
            await endings.end(tx, run, attempt, End(outcome="interrupted", error=error, closing=closing))

        try:
            await self._database.transact(bury)
        except LeaseLost:
            return False
        log.warning("run %s is ended as interrupted (error %s)", run, error["id"])
        return True

    async def _bury_host(self) -> None:
        mine = self.node
        for node in await self._database.transact(lambda tx: nodes.on_host(tx, mine.host)):
            if node.id != mine.id and not is_alive(node, mine.boot_id):
                await self._database.transact(lambda tx, dead=node.id: nodes.declare_dead(tx, dead))
