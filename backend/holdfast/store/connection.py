"""What a unit of work may do with the database, wherever it runs."""

from typing import Any, Protocol

from sqlalchemy import Connection as PlainConnection
from sqlalchemy import Dialect, Executable


class Connection(Protocol):
    """An open connection: SQLAlchemy's `AsyncConnection`, or the one that a unit has in a writer's thread."""

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
