"""The hot path's insert: many events of many sessions in one durable commit, in one call.

Both refuse the whole batch with `PositionTaken` when one of its places is taken: the position is the
fence. SQLAlchemy's per-row work is bypassed here, and only here.
"""

import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import asyncpg
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from holdfast.clock import rfc3339
from holdfast.domain.errors import Unavailable
from holdfast.store.database import Database, connected, is_connection_error
from holdfast.store.sqlite import SqliteWriter, driver


@dataclass(slots=True, frozen=True)
class Addition:
    """What one writer adds to a session's journal, from place `first` on: (type, data) of each event."""

    session: str
    run: str
    attempt: int
    first: int
    events: list[tuple[str, str]]


_COLUMNS = "session_id, seq, task_id, attempt, type, data, created_at"
_WIDTH = 7
_LARGEST = 2048


class PositionTaken(Exception):
    """Somebody else has written at a place of this batch; nothing of it is stored."""


class Appender(Protocol):
    """Writes what runs say and returns when it is durable."""

    async def write(self, additions: list[Addition], now: datetime) -> None:
        """Insert all events, of sessions in their order, in one transaction.

        Raises:
            PositionTaken: a place is taken, or a session is gone; nothing is stored.
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

    async def write(self, additions: list[Addition], now: datetime) -> None:
        """See `Appender.write`."""
        text = rfc3339(now)
        try:
            await self._writer.run(lambda connection: _insert(driver(connection), additions, text), first=True)
        except sqlite3.IntegrityError as error:
            raise PositionTaken(str(error)) from error
        except (sqlite3.OperationalError, exc.OperationalError) as error:
            raise Unavailable("The database does not answer", retry_after_s=1.0) from error

    async def close(self) -> None:
        """See `Appender.close`: the writer is the database's."""


def _insert(connection: sqlite3.Connection, additions: list[Addition], now: str) -> None:
    wanted = {addition.session for addition in additions}
    (there,) = connection.execute(_THERE, (json.dumps(list(wanted)),)).fetchone()
    if there != len(wanted):
        raise PositionTaken("a session is gone")
    values: list[Any] = []
    for addition in additions:
        session, run, attempt = addition.session, addition.run, addition.attempt
        for seq, (kind, data) in enumerate(addition.events, start=addition.first):
            values += (session, seq, run, attempt, kind, data, now)
    start, left = 0, len(values) // _WIDTH
    size = _LARGEST
    while left:
        while size > left:
            size //= 2
        connection.execute(_insert_sql(size), values[start * _WIDTH : (start + size) * _WIDTH])
        start += size
        left -= size


_THERE = "SELECT count(*) FROM sessions WHERE id IN (SELECT value FROM json_each(?))"
_statements: dict[int, str] = {}


def _insert_sql(size: int) -> str:
    if size not in _statements:
        places = ",".join(["(?,?,?,?,?,?,?)"] * size)
        _statements[size] = f"INSERT INTO events ({_COLUMNS}) VALUES {places}"
    return _statements[size]


class PostgresAppender:
    """One connection of its own; a batch is one statement and one round trip."""

    _SQL = f"""
        WITH held AS MATERIALIZED (SELECT id FROM sessions WHERE id = ANY($1::uuid[]) ORDER BY id FOR KEY SHARE)
        INSERT INTO events ({_COLUMNS})
        SELECT ($1::uuid[])[w], q, ($2::uuid[])[w], ($3::int[])[w], t, d, $8
        FROM unnest($4::int[], $5::bigint[], $6::text[], $7::text[]) AS row(w, q, t, d)
        WHERE (SELECT count(*) FROM held) = (SELECT count(DISTINCT s) FROM unnest($1::uuid[]) AS wanted(s))
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: AsyncConnection | None = None

    async def write(self, additions: list[Addition], now: datetime) -> None:
        """See `Appender.write`."""
        try:
            connection = await self._connect()
            done = await connection.execute(self._SQL, *_columns(additions), now)
        except asyncpg.UniqueViolationError as error:
            raise PositionTaken(str(error)) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            await self.close()
            raise Unavailable("The database does not answer", retry_after_s=1.0) from error
        except Exception as error:
            await self.close()
            if is_connection_error(error):
                raise Unavailable("The database does not answer", retry_after_s=1.0) from error
            raise
        if done == "INSERT 0 0":
            raise PositionTaken("a session is gone")

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


def _columns(additions: list[Addition]) -> tuple[list[Any], ...]:
    """Sessions, runs and attempts once a writer; for each event its writer's number from 1, place, type and data."""
    writers: list[int] = []
    places: list[int] = []
    kinds: list[str] = []
    data: list[str] = []
    for number, addition in enumerate(additions, start=1):
        count = len(addition.events)
        writers += [number] * count
        places += range(addition.first, addition.first + count)
        kinds += [kind for kind, _ in addition.events]
        data += [text for _, text in addition.events]
    sessions = [addition.session for addition in additions]
    runs = [addition.run for addition in additions]
    return sessions, runs, [addition.attempt for addition in additions], writers, places, kinds, data


def make_appender(database: Database) -> Appender:
    """The appender for the database's dialect."""
    return PostgresAppender(database) if database.sqlite is None else SqliteAppender(database.sqlite.writer)
