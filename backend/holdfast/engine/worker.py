"""Claims runs for this node and gives each its own asyncio task."""

import asyncio
import contextlib
import logging

from holdfast.domain.errors import Unavailable
from holdfast.engine.lease import Lease
from holdfast.engine.runner import Runner
from holdfast.store import claims
from holdfast.store.claims import Claim
from holdfast.store.database import Database

log = logging.getLogger("holdfast.worker")

_BATCH = 16
"""Runs claimed in one transaction: short enough that running ones do not wait for it."""


class Worker:
    """One claim loop. `poll_s` is the backstop for what nobody has told this process of."""

    def __init__(
        self,
        database: Database,
        runner: Runner,
        lease: Lease,
        *,
        agent: str,
        limit: int,
        per_user: int,
        poll_s: float = 1.0,
    ) -> None:
        self._database = database
        self._runner = runner
        self._lease = lease
        self._agent = agent
        self._limit = limit
        self._per_user = per_user
        self._wake = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self.poll_s = poll_s
        self.claimed = 0

    @property
    def running(self) -> set[str]:
        """The runs that this process carries out."""
        return set(self._running)

    def wake(self) -> None:
        """There may be something to claim."""
        self._wake.set()

    async def claim_forever(self) -> None:
        """Claim whenever woken, and at every poll."""
        while True:
            self._wake.clear()
            try:
                more = await self.claim()
            except Unavailable:
                more = False
                await asyncio.sleep(0.2)
            except Exception:
                log.exception("claiming failed; it is tried again")
                more = False
                await asyncio.sleep(1.0)
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.poll_s):
                        await self._wake.wait()

    async def claim(self) -> bool:
        """Claim once, as much as fits; True when there may be more at once."""
        free = min(self._limit - len(self._running), _BATCH)
        if self._draining or free <= 0 or not self._lease.held:
            return False
        node = self._lease.node.id
        found = await self._database.transact(
            lambda tx: claims.claim(tx, node, self._agent, limit=free, per_user=self._per_user)
        )
        for claim in found:
            self._begin(claim, node)
        return len(found) == free

    def stop_claiming(self) -> None:
        """Take nothing more; what runs goes on."""
        self._draining = True

    def abandon(self) -> None:
        """Stop all runs without another word: they belong to somebody else now."""
        for task in self._running.values():
            task.cancel()

    async def drain(self, drain_s: float) -> None:
        """Let runs end within `drain_s`, then hand the rest back with their content kept."""
        self._draining = True
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=drain_s)
        if self._running:
            self._runner.hand_back()
            await asyncio.wait(set(self._running.values()), timeout=10.0)
        self.abandon()
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=5.0)

    def _begin(self, claim: Claim, node: str) -> None:
        task = asyncio.create_task(self._runner.run(claim, node), name=f"run {claim.run}")
        self._running[claim.run] = task
        self.claimed += 1

        def ended(_: "asyncio.Task[None]") -> None:
            self._running.pop(claim.run, None)
            self.wake()

        task.add_done_callback(ended)
