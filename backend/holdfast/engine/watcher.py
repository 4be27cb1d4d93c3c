"""Polls the journal for what other processes have committed, while there is no bus between them.

Only sessions that somebody follows here are looked at, and only while another node lives. The cost is
one query of their heads every `interval_s`; a client on one node sees the run of another with up to
that delay.
"""

import asyncio
import logging
from collections.abc import Collection

from holdfast.domain.errors import Unavailable
from holdfast.engine.enforcer import Enforcer
from holdfast.engine.hub import Hub
from holdfast.engine.worker import Worker
from holdfast.store.journal import Journal

log = logging.getLogger("holdfast.watcher")

_ALONE_S = 1.0
_ALONE_POLL_S = 5.0
"""A node that is alone hears of everything it has to do; its workers look by themselves only now and then."""


class Watcher:
    """One loop over the heads of the sessions that are followed here."""

    def __init__(
        self, journal: Journal, hub: Hub, enforcer: Enforcer, workers: Collection[Worker], *, interval_s: float = 0.05
    ) -> None:
        self._journal = journal
        self._hub = hub
        self._enforcer = enforcer
        self._workers = workers
        self._interval_s = interval_s

    async def watch_forever(self) -> None:
        """Poll while other nodes live; sleep while this one is alone."""
        while True:
            if self._enforcer.alone:
                self._poll(_ALONE_POLL_S)
                await asyncio.sleep(_ALONE_S)
                continue
            self._poll(self._interval_s * 4)
            await asyncio.sleep(self._interval_s)
            try:
                await self.watch()
            except Unavailable:
                await asyncio.sleep(_ALONE_S)

    def _poll(self, interval_s: float) -> None:
        for worker in self._workers:
            if interval_s < worker.poll_s:
                worker.wake()
            worker.poll_s = interval_s

    async def watch(self) -> None:
        """Poll once."""
        if sessions := self._hub.sessions:
            self._hub.hint(await self._journal.heads(sessions))
