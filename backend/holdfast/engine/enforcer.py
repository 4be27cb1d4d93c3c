"""The cancellation enforcer: the backstop that finds what no message has told this node.

Every second it reads what this node holds. A run whose cancel is requested gets its token set, and so
does one that this process still carries out although the node does not hold it any more; a run
that the node holds but does not carry out (its end could not be written while the database was gone)
is ended as interrupted. Questions that nobody has answered in time are denied. It also learns whether
other nodes live, which decides how often to poll.
"""

import asyncio
import logging

from holdfast.domain.errors import Unavailable
from holdfast.engine.lease import Lease
from holdfast.engine.registry import AgentTaskRegistry
from holdfast.engine.worker import Worker
from holdfast.store import approvals, nodes
from holdfast.store.database import Database, Tx

log = logging.getLogger("holdfast.enforcer")

Held = list[tuple[str, str, int, bool]]


class Enforcer:
    """One loop. `alone` is whether this is the only living node."""

    def __init__(
        self,
        database: Database,
        lease: Lease,
        worker: Worker,
        registry: AgentTaskRegistry,
        *,
        interval_s: float = 1.0,
        crowded_interval_s: float = 0.25,
    ) -> None:
        self._database = database
        self._lease = lease
        self._worker = worker
        self._registry = registry
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
        live = self._registry.running()
        async with self._database.read() as conn:
            tx = Tx(conn, self._database.dialect, await self._database.now(conn))
            held = await nodes.held(tx, self._lease.node.id)
            self.alone = await nodes.living(tx) <= 1
            expired = await approvals.due(conn, tx.now)
        if expired and await self._database.transact(approvals.expire):
            self._worker.wake()
        for run, session, _attempt, cancelled in held:
            if cancelled:
                self._registry.cancel_run(session, run)
        mine = {run for run, _session, _attempt, _cancelled in held}
        for entry in live:
            if entry.run not in mine:  # Somebody else has ended it; a silent agent would not notice.
                entry.token.set("lease lost")
        await self._end_lost(held)

    async def _end_lost(self, held: Held) -> None:
        mine = self._worker.running
        lost = {(run, attempt) for run, _session, attempt, _cancelled in held if run not in mine}
        for run, attempt in lost & self._suspects:
            await self._lease.end_interrupted(run, attempt)
        self._suspects = lost - self._suspects
