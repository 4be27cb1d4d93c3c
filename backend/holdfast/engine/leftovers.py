"""Ends what services that are gone have left running on this host."""

import logging

from holdfast.engine.processes import ProcessIdentity, boot_id, end_leftover
from holdfast.store import processes
from holdfast.store.database import Database
from holdfast.store.processes import Known

log = logging.getLogger("holdfast.leftovers")


class Leftovers:
    """Hosts end only their own: what another host has left is ended by a node there."""

    def __init__(self, database: Database, host: str, grace_s: float) -> None:
        self._database = database
        self._host = host
        self._grace_s = grace_s

    async def end_run(self, run: str) -> None:
        """End what lives here of a run whose process is gone; returns when nothing does."""
        for known in await self._database.transact(lambda tx: processes.of_run(tx, run)):
            if known.boot_id == boot_id():
                await self._end(known)

    async def sweep(self) -> int:
        """End what dead nodes have left on this host; how many were known."""
        found = await self._database.transact(lambda tx: processes.left_behind(tx, self._host, boot_id()))
        for known in found:
            await self._end(known)
        return len(found)

    async def _end(self, known: Known) -> None:
        identity = ProcessIdentity(known.boot_id, known.pid or 0, known.started or "unknown", known.mark)
        if await end_leftover(identity, self._grace_s):
            log.warning("run %s: a process that a crash had left is ended", known.run)
        await self._database.transact(lambda tx: processes.gone(tx, known.mark))
