"""The engine of one node: its parts, how they start and stop, and what may be asked of it."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from holdfast.agents.builtin import BUILTIN
from holdfast.agents.resolve import ResolvedAgent
from holdfast.agents.sandbox import Sandbox
from holdfast.agents.tools import Toolbox
from holdfast.clock import Clock, SystemClock, is_id, new_id
from holdfast.config import Settings
from holdfast.domain.cursors import Cursor
from holdfast.domain.errors import RunNotFound, SessionNotFound
from holdfast.domain.transcript import QueueItem
from holdfast.domain.users import User
from holdfast.engine.enforcer import Enforcer
from holdfast.engine.hub import Hub
from holdfast.engine.job_recovery import JobRecovery
from holdfast.engine.jobs import Jobs
from holdfast.engine.lease import Lease
from holdfast.engine.leftovers import Leftovers
from holdfast.engine.registry import AgentTaskRegistry, get_agent_task_registry
from holdfast.engine.runner import Runner
from holdfast.engine.watcher import Watcher
from holdfast.engine.worker import Worker
from holdfast.engine.workshop import Workshop
from holdfast.store import approvals, cancels, jobs, queue, runs
from holdfast.store.approvals import Decision
from holdfast.store.cancels import CancelEffect
from holdfast.store.database import Database, Tx
from holdfast.store.jobs import JobCancel, JobSpec
from holdfast.store.journal import Journal
from holdfast.store.runs import Sent

log = logging.getLogger("holdfast.engine")

T = TypeVar("T")

_RUNS_AT_ONCE, _JOBS_AT_ONCE = 16, 64
"""Tasks claimed in one transaction: short enough that running ones do not wait for it. Runs tell their start in it."""

_LOOK_S = 0.05
"""How often a job of another node is looked at while its end is waited for."""


class Engine:
    """Everything of a node but its sockets. One a process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        agent: ResolvedAgent,
        *,
        clock: Clock | None = None,
        registry: AgentTaskRegistry | None = None,
        toolbox: Toolbox = BUILTIN,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.settings = settings
        self.database = database
        self.agent = agent
        self.registry = registry or get_agent_task_registry()
        self.journal = Journal(database, self.clock, patience_s=settings.db_patience_s)
        self.hub = Hub(self.journal)
        self.workshop = Workshop(settings, toolbox, sandbox)
        self.meters = self.workshop.meters
        leftovers = Leftovers(database, self.workshop.host, settings.kill_grace_s)
        self.lease = Lease(
            database,
            self.clock,
            lease_s=settings.lease_s,
            heartbeat_s=settings.heartbeat_s,
            on_lost=self._lost,
            leftovers=leftovers,
        )
        self.runner = Runner(
            database,
            self.journal,
            self.registry,
            agent,
            self.workshop,
            self.clock,
            node=self._node,
            limit_per_user=settings.max_runs_per_user,
            cancel_grace_s=settings.cancel_grace_s,
            timeout_s=settings.run_timeout_s,
            history_tokens=settings.history_tokens,
            patience_s=settings.db_patience_s,
        )
        self.jobs = Jobs(
            database,
            self.workshop,
            self.clock,
            node=self._node,
            chance=random.random,
            patience_s=settings.db_patience_s,
        )
        self.worker = Worker(self.runner, self.lease, limit=settings.max_runs, batch=_RUNS_AT_ONCE)
        self.job_worker = Worker(self.jobs, self.lease, limit=settings.max_jobs, batch=_JOBS_AT_ONCE)
        self.lease.recover_job = JobRecovery(database, self.workshop, leftovers, self.jobs).recover
        if settings.role != "web":
            self.jobs.adopt = self.job_worker.begin
        self.workers = {"agent": self.worker, "process": self.job_worker}
        self.enforcer = Enforcer(database, self.lease, self.workers)
        self.watcher = Watcher(self.journal, self.hub, self.enforcer, self.workers.values())
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the journal, take the lease, recover what the dead have left, start the loops."""
        await self.journal.start()
        await self.workshop.find()
        await self.lease.start()
        await self.enforcer.enforce()
        loops = {
            "beat": self.lease.beat_forever,
            "recover": self.lease.recover_forever,
            "enforce": self.enforcer.enforce_forever,
            "watch": self.watcher.watch_forever,
        }
        if self.settings.role != "web":
            loops["claim runs"] = self.worker.claim_forever
            loops["claim jobs"] = self.job_worker.claim_forever
        self._loops = [asyncio.create_task(_forever(name, loop), name=name) for name, loop in loops.items()]

    def stop_claiming(self) -> None:
        """Take nothing more; what runs goes on."""
        self.worker.stop_claiming()
        self.job_worker.stop_claiming()

    async def stop(self, drain_s: float = 0.0) -> None:
        """Drain, end the loops, leave. Twice is the same as once."""
        loops, self._loops = self._loops, []
        if not loops:
            return
        self.stop_claiming()
        self.jobs.leave()
        await asyncio.gather(self.worker.drain(drain_s), self.job_worker.drain(drain_s))
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        try:
            await self.journal.stop()
            await self.lease.stop()
        except Exception as error:
            log.warning("the node could not leave in order: %r", error)

    async def send(
        self, user: User, session: str, content: str, *, key: str | None = None, if_busy: str = "queue"
    ) -> tuple[Sent, bool, Cursor]:
        """Accept a message: (its run, dup, the place in the journal behind which its effect is seen).

        Raises:
            SessionNotFound, RunActive, Overloaded, IdempotencyConflict, Unavailable.
        """
        ids = (new_id(), new_id(), new_id())

        async def work(tx: Tx) -> tuple[Sent, bool]:
            return await runs.send(tx, user, session, content, key=key, if_busy=if_busy, ids=ids)

        (sent, dup), at = await self._placed(session, work)
        self.worker.wake()
        if if_busy == "interrupt" and not dup:
            self.registry.cancel(session, "interrupted by a new message")
        return sent, dup, at

    async def continue_run(self, user: User, run: str, *, key: str | None = None) -> tuple[Sent, bool]:
        """Start a run that goes on from what `run` said.

        Raises:
            RunNotFound, Conflict, IdempotencyConflict, Unavailable.
        """
        if not is_id(run):
            raise RunNotFound
        ids = (new_id(), new_id())
        result = await self.database.transact(lambda tx: runs.continue_run(tx, user, run, key=key, ids=ids))
        self.worker.wake()
        return result

    async def cancel(
        self, user: User, session: str, run: str | None = None, reason: str | None = None
    ) -> tuple[CancelEffect, list[str], Cursor]:
        """Stop a run, or everything of a session: (effect, the runs, the place in the journal).

        Raises:
            SessionNotFound, RunNotFound, Unavailable.
        """
        if run is not None and not is_id(run):
            raise RunNotFound

        async def work(tx: Tx) -> tuple[CancelEffect, list[str]]:
            return await cancels.cancel(tx, user, session, run, reason)

        (effect, concerned), at = await self._placed(session, work)
        for one in concerned:
            self.registry.cancel_run(session, one, reason)
        self.worker.wake()
        return effect, concerned, at

    async def decide(
        self, user: User, session: str, run: str, decisions: Sequence[Decision], *, key: str | None = None
    ) -> tuple[str | None, bool, Cursor]:
        """Answer questions of a run that waits: (the run that goes on or None, dup, the place in the journal).

        Raises:
            SessionNotFound, RunNotFound, NoOpenInterrupt, AlreadyResolved, IdempotencyConflict, Unavailable.
        """
        if not is_id(run):
            raise RunNotFound
        ids = (new_id(), new_id())

        async def work(tx: Tx) -> tuple[str | None, bool]:
            return await approvals.decide(tx, user, session, run, decisions, key=key, ids=ids)

        (going_on, dup), at = await self._placed(session, work)
        self.worker.wake()
        return going_on, dup, at

    async def submit_job(self, user: User, spec: JobSpec) -> dict[str, Any]:
        """Put a job into its queue; its body.

        Raises:
            InvalidRequest: there is no such queue.
            Unavailable.
        """
        job = new_id()
        submitted = await self.database.transact(lambda tx: jobs.submit(tx, user, job, spec))
        self.job_worker.wake()
        return submitted

    async def cancel_job(self, user: User, job: str, reason: str | None = None) -> tuple[JobCancel, bool]:
        """Cancel a job: (what it was, whether nothing of it lives any more).

        One that runs is waited for, as long as its processes are given to end and two seconds more.

        Raises:
            JobNotFound, Unavailable.
        """
        found = await self.database.transact(lambda tx: jobs.cancel(tx, user, job, reason))
        if not found.active:
            self.job_worker.wake()
            return found, True
        self.job_worker.cancel(job, reason)
        return found, await self._job_ended(job, self.settings.kill_grace_s + 2.0)

    async def cancel_queue(self, user: User, queue: str, reason: str | None = None) -> tuple[int, int]:
        """Cancel all of a queue: (how many were taken out of it, how many run and are stopped now).

        Raises:
            InvalidRequest: there is no such queue.
            Unavailable.
        """
        removed, active = await self.database.transact(lambda tx: jobs.cancel_queue(tx, user, queue, reason))
        for job in active:
            self.job_worker.cancel(job, reason)
        return removed, len(active)

    async def _job_ended(self, job: str, within_s: float) -> bool:
        """Wait for the end of a job, here or on another node."""
        until = self.clock.monotonic() + within_s
        while (left_s := until - self.clock.monotonic()) > 0:
            live = self.jobs.live(job)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s if live else min(left_s, _LOOK_S)):
                    await (live.done.wait() if live else asyncio.sleep(_LOOK_S * 2))
            if await self.job_has_ended(job):
                return True
        return False

    async def job_has_ended(self, job: str) -> bool:
        """Whether nothing will happen to a job any more."""
        if (live := self.jobs.live(job)) is not None and not live.done.is_set():
            return False
        async with self.database.read() as conn:
            return (await jobs.row_of(conn, job))["ended_at"] is not None

    async def change_queue(
        self,
        user: User,
        session: str,
        op: str,
        task: str,
        version: int,
        *,
        position: int = 1,
        content: str = "",
        other: str = "",
        other_version: int = 0,
    ) -> tuple[list[QueueItem], Cursor]:
        """Move, edit, remove or swap what waits: (the queue afterwards, the place in the journal).

        Raises:
            SessionNotFound, Conflict, InvalidRequest, Unavailable.
        """

        async def work(tx: Tx) -> list[QueueItem]:
            match op:
                case "move":
                    return await queue.move(tx, user, session, task, version, position)
                case "edit":
                    return await queue.edit(tx, user, session, task, version, content)
                case "remove":
                    return await queue.remove(tx, user, session, task, version)
                case _:
                    return await queue.swap(tx, user, session, task, version, other, other_version)

        return await self._placed(session, work)

    async def _placed(self, session: str, work: Callable[[Tx], Awaitable[T]]) -> tuple[T, Cursor]:
        if not is_id(session):
            raise SessionNotFound

        async def with_head(tx: Tx) -> tuple[T, int]:
            return await work(tx), await tx.head(session)

        result, head = await self.database.transact(with_head)
        return result, Cursor(self.database.epoch, head)

    def _node(self) -> str:
        return self.lease.node.id

    def _lost(self) -> None:
        self.meters.leases_lost += 1
        self.worker.abandon()
        self.job_worker.abandon()


async def _forever(name: str, loop: Callable[[], Awaitable[Any]]) -> None:
    """A loop that outlives its own faults."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("loop %s failed; it starts again", name)
            await asyncio.sleep(1.0)
