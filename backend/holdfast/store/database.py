"""The database: where it is, how a transaction runs, and what its errors mean.

`Database.transact` runs one unit of work in one transaction and retries it when the database says
that it met another (deadlock, serialization, busy). What the work appends to journals is handed to
`on_commit` after the commit and never before. On PostgreSQL each unit has a connection; on SQLite
all units of the process go through one thread and share commits (`store/sqlite.py`).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection as PlainConnection
from sqlalchemy import bindparam, exc, func, insert, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from holdfast import tracing
from holdfast.clock import Clock, SystemClock, rfc3339
from holdfast.domain import events as ev
from holdfast.domain.errors import SessionNotFound, Unavailable
from holdfast.store.connection import Connection, ThreadConnection
from holdfast.store.sqlite import Sqlite, finished
from holdfast.store.tables import events, meta, sessions

log = logging.getLogger("holdfast.store")

T = TypeVar("T")
Written = tuple[str | None, int, ev.Event]
"""What is appended: the run or None, its attempt, the event."""

Unit = Callable[["Tx"], Coroutine[Any, Any, T]]
"""A unit of work: it awaits its transaction and nothing else, for it may run in a thread of its own."""

_LAST = select(func.max(events.c.seq)).where(events.c.session_id == bindparam("session")).scalar_subquery()
_HEAD = (
    select(func.coalesce(_LAST, 0))
    .where(sessions.c.id == bindparam("session"))
    .with_for_update(read=True, key_share=True)
)
"""The head of a session that is held: what a foreign key would do for each row, once."""

_RETRIES = 8
_RETRYABLE_STATES = {"40001", "40P01", "55P03"}


class DatabaseUrlError(ValueError):
    """A database URL that names no database that Holdfast can use."""


def normalize_url(url: str) -> URL:
    """The URL with the driver, from any usual spelling.

    Raises:
        DatabaseUrlError: neither SQLite nor PostgreSQL, or no URL at all.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        # The text is not shown: it may hold a password.
        raise DatabaseUrlError("not a database URL; use sqlite:///PATH or postgresql://...") from None
    kind = parsed.drivername.split("+")[0]
    if kind in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+asyncpg")
    if kind == "sqlite":
        return parsed.set(drivername="sqlite")
    raise DatabaseUrlError(f"{kind!r} is not supported; use sqlite:///PATH or postgresql://...")


def is_connection_error(error: BaseException) -> bool:
    """Whether the database could not be reached, as opposed to having refused the statement."""
    if isinstance(error, exc.DBAPIError):
        if error.connection_invalidated:
            return True
        cause = error.orig
        state = str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")
        words = str(cause)
        return (
            isinstance(error, exc.InterfaceError)
            or state[:2] in ("08", "57", "53")
            or "unable to open" in words
            or "disk I/O error" in words
            or "is full" in words
        )
    return isinstance(error, OSError | exc.TimeoutError | TimeoutError)


def is_retryable(error: BaseException) -> bool:
    """Whether the same transaction may succeed when it is run again."""
    if not isinstance(error, exc.DBAPIError):
        return False
    cause = error.orig
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state in _RETRYABLE_STATES or "database is locked" in str(cause)


@dataclass(slots=True)
class Tx:
    """One open transaction: its connection, the database's time, and what it has appended."""

    conn: Connection
    dialect: str
    now: datetime
    appended: dict[str, list[ev.Recorded]] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)

    async def append(self, session: str, written: Sequence[Written]) -> list[ev.Recorded]:
        """Append events to a session's journal, behind whatever stands there.

        Returns the events at their places. They are seen by others when the transaction commits.
        """
        while True:
            rows = await self._numbered(session, written)
            try:
                async with self._savepoint():
                    await self.conn.execute(insert(events), rows)
            except exc.IntegrityError as error:
                if self.dialect == "sqlite" or "events" not in str(error.orig):
                    raise
                continue  # Somebody was faster; behind them is room.
            break
        ts = rfc3339(self.now)
        records = [ev.Recorded(row["seq"], row["task_id"], ts, row["data"]) for row in rows]
        self.appended.setdefault(session, []).extend(records)
        return records

    async def head(self, session: str) -> int:
        """The seq of the last event of a session, 0 when there is none; the session cannot go meanwhile.

        Raises:
            SessionNotFound: there is no such session.
        """
        if mine := self.appended.get(session):
            return mine[-1].seq  # Nobody can write behind that before this transaction is over.
        if session in self.heads:
            return self.heads[session]
        found = await self.conn.scalar(_HEAD, {"session": session})
        if found is None:
            raise SessionNotFound
        if self.dialect == "sqlite":  # BEGIN IMMEDIATE: it stays.
            self.heads[session] = found
        return found

    async def _numbered(self, session: str, written: Sequence[Written]) -> list[dict[str, Any]]:
        head = await self.head(session)
        return [
            {
                "session_id": session,
                "seq": head + place,
                "task_id": run,
                "attempt": attempt,
                "type": ev.event_type(event_),
                "data": ev.encode(event_),
                "created_at": self.now,
            }
            for place, (run, attempt, event_) in enumerate(written, start=1)
        ]

    @contextlib.asynccontextmanager
    async def _savepoint(self) -> AsyncGenerator[None]:
        if self.dialect == "sqlite":  # BEGIN IMMEDIATE: nobody can be faster.
            yield
            return
        assert isinstance(self.conn, AsyncConnection)
        async with self.conn.begin_nested():
            yield


OnCommit = Callable[[dict[str, list[ev.Recorded]]], None]


class Database:
    """One database: SQLite with its threads (`sqlite`), or PostgreSQL with its connections (`engine`)."""

    def __init__(self, url: str, *, clock: Clock | None = None, synchronous: str = "full", pool_size: int = 16) -> None:
        self.url = normalize_url(url)
        self.dialect = self.url.get_backend_name()
        self.synchronous = synchronous
        self.on_commit: OnCommit = lambda _: None
        self.epoch = ""
        self._clock = clock
        self._local = clock or SystemClock()
        self._random = random.Random()
        self._running: set[asyncio.Task[Any]] = set()
        self.sqlite = Sqlite(self.url, synchronous) if self.dialect == "sqlite" else None
        self._engine = None if self.sqlite else _postgresql(self.url, synchronous, pool_size)

    @property
    def engine(self) -> AsyncEngine:
        """PostgreSQL's connections."""
        assert self._engine is not None
        return self._engine

    @property
    def sqlite_path(self) -> Path:
        """The database file (SQLite only)."""
        return Path(self.url.database or "")

    async def load_epoch(self) -> None:
        """Read the epoch; done once, after the schema is known to be there."""
        async with self.read() as conn:
            self.epoch = str(await conn.scalar(select(meta.c.value).where(meta.c.key == "epoch")))

    async def close(self) -> None:
        """Wait for running transactions and close all connections."""
        if self._running:
            await asyncio.wait(self._running)
        if self.sqlite is not None:
            await self.sqlite.close()
        else:
            await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncGenerator[Connection]:
        """A connection for reading, in one transaction that sees one moment.

        Raises:
            Unavailable: the database cannot be reached.
        """
        opened = self.sqlite.reading() if self.sqlite is not None else _connection(self.engine)
        async with opened as conn:
            try:
                yield conn
            except (exc.SQLAlchemyError, OSError) as error:
                if is_connection_error(error):
                    raise _gone() from error
                raise

    async def transact(self, work: Unit[T]) -> T:
        """Run `work` in one transaction and commit it; whoever waits may go away, it is finished.

        Raises:
            Unavailable: the database cannot be reached, or stays busy.
        """
        task: asyncio.Task[T] = asyncio.ensure_future(self._attempts(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def carry_out(self, work: Callable[[PlainConnection], T]) -> T:
        """Run a plain function in one transaction, once: for what is no unit of work, as the schema."""
        if self.sqlite is not None:
            return await self.sqlite.writer.run(work)
        async with self.engine.begin() as conn:
            return await conn.run_sync(work)

    async def now(self, conn: Connection) -> datetime:
        """The database's time; on SQLite that is this machine's."""
        if self._clock is None and self.dialect == "postgresql":
            return (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
        return self._local.now()

    async def _attempts(self, work: Unit[T]) -> T:
        for attempt in range(_RETRIES):
            try:
                with tracing.part("commit"):
                    return await self._once(work)
            except (exc.SQLAlchemyError, OSError) as error:
                if is_connection_error(error):
                    raise _gone() from error
                if not is_retryable(error):
                    raise
            await asyncio.sleep(self._random.uniform(0, 0.01 * 2**attempt))
        raise Unavailable("The database is busy", retry_after_s=1.0)

    async def _once(self, work: Unit[T]) -> T:
        if self.sqlite is not None:
            result, tx = await self.sqlite.writer.run(lambda connection: self._in_thread(connection, work))
        else:
            result, tx = await self._on_connection(work)
        if tx.appended:
            self.on_commit(tx.appended)
        return result

    def _in_thread(self, connection: PlainConnection, work: Unit[T]) -> tuple[T, Tx]:
        tx = Tx(ThreadConnection(connection), self.dialect, self._local.now())
        return finished(work(tx)), tx

    async def _on_connection(self, work: Unit[T]) -> tuple[T, Tx]:
        async with _connection(self.engine) as conn, conn.begin():
            tx = Tx(conn, self.dialect, await self.now(conn))
            return await work(tx), tx


def _postgresql(url: URL, synchronous: str, pool_size: int) -> AsyncEngine:
    settings = {
        "application_name": "holdfast",
        "synchronous_commit": "on" if synchronous == "full" else "off",
        "idle_in_transaction_session_timeout": "10000",
        "lock_timeout": "10000",
        "statement_timeout": "60000",
    }
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=False,
        connect_args={"server_settings": settings, "timeout": 5, "command_timeout": 60},
    )


@contextlib.asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    conn = await connected(engine)
    try:
        yield conn
    finally:
        await conn.close()


async def connected(engine: AsyncEngine) -> AsyncConnection:
    """A connection; whatever keeps us from one, the database cannot be reached."""
    try:
        return await engine.connect()
    except Exception as error:
        raise _gone() from error


def _gone() -> Unavailable:
    return Unavailable("The database does not answer", retry_after_s=1.0)
