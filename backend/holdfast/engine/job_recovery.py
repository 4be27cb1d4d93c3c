"""Jobs whose node is dead: taken over with their process where that is wanted, else ended with what they started."""

import logging

from holdfast.domain.errors import LeaseLost
from holdfast.domain.tasks import job_status
from holdfast.engine.adopted import Adopted
from holdfast.engine.job_ends import INTERRUPTED, end_of
from holdfast.engine.jobs import Jobs
from holdfast.engine.leftovers import Leftovers
from holdfast.engine.processes import ProcessIdentity, process_started
from holdfast.engine.workshop import Workshop
from holdfast.store import job_steps, jobs, processes
from holdfast.store.database import Database
from holdfast.store.job_steps import JobEnd
from holdfast.store.nodes import Orphan
from holdfast.store.processes import Known

log = logging.getLogger("holdfast.job")


class JobRecovery:
    """What a node does about the jobs of others."""

    def __init__(self, database: Database, workshop: Workshop, leftovers: Leftovers, running: Jobs) -> None:
        self._database = database
        self._workshop = workshop
        self._leftovers = leftovers
        self._jobs = running

    async def recover(self, orphan: Orphan) -> bool:
        """Take a job over, or end it with all that it started. False: that is for another node to do."""
        async with self._database.read() as conn:
            row = await jobs.row_of(conn, orphan.task)
        keep = row["on_restart"] == "keep" and row["cancellation_status"] is None
        if keep and (self._jobs.adopt is None or row["host"] not in (None, self._workshop.host)):
            return False
        try:
            if keep and self._jobs.may_adopt and await self._adopt(orphan):
                return True
            return await self._end(orphan, keep=keep)
        except LeaseLost:
            return False

    async def _adopt(self, orphan: Orphan) -> bool:
        """Take a job over, if its process still lives here."""
        place = self._jobs.place()
        found = await self._left(orphan)
        if found is None or not _lives(found):
            return False
        taken = await self._database.transact(lambda tx: job_steps.adopt(tx, orphan.task, orphan.attempt, place))
        if taken is None:
            return False
        claim, known = taken
        log.info("job %s: adopted with process %s", claim.job, known.pid)
        self._jobs.take_over(claim, Adopted(_identity(known)))
        return True

    async def _end(self, orphan: Orphan, *, keep: bool) -> bool:
        """End a job as interrupted, or as its keeper says that it ended while no service looked."""
        told = await self._told_by_keeper(orphan) if keep else None
        end = told or JobEnd(outcome="failed", error=INTERRUPTED)
        await self._leftovers.end_run(orphan.task)
        chance = self._jobs.chance()
        state = await self._database.transact(lambda tx: job_steps.end(tx, orphan.task, orphan.attempt, end, chance))
        self._workshop.meters.ends["process", job_status(state)] += 1
        log.warning("job %s: its service is gone; %s", orphan.task, end.error or "it had ended by itself")
        return True

    async def _told_by_keeper(self, orphan: Orphan) -> JobEnd | None:
        found = await self._left(orphan)
        record = self._jobs.log_of(orphan.task).exit_record(found.mark) if found else None
        if record is None:
            return None
        return end_of(record.exit_code, record.signal, record.cpu_s, record.max_rss_bytes, too_much=record.too_much)

    async def _left(self, orphan: Orphan) -> Known | None:
        found = await self._database.transact(lambda tx: processes.of_run(tx, orphan.task))
        return next((known for known in found if known.boot_id == self._workshop.boot_id), None)


def _identity(known: Known) -> ProcessIdentity:
    return ProcessIdentity(known.boot_id, known.pid or 0, known.started or "unknown", known.mark)


def _lives(known: Known) -> bool:
    return known.pid is not None and process_started(known.pid) == known.started
