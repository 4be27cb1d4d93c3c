"""Claims tasks of one kind for this node and gives each its own asyncio task."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from holdfast.domain.errors import Unavailable
from holdfast.engine.lease import Lease

log = logging.getLogger("holdfast.worker")

_AGAIN_S = 0.01
"""About how long to wait for gates that somebody else holds."""


class Claimed(NamedTuple):
    """Claims, whether to come again at once, and when the next task is due that waits for its time."""

    claims: Sequence[Any]
    again: bool
    due_in_s: float | None = None


class Executor(Protocol):
    """Carries out tasks of one kind."""

    async def claim(self, limit: int) -> Claimed:
        """Take up to `limit` tasks whose turn it is; each claim has the id of its `task`.

        Raises:
            Unavailable: the database cannot be reached.
        """
        ...

    async def run(self, claim: Any) -> None:
        """Carry out a claim to its end; raises nothing but for cancellation."""
        ...

    def cancel(self, task: str, reason: str | None = None) -> None:
        """Ask a task of this process to stop, once it is here."""
        ...

    def lose(self, task: str) -> None:
        """Let go of a task of this process that belongs to somebody else by now, or to nobody."""
        ...

    def hand_back(self) -> None:
        """Stop all tasks as the node leaves: what can go on elsewhere does."""
        ...


class Worker:
    """One claim loop: at most `limit` tasks at once, `batch` in one transaction.

    `poll_s` is the backstop for what nobody has told this process of.
    """

    def __init__(self, executor: Executor, lease: Lease, *, limit: int, batch: int, poll_s: float = 1.0) -> None:
        self._executor = executor
        self._lease = lease
        self._limit = limit
        self._batch = batch
        self._wake = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self._due_in_s: float | None = None
        self.poll_s = poll_s
        self.claimed = 0

    @property
    def running(self) -> set[str]:
        """The tasks that this process carries out."""
        return set(self._running)

    @property
    def draining(self) -> bool:
        """Whether it takes nothing more."""
        return self._draining

    def wake(self) -> None:
        """There may be something to claim."""
        self._wake.set()

    def cancel(self, task: str, reason: str | None = None) -> None:
        """Ask a task to stop."""
        self._executor.cancel(task, reason)

    def lose(self, task: str) -> None:
        """Let go of a task that is not this node's any more."""
        self._executor.lose(task)

    async def claim_forever(self) -> None:
        """Claim whenever woken, when something is due, and at every poll."""
        while True:
            self._wake.clear()
            self._due_in_s = None
            try:
                before = self.claimed
                more = await self.claim()
                if more and self.claimed == before:
                    await asyncio.sleep(random.uniform(0.5, 1.5) * _AGAIN_S)
            except Unavailable:
                more = False
                await asyncio.sleep(0.2)
            except Exception:
                log.exception("claiming failed; it is tried again")
                more = False
                await asyncio.sleep(1.0)
            if not more:
                wait_s = self.poll_s if self._due_in_s is None else max(0.0, min(self._due_in_s, self.poll_s))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()

    async def claim(self) -> bool:
        """Claim once, as much as fits; True when there may be more at once."""
        free = min(self._limit - len(self._running), self._batch)
        if self._draining or free <= 0 or not self._lease.held:
            return False
        found = await self._executor.claim(free)
        for claim in found.claims:
            self.begin(claim)
        self._due_in_s = found.due_in_s
        return found.again

    def begin(self, claim: Any) -> None:
        """Carry out a claim; it belongs to this node already."""
        task = asyncio.create_task(self._executor.run(claim), name=f"task {claim.task}")
        self._running[claim.task] = task
        self.claimed += 1

        def ended(done: "asyncio.Task[None]") -> None:
            if self._running.get(claim.task) is done:
                del self._running[claim.task]
            self.wake()

        task.add_done_callback(ended)

    def stop_claiming(self) -> None:
        """Take nothing more; what runs goes on."""
        self._draining = True

    def abandon(self) -> None:
        """Stop all tasks without another word: they belong to somebody else now."""
        for task in self._running.values():
            task.cancel()

    async def drain(self, drain_s: float) -> None:
        """Let tasks end within `drain_s`, then hand the rest back with what they have said kept."""
        self._draining = True
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=drain_s)
        if self._running:
            self._executor.hand_back()
            await asyncio.wait(set(self._running.values()), timeout=10.0)
        self.abandon()
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=5.0)
