"""SQLite: how its connections are set up, those for reading, and the one thread in which this process writes.

A unit of work runs in the thread from its first statement to its last: a statement costs no way to
the thread and back. All that wait when a commit ends share the next one, each in a savepoint of its
own, so one that fails takes back nothing but what it did itself, and a commit's wait for the disk is
paid once for all. The journal goes first, and a group is closed after `GROUP_S`: nobody waits long
for the work of others. Other processes are met with BEGIN IMMEDIATE.
"""

import asyncio
import contextlib
import contextvars
import sqlite3
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from holdfast.store.connection import ReadingConnection

T = TypeVar("T")

BUSY_S = 5.0
"""How long a statement waits for another process."""

READERS = 4
"""How many may read at once."""

GROUP_S = 0.004
"""After this a group takes nothing more in; it is committed."""


class Sqlite:
    """One SQLite database: this process's writer, and connections for reading, each with a thread."""

    def __init__(self, url: URL, synchronous: str) -> None:
        self.writer = SqliteWriter(url, synchronous)
        engine = _engine(url, synchronous, begin="BEGIN")
        self._readers = [ReadingConnection(engine.connect) for _ in range(READERS)]
        self._idle: asyncio.LifoQueue[ReadingConnection] = asyncio.LifoQueue()
        for reader in self._readers:
            self._idle.put_nowait(reader)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncGenerator[ReadingConnection]:
        """A connection that nobody else has; it sees one moment from its first statement on."""
        reader = await self._idle.get()
        try:
            yield reader
        finally:
            reader.reset()
            self._idle.put_nowait(reader)

    async def close(self) -> None:
        """Carry out what waits, and close all connections."""
        await self.writer.close()
        for reader in self._readers:
            await asyncio.to_thread(reader.close)


class SqliteWriter:
    """All writing of this process to one SQLite database."""

    def __init__(self, url: URL, synchronous: str) -> None:
        self.engine = _engine(url, synchronous, begin=None)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._connection: Connection | None = None
        self._first: deque[_Turn] = deque()
        self._waiting: deque[_Turn] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._closed = False

    async def run(self, work: Callable[[Connection], T], *, first: bool = False) -> T:
        """What `work` returns, once that is durable; `first` goes before all that wait.

        Raises:
            What the work raises: nothing of it is stored. What the database says of the group.
        """
        if self._closed:
            raise RuntimeError("the database is closed")
        turn = _Turn(work, contextvars.copy_context(), asyncio.get_running_loop().create_future())
        (self._first if first else self._waiting).append(turn)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(), name="sqlite-writer")
        return await turn.done

    async def close(self) -> None:
        """Carry out what waits, close the connection, end the thread."""
        if self._closed:
            return
        self._closed = True
        if self._serving is not None:
            await self._serving
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._first or self._waiting:
                group = [turn for turn in (*self._first, *self._waiting) if not turn.done.cancelled()]
                self._first.clear()
                self._waiting.clear()
                outcomes: list[_Outcome] = await loop.run_in_executor(self._thread, self._commit, group)
                self._waiting.extendleft(reversed(group[len(outcomes) :]))
                for turn, outcome in zip(group, outcomes, strict=False):
                    turn.settle(outcome)
        finally:
            self._serving = None

    def _commit(self, group: "list[_Turn]") -> "list[_Outcome]":
        """Carry out the group's turns in one transaction, until it has taken long enough."""
        try:
            connection = self._connection = self._connection or self.engine.connect()
            outcomes: list[_Outcome] = []
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            closes = time.monotonic() + GROUP_S
            for turn in group:
                outcomes.append(turn.carry_out(connection))
                if time.monotonic() > closes:
                    break
            connection.exec_driver_sql("COMMIT")
        except BaseException as error:
            self._drop()
            return [_Outcome(error=error)] * len(group)  # Whatever it is: nobody is left waiting.
        return outcomes

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # It is given up.
                connection.close()


@dataclass(slots=True, frozen=True)
class _Outcome:
    """What became of one turn."""

    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True, frozen=True, eq=False)
class _Turn:
    """One unit of work that waits."""

    work: Callable[[Connection], Any]
    context: contextvars.Context
    done: asyncio.Future[Any]

    def carry_out(self, connection: Connection) -> _Outcome:
        """Do it, in a savepoint.

        Raises:
            Exception: SQLite has taken back the whole transaction.
        """
        connection.exec_driver_sql("SAVEPOINT turn")
        try:
            outcome = _Outcome(self.context.run(self.work, connection))
        except Exception as error:
            if not driver(connection).in_transaction:
                raise
            connection.exec_driver_sql("ROLLBACK TO turn")
            outcome = _Outcome(error=error)
        connection.exec_driver_sql("RELEASE turn")
        return outcome

    def settle(self, outcome: _Outcome) -> None:
        """Tell whoever waits, if anybody still does."""
        if self.done.cancelled():
            return
        if outcome.error is not None:
            self.done.set_exception(outcome.error)
        else:
            self.done.set_result(outcome.result)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that awaits nothing but a `ThreadConnection`."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    work.close()
    raise RuntimeError("a unit of work may await its connection and nothing else")


def driver(connection: Connection) -> sqlite3.Connection:
    """The driver's own connection."""
    found: Any = connection.connection.driver_connection
    return found


def _engine(url: URL, synchronous: str, *, begin: str | None) -> Engine:
    """An engine whose connections belong to whoever opens them; `begin` is said before a first statement."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_S, "check_same_thread": False})

    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # We say BEGIN ourselves.
        cursor = connection.cursor()
        for pragma in pragmas(synchronous):
            cursor.execute(pragma)
        cursor.close()

    event.listen(engine, "connect", connect)
    if begin is not None:
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def pragmas(synchronous: str) -> list[str]:
    """What every connection is told first."""
    return [
        "PRAGMA journal_mode = WAL",
        f"PRAGMA synchronous = {'FULL' if synchronous == 'full' else 'NORMAL'}",
        "PRAGMA foreign_keys = ON",
        f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}",
        "PRAGMA temp_store = MEMORY",
        "PRAGMA cache_size = -16384",
    ]
