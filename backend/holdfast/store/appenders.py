"""The hot path's insert: many events of many sessions in one durable commit, in one call.

Both refuse the whole batch with `PositionTaken` when one of its places is taken: the position is the
fence. SQLAlchemy's per-row work is bypassed here, and only here.
"""

import sqlite3
from datetime import datetime
from typing import Any, Protocol

import asyncpg
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from holdfast.clock import rfc3339
from holdfast.domain.errors import Unavailable
from holdfast.store.database import Database, connected, is_connection_error
from holdfast.store.sqlite import SqliteWriter, driver

Row = tuple[str, int, str | None, int, str, str]
"""session, seq, run, attempt, type, data"""

_COLUMNS = "session_id, seq, task_id, attempt, type, data, created_at"
_LARGEST = 2048


class PositionTaken(Exception):
    """Somebody else has written at a place of this batch; nothing of it is stored."""


class Appender(Protocol):
    """Writes rows and returns when they are durable."""

    async def write(self, rows: list[Row], now: datetime) -> None:
        """Insert `rows`, sorted by session and seq, in one transaction.

        Raises:
            PositionTaken: a place is taken; nothing is stored.
            Unavailable: the database cannot be reached; whether it is stored is not known.
        """
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class SqliteAppender:
    """A turn of the database's writer; a batch is a few multi-row inserts, each one call into SQLite.

    `executemany` would give the interpreter's lock away and wait for it once a row.
    """

    def __init__(self, writer: SqliteWriter) -> None:
        self._writer = writer

    async def write(self, rows: list[Row], now: datetime) -> None:
        """See `Appender.write`."""
        text = rfc3339(now)
        try:
            await self._writer.run(lambda connection: _insert(driver(connection), rows, text), first=True)
        except sqlite3.IntegrityError as error:
            raise PositionTaken(str(error)) from error
        except (sqlite3.OperationalError, exc.OperationalError) as error:
            raise Unavailable("The database does not answer", retry_after_s=1.0) from error

    async def close(self) -> None:
        """See `Appender.close`: the writer is the database's."""


def _insert(connection: sqlite3.Connection, rows: list[Row], now: str) -> None:
    start, left = 0, len(rows)
    size = _LARGEST
    while left:
        while size > left:
            size //= 2
        values: list[Any] = []
        for row in rows[start : start + size]:
            values += row
            values.append(now)
        connection.execute(_insert_sql(size), values)
        start += size
        left -= size


_statements: dict[int, str] = {}


def _insert_sql(size: int) -> str:
    if size not in _statements:
        places = ",".join(["(?,?,?,?,?,?,?)"] * size)
        _statements[size] = f"INSERT INTO events ({_COLUMNS}) VALUES {places}"
    return _statements[size]


class PostgresAppender:
    """One connection of its own; a batch is one statement and one round trip."""

    _SQL = f"""
        INSERT INTO events ({_COLUMNS})
        SELECT s, q, r, a, t, d, $7
        FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::int[], $5::text[], $6::text[])
             AS row(s, q, r, a, t, d)
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: AsyncConnection | None = None

    async def write(self, rows: list[Row], now: datetime) -> None:
        """See `Appender.write`."""
        try:
            connection = await self._connect()
            columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True))
            await connection.execute(self._SQL, *columns, now)
        except asyncpg.UniqueViolationError as error:
            raise PositionTaken(str(error)) from error
        except asyncpg.ForeignKeyViolationError as error:
            raise PositionTaken("the session is gone") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            await self.close()
            raise Unavailable("The database does not answer", retry_after_s=1.0) from error
        except Exception as error:
            await self.close()
            if is_connection_error(error):
                raise Unavailable("The database does not answer", retry_after_s=1.0) from error
            raise

    async def close(self) -> None:
        """Give the connection up; the next write opens a new one."""
        held, self._held = self._held, None
        if held is not None:
            await held.invalidate()
            await held.close()

    async def _connect(self) -> asyncpg.Connection:
        if self._held is None:
            self._held = await connected(self._database.engine)
        raw = await self._held.get_raw_connection()
        connection: asyncpg.Connection | None = raw.driver_connection
        if connection is None or connection.is_closed():
            raise OSError("the connection is closed")
        return connection


def make_appender(database: Database) -> Appender:
    """The appender for the database's dialect."""
    return PostgresAppender(database) if database.sqlite is None else SqliteAppender(database.sqlite)
