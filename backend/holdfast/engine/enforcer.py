"""The cancellation enforcer: the backstop that finds what no message has told this node.

Every second it reads what this node holds. A run whose cancel is requested gets its token set, and so
does one that this process still carries out although the node does not hold it any more; a run
that the node holds but does not carry out (its end could not be written while the database was gone)
is ended as interrupted. Questions that nobody has answered in time are denied. It also learns whether
other nodes live, which decides how often to poll.
"""

import asyncio
import logging
from collections.abc import Mapping

from holdfast.domain.errors import Unavailable
from holdfast.engine.lease import Lease
from holdfast.engine.worker import Worker
from holdfast.store import approvals, nodes
from holdfast.store.database import Database, Tx
from holdfast.store.nodes import Held, Orphan

log = logging.getLogger("holdfast.enforcer")


class Enforcer:
    """One loop. `workers` are those of this node, by the executor; `alone` is whether this is the only living node."""

    def __init__(
        self,
        database: Database,
        lease: Lease,
        workers: Mapping[str, Worker],
        *,
        interval_s: float = 1.0,
        crowded_interval_s: float = 0.25,
    ) -> None:
        self._database = database
        self._lease = lease
        self._workers = workers
        self._interval_s = interval_s
        self._crowded_interval_s = crowded_interval_s
        self._suspects: set[tuple[str, int]] = set()
        self.alone = True

    async def enforce_forever(self) -> None:
        """Look again and again; more often when other nodes may have been told."""
        while True:
            await asyncio.sleep(self._interval_s if self.alone else self._crowded_interval_s)
            try:
                await self.enforce()
            except Unavailable:
                continue
            except Exception:
                log.exception("the enforcer failed; it is tried again")

    async def enforce(self) -> None:
        """Look once."""
        live = {kind: worker.running for kind, worker in self._workers.items()}
        async with self._database.read() as conn:
            tx = Tx(conn, self._database.dialect, await self._database.now(conn))
            held = await nodes.held(tx, self._lease.node.id)
            self.alone = await nodes.living(tx) <= 1
            expired = await approvals.due(conn, tx.now)
        if expired and await self._database.transact(approvals.expire):
            self._workers["agent"].wake()
        for task in held:
            if task.cancelled:
                self._workers[task.executor].cancel(task.task)
        mine = {task.task for task in held}
        for kind, running in live.items():
            for task in running - mine:
                self._workers[kind].lose(task)
        await self._end_lost(held)

    async def _end_lost(self, held: list[Held]) -> None:
        """End what the node holds but does not carry out."""
        lost = {task for task in held if task.task not in self._workers[task.executor].running}
        known = {(task.task, task.attempt) for task in lost}
        for task in lost:
            if (task.task, task.attempt) in self._suspects:
                await self._lease.recover_one(Orphan(task.task, task.executor, task.attempt))
        self._suspects = known - self._suspects
