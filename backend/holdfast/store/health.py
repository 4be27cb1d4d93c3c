"""Whether the database answers, and what its faults are called."""

import asyncio

from sqlalchemy import exc, text

from holdfast.domain.errors import HoldfastError
from holdfast.store.database import Database

DRIVER_FAULTS = (exc.SQLAlchemyError, OSError)
"""What the work on a database may raise that is no `HoldfastError`: its driver's errors."""


async def answers(database: Database, patience_s: float) -> bool:
    """Whether the database answers a question within `patience_s` seconds."""
    try:
        async with asyncio.timeout(patience_s), database.read() as conn:
            await conn.execute(text("SELECT 1"))
    except (HoldfastError, TimeoutError, *DRIVER_FAULTS):
        return False
    return True


def in_words(error: BaseException) -> str:
    """A fault of the database in one line, in the words of its driver where it has any."""
    if isinstance(error, TimeoutError):
        return "no answer"
    return (str(getattr(error, "orig", None) or error) or type(error).__name__).splitlines()[0]
