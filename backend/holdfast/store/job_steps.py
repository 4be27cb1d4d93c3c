"""The life of a job while a node owns it: claimed, started, ended, tried again, adopted.

Each step is one transaction; whoever does not own the job in that attempt any more gets `LeaseLost`.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import RowMapping, insert, select, update

from holdfast.domain.errors import LeaseLost
from holdfast.domain.retry import backoff_s
from holdfast.domain.tasks import ACTIVE, TaskState
from holdfast.store import gates, processes
from holdfast.store.database import Tx
from holdfast.store.endings import End, end_task
from holdfast.store.jobs import CANCELLED
from holdfast.store.processes import Known
from holdfast.store.tables import jobs, tasks
from holdfast.store.tables import processes as processes_table


class JobClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A job that this node carries out; `mark` is that of its process, which is written down already."""

    job: str
    user: str
    attempt: int
    mark: str
    name: str
    queue: str
    command: list[str] | str
    env: dict[str, str]
    cwd: str | None
    sandbox: Literal["on", "off"]
    on_restart: Literal["end", "keep"]
    timeout_s: float | None
    idle_timeout_s: float | None
    memory_mb: int | None
    created_at: datetime
    run_at: datetime | None
    started_at: datetime
    traceparent: str | None

    @property
    def task(self) -> str:
        """The job as the engine knows all its tasks."""
        return self.job


class JobClaims(NamedTuple):
    """Jobs that were claimed, whether to come again at once, and when the next one is due."""

    jobs: list[JobClaim]
    again: bool
    due_in_s: float | None


class Place(NamedTuple):
    """Where jobs are carried out: the node, and what its processes are known by."""

    node: str
    host: str
    boot_id: str


class JobEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a try of a job ended."""

    outcome: Literal["success", "failed", "cancelled"]
    error: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    kill_failures: int = 0


async def claim(tx: Tx, place: Place, new_mark: Callable[[], str], *, limit: int) -> JobClaims:
    """Take up to `limit` jobs whose turn it is, and write down the process that each is about to start."""
    taken = await gates.take(tx, "process", place.node, limit=limit)
    if not taken.tasks:
        due = None if taken.again else await gates.next_due(tx.conn, tx.now)
        return JobClaims([], taken.again, None if due is None else (due - tx.now).total_seconds())
    rows = {row["id"]: row for row in taken.tasks}
    found = (await tx.conn.execute(select(jobs).where(jobs.c.id.in_(rows)))).mappings().all()
    claims = [_claim_of(tx, rows[row["id"]], row, rows[row["id"]]["attempt"] + 1, new_mark()) for row in found]
    announced = [processes.row(one.mark, place.node, place.host, place.boot_id, one.job) for one in claims]
    common = {"action_id": None, "pid": None, "started": None, "created_at": tx.now}
    await tx.conn.execute(insert(processes_table), [{**row, **common} for row in announced])
    await tx.conn.execute(update(jobs).where(jobs.c.id.in_(rows)).values(host=place.host))
    return JobClaims(claims, True, None)


def _claim_of(tx: Tx, task: RowMapping, job: RowMapping, attempt: int, mark: str) -> JobClaim:
    kept = ("name", "command", "env", "cwd", "sandbox", "on_restart", "timeout_s", "idle_timeout_s", "memory_mb")
    return JobClaim(
        job=task["id"],
        user=task["user_id"],
        attempt=attempt,
        mark=mark,
        queue=task["queue"],
        created_at=task["created_at"],
        run_at=task["run_at"],
        started_at=task["started_at"] or tx.now,
        traceparent=task["traceparent"],
        **{name: job[name] for name in kept},
    )


async def started(tx: Tx, claim: JobClaim, pid: int, started: str) -> None:
    """The process of a job is there; it may begin when this is committed.

    Raises:
        LeaseLost: the job is not active in this attempt: it must not begin.
    """
    await _owned(tx, claim.job, claim.attempt)
    await processes.started(tx, claim.mark, pid, started, None)


async def end(tx: Tx, job: str, attempt: int, how: JobEnd, chance: float) -> TaskState:
    """End a try of a job: for good, or until its next try. Where the task stands then.

    A cancel that was promised is kept, whatever the process did meanwhile. `chance`, from 0 to 1, spreads the
    times of next tries.

    Raises:
        LeaseLost: the job is not active in this attempt.
    """
    task = await _owned(tx, job, attempt)
    row = (await tx.conn.execute(select(jobs).filter_by(id=job))).mappings().one()
    if task["cancellation_status"] is not None:
        how = msgspec.structs.replace(how, outcome="cancelled")
    values: dict[str, Any] = {**msgspec.structs.asdict(how), "error": how.error}
    del values["outcome"]
    values["kill_failures"] = max(row["kill_failures"], how.kill_failures)
    if how.outcome == "cancelled":
        values["error"] = CANCELLED
    if how.outcome == "failed":
        values["failures"] = row["failures"] + 1
    again = how.outcome == "failed" and row["failures"] < row["retries"]
    if again:
        wait = timedelta(seconds=backoff_s(row["failures"], row["retry_backoff_s"], chance))
        later = {"state": TaskState.PENDING, "node_id": None, "run_at": tx.now + wait, "last_updated": tx.now}
        later["started_at"] = None
        await tx.conn.execute(update(tasks).where(tasks.c.id == job).values(**later))
    else:
        await end_task(tx, task, End(outcome=how.outcome))
    await tx.conn.execute(update(jobs).where(jobs.c.id == job).values(**values))
    await processes.gone_of_task(tx, job)
    if again:
        return TaskState.PENDING
    return {"success": TaskState.SUCCESS, "failed": TaskState.FAILURE}.get(how.outcome, TaskState.CANCELED)


async def adopt(tx: Tx, job: str, attempt: int, place: Place) -> tuple[JobClaim, Known] | None:
    """Take over a job that a dead node has left running on this host; None when there is no such process.

    Raises:
        LeaseLost: somebody else has it by now.
    """
    task = await _owned(tx, job, attempt)
    row = (await tx.conn.execute(select(jobs).filter_by(id=job))).mappings().one()
    left = [known for known in await processes.of_run(tx, job) if known.boot_id == place.boot_id and known.pid]
    if row["on_restart"] != "keep" or not left:
        return None
    mine = {"attempt": attempt + 1, "node_id": place.node, "last_updated": tx.now}
    await tx.conn.execute(update(tasks).where(tasks.c.id == job).values(**mine))
    await processes.hand_over(tx, left[0].mark, place.node)
    return _claim_of(tx, task, row, attempt + 1, left[0].mark), left[0]


async def stuck(tx: Tx, job: str, attempt: int, failures: int) -> None:
    """Kills of a job's processes that did not work so far, for people to see."""
    owned = select(tasks.c.id).where(tasks.c.id == job, tasks.c.attempt == attempt, tasks.c.state.in_(ACTIVE))
    await tx.conn.execute(update(jobs).where(jobs.c.id.in_(owned)).values(kill_failures=failures))


async def _owned(tx: Tx, job: str, attempt: int) -> RowMapping:
    task = (await tx.conn.execute(select(tasks).filter_by(id=job).with_for_update())).mappings().first()
    if task is None or task["attempt"] != attempt or task["state"] not in ACTIVE:
        raise LeaseLost(f"job {job} attempt {attempt} is over")
    return task
