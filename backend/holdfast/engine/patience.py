"""Transactions of work that goes on: tried again while the database is gone for a moment."""

import asyncio
from typing import TypeVar

from holdfast.clock import Clock
from holdfast.domain.errors import Unavailable
from holdfast.store.database import Database, Unit

T = TypeVar("T")

_PAUSE_S = 0.2


class Patience:
    """Runs transactions, for at most `patience_s` seconds each."""

    def __init__(self, database: Database, clock: Clock, patience_s: float) -> None:
        self._database = database
        self._clock = clock
        self._patience_s = patience_s

    async def __call__(self, work: Unit[T]) -> T:
        """One transaction.

        Raises:
            Unavailable: the database stays away.
        """
        deadline = self._clock.monotonic() + self._patience_s
        while True:
            try:
                return await self._database.transact(work)
            except Unavailable:
                if self._clock.monotonic() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)
