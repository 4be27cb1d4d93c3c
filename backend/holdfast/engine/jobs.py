"""Carries out jobs: starts their commands, keeps their output, keeps their time, and sees to their one end.

A cancel, a limit, the end of the service: whatever stops a job sets its token once; what lives of it is ended by
`engine.processes` alone, and only then the job ends in the store.
"""

import asyncio
import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from holdfast import tracing
from holdfast.agents.cancel import CancelToken
from holdfast.agents.sandbox import Sandbox, Unconfined
from holdfast.clock import Clock
from holdfast.context import about
from holdfast.domain.errors import LeaseLost, Unavailable
from holdfast.domain.tasks import job_status
from holdfast.engine.adopted import Adopted
from holdfast.engine.job_ends import INTERRUPTED, end_of, with_
from holdfast.engine.joblog import JobLog, keeper_command
from holdfast.engine.keeper import STREAMS, LogFull, LogWriter
from holdfast.engine.launch import launch
from holdfast.engine.patience import Patience
from holdfast.engine.processes import Ending, Process, new_mark
from holdfast.engine.worker import Claimed
from holdfast.engine.workshop import Workshop
from holdfast.store import job_steps
from holdfast.store.database import Database
from holdfast.store.job_steps import JobClaim, JobEnd, Place

log = logging.getLogger("holdfast.job")

_REMEMBERED = 10_000
_LINGER_S = 0.25


@dataclass(slots=True)
class LiveJob:
    """A job of this process."""

    claim: JobClaim
    token: CancelToken = field(default_factory=CancelToken)
    process: Process | Adopted | None = None
    stopped_by: Literal["cancel", "limit", "leaving", "lost"] | None = None
    fault: str | None = None
    folder: int | None = None
    detached: asyncio.Event = field(default_factory=asyncio.Event)
    heard_at: float = field(default_factory=time.monotonic)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Jobs:
    """The executor of jobs on one node. `adopt` begins a claim that came without claiming."""

    def __init__(
        self,
        database: Database,
        workshop: Workshop,
        clock: Clock,
        *,
        node: Callable[[], str],
        chance: Callable[[], float],
        patience_s: float,
    ) -> None:
        self._database = database
        self._workshop = workshop
        self._clock = clock
        self._node = node
        self.chance = chance
        self._patiently = Patience(database, clock, patience_s)
        self._meters = workshop.meters
        self._live: dict[str, LiveJob] = {}
        self._early: dict[str, str | None] = {}
        self._leaving = False
        self._background: set[asyncio.Future[object]] = set()
        self.adopt: Callable[[JobClaim], None] | None = None

    def log_of(self, job: str) -> JobLog:
        """What a job has said, as far as this host keeps it."""
        return JobLog(self._workshop.job_folder(job))

    def live(self, job: str) -> LiveJob | None:
        """A job that this process carries out."""
        return self._live.get(job)

    async def claim(self, limit: int) -> Claimed:
        """See `Executor`."""
        place = self.place()
        found = await self._database.transact(lambda tx: job_steps.claim(tx, place, new_mark, limit=limit))
        for claim in found.jobs:
            self._enter(LiveJob(claim))
            due_at = max(claim.created_at, claim.run_at or claim.created_at)
            self._meters.waited("process", max(0.0, (claim.started_at - due_at).total_seconds()))
        return Claimed(found.jobs, found.again, found.due_in_s)

    def cancel(self, task: str, reason: str | None = None) -> None:
        """See `Executor`. A job that is not here yet is stopped as soon as it is."""
        live = self._live.get(task)
        if live is not None:
            self._stop(live, "cancel")
            return
        self._early[task] = reason
        while len(self._early) > _REMEMBERED:
            self._early.pop(next(iter(self._early)))

    def lose(self, task: str) -> None:
        """See `Executor`."""
        live = self._live.get(task)
        if live is not None and live.claim.on_restart == "keep":
            self._detach(live)
        elif live is not None:
            self._stop(live, "lost")

    def hand_back(self) -> None:
        """See `Executor`."""
        self.leave()
        for live in list(self._live.values()):
            self._stop(live, "leaving")

    def leave(self) -> None:
        """The node leaves: jobs that are to be kept go on without it, at once."""
        self._leaving = True
        for live in list(self._live.values()):
            if live.claim.on_restart == "keep" and live.stopped_by is None and live.process is not None:
                self._detach(live)

    async def run(self, claim: JobClaim) -> None:
        """See `Executor`."""
        live = self._live[claim.job]
        names = {"task": claim.job, "user": claim.user}
        with about(**names), tracing.going_on(claim.traceparent, "job", **names):
            await self._run(live)

    async def _run(self, live: LiveJob) -> None:
        claim = live.claim
        try:
            end = await self._carry_out(live)
            if end is not None:
                await self._end(live, end)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(self._abandon(live)))
            raise
        except LeaseLost as lost:
            log.warning("lease lost: %s", lost)
            await self._abandon(live)
        except Unavailable:
            log.error("job %s: the database is gone; it is ended when that is back", claim.job)
            await self._abandon(live)
        except Exception:
            log.exception("job %s could not be ended; it is left to the recovery", claim.job)
            await self._abandon(live)
        finally:
            if live.folder is not None:
                os.close(live.folder)
            self._live.pop(claim.job, None)
            live.done.set()
            live.news.set()

    def take_over(self, claim: JobClaim, process: Adopted) -> None:
        """Carry out a job that this node has adopted."""
        assert self.adopt is not None
        self._enter(LiveJob(claim, process=process))
        self.adopt(claim)

    @property
    def may_adopt(self) -> bool:
        """Whether this node carries out jobs, and goes on to."""
        return self.adopt is not None and not self._leaving

    def place(self) -> Place:
        """What this node and its processes are known by."""
        return Place(self._node(), self._workshop.host, self._workshop.boot_id)

    def _enter(self, live: LiveJob) -> None:
        self._live[live.claim.job] = live
        if live.claim.job in self._early:
            self._early.pop(live.claim.job)
            self._stop(live, "cancel")

    def _stop(self, live: LiveJob, by: Literal["cancel", "limit", "leaving", "lost"]) -> None:
        if live.stopped_by is None and not live.detached.is_set():
            live.stopped_by = by
            live.token.set(by)

    async def _carry_out(self, live: LiveJob) -> JobEnd | None:
        """From the start to the end of the process; None when the job goes on without this service."""
        writer: LogWriter | None = None
        if live.process is None:
            if live.token.is_set:
                return self._stopped(live, None)
            try:
                writer = await self._start(live)
            except (OSError, ValueError) as error:
                return JobEnd(outcome="failed", error=f"It could not be started: {_in_words(error)}")
        live.token.on_set(lambda: self._end_process(live))
        if self._leaving and live.claim.on_restart == "keep":
            self._detach(live)
        limits = asyncio.create_task(self._keep_time(live))
        try:
            with tracing.span("process", pid=live.process.pid if live.process else None):
                return await self._result(live)
        finally:
            limits.cancel()
            if writer is not None:
                writer.close()

    async def _start(self, live: LiveJob) -> LogWriter | None:
        """Start the command; the writer of its output, when that is this service's to write.

        It is held until the store knows its pid, and has agreed that the job is still this node's: a node that was
        frozen for longer than its lease begins nothing.
        """
        claim, files = live.claim, self.log_of(live.claim.job)
        files.make()
        writer = None
        if claim.on_restart == "end":
            writer = LogWriter(str(files.log), str(files.index), self._workshop.output_bytes)
        try:
            live.process = process = await self._launch(live, files, writer)
            known = process.identity
            committed = self._patiently(lambda tx: job_steps.started(tx, claim, known.pid, known.started))
            await asyncio.gather(committed, process.enter())
        except BaseException:
            if writer is not None:
                writer.close()
            raise
        process.release()
        return writer

    async def _launch(self, live: LiveJob, files: JobLog, writer: LogWriter | None) -> Process:
        """The process of the command, held; one that is to be kept is started by a keeper."""
        claim, shop = live.claim, self._workshop
        limits = shop.limits
        if claim.memory_mb is not None:
            limits = replace(limits, memory_bytes=claim.memory_mb << 20)
        confines = Unconfined() if claim.sandbox == "off" else shop.sandbox
        if is_of_host := claim.cwd is not None and claim.cwd.startswith("/"):
            folder, inner = self._folder_of_host(live, confines), list[str]()
        else:
            folder, inner = _own_folder(claim, files.folder)
        keeper = keeper_command(files, claim.mark, shop.output_bytes, _LINGER_S, sys.executable)
        return await launch(
            [*inner, *_argv(claim)],
            folder,
            confines,
            session=claim.job,
            limits=limits,
            total_memory_bytes=shop.total_memory_bytes,
            on_output=lambda stream, data: self._hear(live, writer, stream, data),
            mark=claim.mark,
            env=claim.env,
            as_owner=is_of_host,
            keeper=keeper if claim.on_restart == "keep" else (),
            on_stuck=lambda failures: self._tell_stuck(live, failures),
            held=True,
        )

    def _folder_of_host(self, live: LiveJob, confines: Sandbox) -> Path:
        """The folder that a job names, which may have become something else since it was submitted.

        It is opened, looked at where it really is, and handed on as what is open: a link that somebody puts in its
        place meanwhile leads nowhere.

        Raises:
            OSError: there is none, or jobs may not work there.
        """
        path = live.claim.cwd or ""
        live.folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        real = Path(os.readlink(f"/proc/self/fd/{live.folder}"))
        if not self._workshop.is_allowed(real):
            raise PermissionError(errno.EACCES, "It is not a folder that jobs may work in", path)
        return Path(f"/proc/{os.getpid()}/fd/{live.folder}") if confines.name == "bubblewrap" else real

    def _hear(self, live: LiveJob, writer: LogWriter | None, stream: str, data: bytes) -> None:
        live.heard_at = time.monotonic()
        if writer is None:
            log.error("job %s: its keeper says: %s", live.claim.job, data.decode(errors="replace")[:500])
            return
        try:
            writer.write(STREAMS.index(stream), data)
        finally:
            live.news.set()

    async def _result(self, live: LiveJob) -> JobEnd | None:
        """Wait for the end of the process, and put it into words; None when it goes on without this service."""
        process = live.process
        assert process is not None
        waiting, left = asyncio.ensure_future(process.wait()), asyncio.ensure_future(live.detached.wait())
        try:
            await asyncio.wait({waiting, left}, return_when=asyncio.FIRST_COMPLETED)
            if live.detached.is_set():
                return None
            ending = await waiting
        except LogFull:
            live.fault = f"It was stopped: it said more than {self._workshop.output_bytes >> 20} MiB"
            ending = await process.stop(0.0)
        finally:
            waiting.cancel()
            left.cancel()
        return self._put(live, process, ending)

    def _put(self, live: LiveJob, process: Process | Adopted, ending: Ending) -> JobEnd:
        """How it ended, by what the kernel or the keeper says, and why it was stopped if it was."""
        claim = live.claim
        end = end_of(ending.exit_code, ending.signal, ending.cpu_s, ending.peak_memory_bytes)
        if claim.on_restart == "keep":
            record = self.log_of(claim.job).exit_record(claim.mark)
            if record is not None:
                usage = (max(record.cpu_s, ending.cpu_s or 0.0), ending.peak_memory_bytes or record.max_rss_bytes)
                end = end_of(record.exit_code, record.signal, *usage, too_much=record.too_much)
        if ending.how != "exited":
            self._meters.killed(ending.how)
        if ending.out_of_memory and end.outcome == "failed":
            end = with_(end, error="It ran out of memory")
        if live.fault is not None:
            end = with_(end, outcome="failed", error=live.fault)
        end = with_(end, kill_failures=process.kill_failures)
        return self._stopped(live, end, by_itself=ending.how == "exited")

    def _stopped(self, live: LiveJob, end: JobEnd | None, *, by_itself: bool = False) -> JobEnd:
        """The end of a job that was stopped, with what is known of its process, which may have ended before that."""
        end = end or JobEnd(outcome="failed")
        if live.stopped_by == "cancel":
            return with_(end, outcome="cancelled", error=None)
        if live.stopped_by in ("leaving", "lost") and not by_itself:
            return with_(end, outcome="failed", error=INTERRUPTED)
        return end

    async def _end(self, live: LiveJob, end: JobEnd) -> None:
        """Commit the end, however long the database is away: what has happened is not forgotten."""
        claim, chance = live.claim, self.chance()
        while True:
            try:
                state = await self._patiently(lambda tx: job_steps.end(tx, claim.job, claim.attempt, end, chance))
                break
            except Unavailable:
                log.error("job %s has ended; it is written down when the database is back", claim.job)
        took_s = max(0.0, (self._clock.now() - claim.started_at).total_seconds())
        self._meters.ran("process", took_s, job_status(state))
        log.info("job %s: %s%s", claim.job, job_status(state), f" ({end.error})" if end.error else "")

    async def _keep_time(self, live: LiveJob) -> None:
        """Stop the job when it has run, or been silent, for too long."""
        claim, began = live.claim, time.monotonic()
        if isinstance(live.process, Adopted):
            began -= max(0.0, (self._clock.now() - claim.started_at).total_seconds())
        while claim.timeout_s is not None or claim.idle_timeout_s is not None:
            bounds: list[tuple[float, str]] = []
            if claim.timeout_s is not None:
                bounds.append((began + claim.timeout_s, f"Timed out after {claim.timeout_s:g} s"))
            if claim.idle_timeout_s is not None:
                silent = f"Timed out: it said nothing for {claim.idle_timeout_s:g} s"
                bounds.append((self._last_heard(live) + claim.idle_timeout_s, silent))
            until, fault = min(bounds)
            if (left_s := until - time.monotonic()) <= 0:
                live.fault = live.fault or fault
                self._stop(live, "limit")
                return
            await asyncio.sleep(left_s)

    def _last_heard(self, live: LiveJob) -> float:
        """When the job last said something, on the monotonic clock; a keeper writes without telling us."""
        if live.claim.on_restart != "keep":
            return live.heard_at
        try:
            ago = self._clock.now().timestamp() - self.log_of(live.claim.job).log.stat().st_mtime
        except OSError:
            return live.heard_at
        return max(live.heard_at, time.monotonic() - max(0.0, ago))

    def _end_process(self, live: LiveJob) -> None:
        """The one way in which the process of a job is ended."""
        if live.process is not None and not live.detached.is_set():
            grace_s = 0.0 if live.stopped_by == "lost" else self._workshop.kill_grace_s
            self._in_background(live.process.stop(grace_s))

    def _detach(self, live: LiveJob) -> None:
        if live.process is not None and not live.detached.is_set():
            log.info("job %s: goes on without this service", live.claim.job)
            live.detached.set()
            live.process.detach()

    async def _abandon(self, live: LiveJob) -> None:
        """Let go of a job that belongs to somebody else: it is killed, or left to whoever adopts it."""
        if live.claim.on_restart == "keep":
            self._detach(live)
        elif live.process is not None:
            await live.process.stop(0.0)

    def _tell_stuck(self, live: LiveJob, failures: int) -> None:
        self._meters.kill_failures += 1
        job, attempt = live.claim.job, live.claim.attempt
        self._in_background(self._database.transact(lambda tx: job_steps.stuck(tx, job, attempt, failures)))

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)

        def done(ended: "asyncio.Future[object]") -> None:
            self._background.discard(task)
            if not ended.cancelled() and (fault := ended.exception()) is not None:
                log.warning("beside a job: %r", fault)

        task.add_done_callback(done)


def _argv(claim: JobClaim) -> list[str]:
    return ["/bin/bash", "-c", claim.command] if isinstance(claim.command, str) else claim.command


def _own_folder(claim: JobClaim, folder: Path) -> tuple[Path, list[str]]:
    """The folder that a job has for itself, and what goes into one within it first."""
    own = folder / "work"
    own.mkdir(parents=True, exist_ok=True, mode=0o700)
    inner = [] if claim.cwd is None else ["/bin/sh", "-c", 'mkdir -p -- "$0" && cd -- "$0" && exec "$@"', claim.cwd]
    return own, inner


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
