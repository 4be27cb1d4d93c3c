"""A process that a service before this one has started and left running on purpose."""

import asyncio
import os
import time
from typing import Literal

from holdfast.engine import cgroups
from holdfast.engine.families import Family, ProcessIdentity, process_started
from holdfast.engine.processes import Ending

_LOOK_S = 0.2


class Adopted:
    """Looks after a process that is nobody's child here: how it ended its keeper tells, not the kernel."""

    def __init__(self, identity: ProcessIdentity) -> None:
        self._identity = identity
        self._family = Family(identity, cgroups.find(identity.mark), ours=False)
        self._stopping: asyncio.Task[Ending] | None = None

    @property
    def pid(self) -> int:
        """The pid of the outermost process."""
        return self._identity.pid

    @property
    def kill_failures(self) -> int:
        """See `Process`."""
        return self._family.failures

    async def wait(self) -> Ending:
        """Wait until it has ended and nothing that it has started lives."""
        while process_started(self.pid) == self._identity.started:
            await self._change()
        if self._stopping is not None:
            return await asyncio.shield(self._stopping)
        await self._family.kill()
        return await self._ending("exited", 0)

    async def stop(self, grace_s: float) -> Ending:
        """See `Process`."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(grace_s))
        return await asyncio.shield(self._stopping)

    def detach(self) -> None:
        """Leave it alone; it goes on."""

    async def _stop(self, grace_s: float) -> Ending:
        began = time.monotonic()
        obeyed = await self._family.terminate(grace_s)
        await self._family.kill()
        took_ms = round((time.monotonic() - began) * 1000)
        return await self._ending("terminated" if obeyed else "killed", took_ms)

    async def _ending(self, how: Literal["exited", "terminated", "killed"], took_ms: int) -> Ending:
        used = await self._family.forget()
        memory, cpu_s = (used.peak_memory_bytes, used.cpu_s) if used else (None, None)
        killed = used is not None and used.out_of_memory
        return Ending(None, None, how, took_ms, peak_memory_bytes=memory, cpu_s=cpu_s, out_of_memory=killed)

    async def _change(self) -> None:
        """Wait until it ends; where the kernel does not tell, look again soon."""
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            await asyncio.sleep(_LOOK_S)
            return
        loop.add_reader(descriptor, gone.set)
        try:
            async with asyncio.timeout(_LOOK_S * 5):
                await gone.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
