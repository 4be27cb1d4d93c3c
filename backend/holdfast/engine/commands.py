"""Commands of a session: in the sandbox, known to the store while they live, ended with their run."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

from holdfast import tracing
from holdfast.agents.cancel import CancelToken
from holdfast.agents.tools import CommandResult
from holdfast.engine.launch import launch
from holdfast.engine.output import Output, TooMuchOutput
from holdfast.engine.processes import Ending, Process, new_mark
from holdfast.engine.workshop import Workshop
from holdfast.store import processes
from holdfast.store.database import Database

log = logging.getLogger("holdfast.commands")


class Commands:
    """The commands of one run. `ended` lists what a cancel has ended: {pid, how}."""

    def __init__(
        self, database: Database, workshop: Workshop, node: str, session: str, run: str, cancelled: CancelToken
    ) -> None:
        self._database = database
        self._workshop = workshop
        self._node = node
        self._session = session
        self._run = run
        self._cancelled = cancelled
        self._live: set[Process] = set()
        self._grace_s = workshop.kill_grace_s
        self.ended: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        """Whether a command runs."""
        return bool(self._live)

    def announcement(self) -> dict[str, Any]:
        """The row of a process that is about to be started, for a transaction that commits more with it."""
        shop = self._workshop
        return processes.row(new_mark(), self._node, shop.host, shop.boot_id, self._run)

    async def run(
        self,
        command: str,
        output: Output,
        *,
        action: str,
        timeout_s: float,
        network: bool = False,
        announced: dict[str, Any] | None = None,
    ) -> CommandResult:
        """Run a command of bash to its end; a cancel of the run ends it, and so does one of the caller.

        `announced` is its row, when that is committed already.

        Raises:
            OSError: It cannot be started.
        """
        row = announced or self.announcement()
        if announced is None:
            await self._database.transact(lambda tx: processes.announce(tx, row, action))
        process = await self._spawn(command, output, row["mark"], network=network)
        known = asyncio.create_task(self._tell_started(process, row["mark"]))
        self._live.add(process)
        self._cancelled.on_set(lambda: self._stop(process))
        try:
            with tracing.span("process", pid=process.pid):
                ending, flooded = await self._wait(process, timeout_s)
        except asyncio.CancelledError:
            await asyncio.shield(process.stop(self._grace_s))
            raise
        finally:
            self._live.discard(process)
            output.close()
            await asyncio.wait({known})
        if ending.how != "exited":
            self._workshop.meters.killed(ending.how)
        if self._cancelled.is_set and ending.how != "exited":
            self.ended.append({"pid": process.pid, "how": ending.how})
        if announced is None:
            await self._database.transact(lambda tx: processes.gone(tx, row["mark"]))
        return CommandResult(
            exit_code=ending.exit_code,
            signal=ending.signal,
            output=output.text() + self._said(ending, flooded=flooded),
            truncated=output.truncated,
            bytes=output.bytes,
            timed_out=ending.timed_out,
        )

    async def abandon(self) -> None:
        """Kill what lives, at once: the run is somebody else's by now."""
        await asyncio.gather(*(process.stop(0.0) for process in list(self._live)), return_exceptions=True)

    async def _spawn(self, command: str, output: Output, mark: str, *, network: bool) -> Process:
        limits = self._workshop.limits
        if network:
            limits = replace(limits, network=True)
        folder = self._workshop.folder(self._session)
        return await launch(
            ["/bin/bash", "-c", command],
            folder.root,
            self._workshop.sandbox,
            session=self._session,
            limits=limits,
            total_memory_bytes=self._workshop.total_memory_bytes,
            on_output=output.take,
            mark=mark,
            on_stuck=lambda failures: self._tell_stuck(mark, failures),
        )

    def _tell_stuck(self, mark: str, failures: int) -> None:
        """A kill had no effect: people see it in the session."""
        self._workshop.meters.kill_failures += 1
        telling = asyncio.ensure_future(
            self._database.transact(lambda tx: processes.stuck(tx, mark, self._session, failures))
        )
        telling.add_done_callback(lambda done: done.exception())

    async def _tell_started(self, process: Process, mark: str) -> None:
        found = process.identity
        try:
            await self._database.transact(
                lambda tx: processes.started(tx, mark, found.pid, found.started, self._session)
            )
        except Exception as error:
            log.warning("process %d: the store does not know its pid (%r)", process.pid, error)

    async def _wait(self, process: Process, timeout_s: float) -> tuple[Ending, bool]:
        try:
            return await process.wait(timeout_s=timeout_s, grace_s=self._grace_s), False
        except TooMuchOutput:
            return await process.stop(0.0), True

    def _stop(self, process: Process) -> None:
        if process in self._live:
            stopping = asyncio.ensure_future(process.stop(self._grace_s))
            stopping.add_done_callback(lambda done: done.exception())

    def _said(self, ending: Ending, *, flooded: bool) -> str:
        notes = []
        if flooded:
            notes.append(f"it was stopped: it said more than {self._workshop.output_bytes >> 20} MiB")
        if ending.out_of_memory:
            notes.append("it ran out of memory")
        return "".join(f"\n({note})" for note in notes)
