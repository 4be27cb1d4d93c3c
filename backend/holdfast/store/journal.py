"""The journal's hot path: group commit of what the runs of this process say.

A run opens a `RunWriter` and puts events into it. One loop takes all that is waiting, from all
sessions, and commits it in one transaction; nobody waits for a timer, so a lone chunk commits at
once and under load the batches grow by themselves. After the commit, and never before, the events
go to `on_commit`.

*The position is the fence.* A writer appends at `head + 1`. If somebody else has written there, the
batch is refused; the journal reads what stands there, checks that the run still has its attempt, and
tries again behind it, or ends the writer with `LeaseLost`. Claim, cancel, requeue and recovery each
append an event, so whoever is out of date cannot append.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import bindparam, select, text
from sqlalchemy import func as sql_func

from holdfast.clock import Clock, rfc3339
from holdfast.domain.errors import LeaseLost, Unavailable
from holdfast.domain.events import Recorded
from holdfast.domain.tasks import ACTIVE
from holdfast.store.appenders import Addition, PositionTaken, make_appender
from holdfast.store.database import Database
from holdfast.store.tables import events, sessions, tasks

log = logging.getLogger("holdfast.journal")

BATCH_ROWS = 4096
"""The most events of one commit."""

WINDOW_EVENTS = 256
WINDOW_BYTES = 256 * 1024
"""How far a run may be ahead of its commits."""

OnCommit = Callable[[str, list[Recorded]], None]


class RunWriter:
    """One run's way into the journal: `put` never waits, `room` and `flush` do.

    Raises from each of them: `LeaseLost` when the run no longer owns its session's position,
    `Unavailable` when the database was gone for longer than the journal's patience.
    """

    __slots__ = (
        "_journal",
        "attempt",
        "bytes",
        "committed",
        "failure",
        "head",
        "on_failure",
        "pending",
        "run",
        "session",
        "taken",
    )

    def __init__(self, journal: "Journal", session: str, run: str, attempt: int, head: int) -> None:
        self._journal = journal
        self.session = session
        self.run = run
        self.attempt = attempt
        self.head = head
        self.pending: list[tuple[str, str]] = []
        self.taken: list[tuple[str, str]] = []
        self.bytes = 0
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self.committed = asyncio.Event()
        self.committed.set()

    @property
    def full(self) -> bool:
        """Whether the run is as far ahead of its commits as it may be."""
        return len(self.pending) >= WINDOW_EVENTS or self.bytes >= WINDOW_BYTES

    def put(self, kind: str, data: str) -> None:
        """Hand one encoded event over; it will be committed after those before it."""
        if self.failure is not None:
            raise self.failure
        self.pending.append((kind, data))
        self.bytes += len(data)
        self.committed.clear()
        self._journal.wake(self)

    async def room(self) -> None:
        """Return when the run may go on."""
        while self.full and self.failure is None:
            self.committed.clear()
            await self.committed.wait()
        if self.failure is not None:
            raise self.failure

    async def flush(self) -> None:
        """Return when all that was put is durable."""
        while (self.pending or self.taken) and self.failure is None:
            self.committed.clear()
            await self.committed.wait()
        if self.failure is not None:
            raise self.failure

    def advance(self, records: Sequence[Recorded]) -> None:
        """A transaction of the run has appended these events; go on behind them.

        Where somebody else has written in between, or something is on its way, the journal finds out
        by itself.
        """
        if records and not self.pending and not self.taken and records[0].seq == self.head + 1:
            self.head = records[-1].seq

    def fail(self, failure: BaseException) -> None:
        """End the writer; what was not committed is dropped."""
        self.failure = failure
        self.pending, self.taken = [], []  # What is on its way is not touched.
        self.bytes = 0
        self.committed.set()
        self.on_failure()


class Journal:
    """Group commit for one process, and the reading of journals."""

    def __init__(self, database: Database, clock: Clock, *, patience_s: float = 20.0) -> None:
        self._database = database
        self._clock = clock
        self._patience_s = patience_s
        self._appender = make_appender(database)
        self._dirty: dict[RunWriter, None] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.on_commit: OnCommit = lambda _session, _records: None
        self.commits = 0
        self.events = 0
        database.on_commit = self._transaction_committed

    async def start(self) -> None:
        """Start the commit loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._loop(), name="journal")

    async def stop(self) -> None:
        """Commit what is waiting, end the loop, close the connection."""
        if self._task is not None:
            while self._dirty:
                pending = [writer for writer in self._dirty if writer.failure is None]
                await asyncio.gather(*(writer.flush() for writer in pending), return_exceptions=True)
                if not pending:
                    break
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._appender.close()

    def open(self, session: str, run: str, attempt: int, head: int) -> RunWriter:
        """A writer for a run that this process has claimed, whose claim stands at `head`.

        The writer moves its head only behind what it has seen and found to leave the run its own: the
        transactions of this very process do not move it either.
        """
        return RunWriter(self, session, run, attempt, head)

    def close(self, writer: RunWriter) -> None:
        """Forget a run's writer."""
        self._dirty.pop(writer, None)

    def wake(self, writer: RunWriter) -> None:
        """Tell the loop that a writer has something."""
        self._dirty[writer] = None
        self._wake.set()

    async def read(self, session: str, after: int, limit: int = 256) -> list[Recorded]:
        """The events of a session after seq `after`, in order, at most `limit`.

        Raises:
            Unavailable: the database cannot be reached.
        """
        async with self._database.read() as conn:
            rows = await conn.execute(
                _READ[self._database.dialect], {"session": session, "after": after, "limit": limit}
            )
            return _records(rows.all())

    async def head(self, session: str) -> int:
        """The seq of a session's last event; 0 when there is none."""
        async with self._database.read() as conn:
            return await conn.scalar(select(sql_func.max(events.c.seq)).filter_by(session_id=session)) or 0

    async def heads(self, wanted: list[str]) -> dict[str, int]:
        """The heads of many sessions at once, for the watcher."""
        statement = (
            select(events.c.session_id, sql_func.max(events.c.seq))
            .where(events.c.session_id.in_(wanted))
            .group_by(events.c.session_id)
        )
        async with self._database.read() as conn:
            return {row[0]: row[1] for row in await conn.execute(statement)}

    def _transaction_committed(self, appended: dict[str, list[Recorded]]) -> None:
        for session, records in appended.items():
            self.on_commit(session, records)

    async def _loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                batch = self._take()
                try:
                    await self._commit(batch)
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    log.exception("the journal could not commit a batch")
                    for writer in batch:
                        writer.fail(error)

    def _take(self) -> list[RunWriter]:
        batch: list[RunWriter] = []
        room = BATCH_ROWS
        for writer in list(self._dirty):
            del self._dirty[writer]
            if writer.failure is not None or not writer.pending:
                continue
            writer.taken, writer.pending, writer.bytes = writer.pending, [], 0
            batch.append(writer)
            room -= len(writer.taken)
            if room <= 0:
                break
        batch.sort(key=lambda writer: writer.session)
        return batch

    async def _commit(self, batch: list[RunWriter]) -> None:
        deadline = self._clock.monotonic() + self._patience_s
        pause_s = 0.05
        uncertain = False
        while batch := [writer for writer in batch if writer.taken]:
            try:
                if uncertain:
                    await self._resolve(batch)
                    uncertain = False
                    continue
                await self._write(batch)
                return
            except PositionTaken:
                uncertain = True
            except Unavailable as error:
                uncertain = True
                if self._clock.monotonic() > deadline:
                    for writer in batch:
                        writer.fail(error)
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 1.0)

    async def _write(self, batch: list[RunWriter]) -> None:
        now = self._clock.now()
        await self._appender.write(
            [Addition(one.session, one.run, one.attempt, one.head + 1, one.taken) for one in batch], now
        )
        self.commits += 1
        ts = rfc3339(now)
        for writer in batch:
            self._settle(writer, ts)

    def _settle(self, writer: RunWriter, ts: str) -> None:
        run, taken, first = writer.run, writer.taken, writer.head + 1
        writer.taken = []
        writer.head += len(taken)
        self.events += len(taken)
        self.on_commit(writer.session, [Recorded(seq, run, ts, data) for seq, (_, data) in enumerate(taken, first)])
        writer.committed.set()

    async def _resolve(self, batch: list[RunWriter]) -> None:
        """Find out, for each writer, what stands where it wanted to write.

        Events of its own that a lost answer left there are taken as committed. If others are there
        and its attempt is over, it fails with `LeaseLost`; else its head moves behind them.
        """
        for writer in batch:
            records = await self._all_after(writer.session, writer.head)
            own = 0
            for record, attempt in records:
                if own < len(writer.taken) and record.run == writer.run and attempt == writer.attempt:
                    if record.data != writer.taken[own][1]:
                        break
                    own += 1
                else:
                    break
            writer.taken = writer.taken[own:]
            if records:
                writer.head = records[-1][0].seq
                self.on_commit(writer.session, [record for record, _ in records])
            if not writer.taken and len(records) == own:
                writer.committed.set()
            elif not await self._owns(writer):
                writer.fail(LeaseLost(f"run {writer.run} attempt {writer.attempt} is over"))
            elif not writer.taken:
                writer.committed.set()

    async def _all_after(self, session: str, after: int) -> list[tuple[Recorded, int]]:
        statement = (
            select(events.c.seq, events.c.task_id, events.c.created_at, events.c.data, events.c.attempt)
            .where(events.c.session_id == session, events.c.seq > after)
            .order_by(events.c.seq)
        )
        async with self._database.read() as conn:
            rows = (await conn.execute(statement)).all()
        return [(Recorded(row[0], row[1], rfc3339(row[2]), row[3]), row[4]) for row in rows]

    async def _owns(self, writer: RunWriter) -> bool:
        statement = (
            select(tasks.c.id)
            .join(sessions, sessions.c.id == tasks.c.session_id)
            .where(tasks.c.id == writer.run, tasks.c.attempt == writer.attempt, tasks.c.state.in_(ACTIVE))
        )
        async with self._database.read() as conn:
            return (await conn.execute(statement)).first() is not None


_READ: dict[str, Any] = {}
for _dialect, _run in (("sqlite", "task_id"), ("postgresql", "task_id::text")):
    _READ[_dialect] = text(
        f"SELECT seq, {_run}, created_at, data FROM events"
        " WHERE session_id = :session AND seq > :after ORDER BY seq LIMIT :limit"
    ).bindparams(bindparam("session"), bindparam("after"), bindparam("limit"))


def _records(rows: Any) -> list[Recorded]:
    records: list[Recorded] = []
    last: Any = None
    ts = ""
    for seq, run, created_at, data in rows:
        if created_at != last:
            last = created_at
            ts = created_at if isinstance(created_at, str) else rfc3339(created_at)
        records.append(Recorded(seq, run, ts, data))
    return records
