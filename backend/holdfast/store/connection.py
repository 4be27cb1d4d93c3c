"""What a unit of work may do with the database, wherever it runs."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from sqlalchemy import Connection as PlainConnection
from sqlalchemy import Dialect, Executable
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

_SQLITE = SQLiteDialect_pysqlite()


class Connection(Protocol):
    """An open connection: SQLAlchemy's `AsyncConnection` on PostgreSQL, and the two below on SQLite."""

    @property
    def dialect(self) -> Dialect:
        """The database's dialect."""
        ...

    async def execute(self, statement: Executable, parameters: Any = None, /) -> Any:
        """The result of a statement."""
        ...

    async def scalar(self, statement: Executable, parameters: Any = None, /) -> Any:
        """The first column of the first row."""
        ...

    async def scalars(self, statement: Executable, parameters: Any = None, /) -> Any:
        """The first column of all rows."""
        ...


class ReadingConnection:
    """A `Connection` that is used from the event loop and works in a thread of its own: one way there a statement."""

    __slots__ = ("_connect", "_plain", "_thread")

    def __init__(self, connect: Callable[[], PlainConnection]) -> None:
        self._connect = connect
        self._plain: PlainConnection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-reader")

    @property
    def dialect(self) -> Dialect:
        """See `Connection`."""
        return _SQLITE

    async def execute(self, statement: Executable, parameters: Any = None, /) -> Any:
        """See `Connection`; all rows are there."""
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(self._thread, self._execute, statement, parameters))()

    async def scalar(self, statement: Executable, parameters: Any = None, /) -> Any:
        """See `Connection`."""
        return (await self.execute(statement, parameters)).scalar()

    async def scalars(self, statement: Executable, parameters: Any = None, /) -> Any:
        """See `Connection`."""
        return (await self.execute(statement, parameters)).scalars()

    def reset(self) -> None:
        """Let what was begun go, behind the statement that may still run: its caller may have gone away."""
        self._later(self._reset)

    def close(self) -> None:
        """Wait for what runs, and close."""
        self._later(self._drop)
        self._thread.shutdown()

    def _later(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # It is closed.
            self._thread.submit(work)

    def _execute(self, statement: Executable, parameters: Any) -> Any:
        try:
            self._plain = self._plain or self._connect()
            return self._plain.execute(statement, parameters).freeze()
        except Exception:
            self._drop()
            raise

    def _reset(self) -> None:
        if self._plain is not None:
            self._plain.rollback()

    def _drop(self) -> None:
        plain, self._plain = self._plain, None
        if plain is not None:
            plain.close()


class ThreadConnection:
    """A `Connection` for work that is in the connection's own thread already: it answers at once."""

    __slots__ = ("_plain",)

    def __init__(self, plain: PlainConnection) -> None:
        self._plain = plain

    @property
    def dialect(self) -> Dialect:
        """See `Connection`."""
        return self._plain.dialect

    async def execute(self, statement: Executable, parameters: Any = None, /) -> Any:
        """See `Connection`."""
        return self._plain.execute(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None, /) -> Any:
        """See `Connection`."""
        return self._plain.scalar(statement, parameters)

    async def scalars(self, statement: Executable, parameters: Any = None, /) -> Any:
        """See `Connection`."""
        return self._plain.scalars(statement, parameters)
