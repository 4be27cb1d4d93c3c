"""The actions of one run: each is committed before its tool starts, and gets exactly one result."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import msgspec

from holdfast.agents.cancel import CancelToken
from holdfast.agents.tools import (
    ApprovalNeeded,
    CommandResult,
    InvalidArguments,
    Tool,
    Toolbox,
    ToolCall,
    ToolContext,
    ToolResult,
    as_result,
    clean,
)
from holdfast.clock import new_id
from holdfast.domain import events as ev
from holdfast.domain.actions import newest
from holdfast.domain.errors import LeaseLost, Unavailable
from holdfast.engine.commands import Commands
from holdfast.engine.output import END_BYTES, WHOLE_BYTES, Live, Output, create
from holdfast.engine.speech import Speech
from holdfast.engine.workshop import Rule, Workshop
from holdfast.store import actions, approvals
from holdfast.store.actions import ActionOutcome, Begun, Owner, Result
from holdfast.store.approvals import Answer
from holdfast.store.claims import Claim
from holdfast.store.database import Database, Tx, Unit

log = logging.getLogger("holdfast.actions")

_ARGUMENT_BYTES = 4 << 20
_STOPPED = ToolResult("The run was stopped", failed=True)

Work = Callable[[], Awaitable[object]]
Patiently = Callable[[Unit[Any]], Awaitable[Any]]
"""Runs a transaction, again while the database is gone for a moment."""


class Actions:
    """The tools of one turn (`agents.tools.Tools`), as actions in the journal."""

    def __init__(
        self,
        database: Database,
        workshop: Workshop,
        claim: Claim,
        speech: Speech,
        cancelled: CancelToken,
        patiently: Patiently,
        *,
        node: str,
        grace_s: float,
        is_handing_back: Callable[[], bool],
    ) -> None:
        self._database = database
        self._workshop = workshop
        self._claim = claim
        self._owner = Owner(claim.session, claim.run, claim.attempt)
        self._speech = speech
        self._cancelled = cancelled
        self._patiently = patiently
        self._grace_s = grace_s
        self._granted: set[str] = set()
        self._tasks: set[asyncio.Task[ToolResult]] = set()
        self._commands = Commands(database, workshop, node, claim.session, claim.run, cancelled)
        self._is_handing_back = is_handing_back

    @property
    def toolbox(self) -> Toolbox:
        """See `Tools`."""
        return self._workshop.toolbox

    @property
    def ended(self) -> list[dict[str, Any]]:
        """The processes that a cancel has ended: {pid, how}."""
        return self._commands.ended

    async def prepare(self) -> None:
        """Carry out what was approved of the run that this one goes on from; learn what needs no approval."""
        if self._claim.parent is not None:
            async with self._database.read() as conn:
                found = await approvals.answers(conn, self._claim.parent)
            for answer in found:
                await self._shielded(self._carry_out(answer))
        if self._workshop.asks:
            async with self._database.read() as conn:
                self._granted |= await approvals.granted(conn, self._claim.session)

    def needs_approval(self, name: str) -> bool:
        """See `Tools`."""
        tool = self.toolbox.get(name)
        return tool is not None and self._asks(self._rule(name, tool), name)

    async def call(self, name: str, args: dict[str, Any], *, id: str | None = None, ask: bool = False) -> ToolResult:
        """See `Tools`."""
        call, tool = ToolCall(name, args, id), self.toolbox.get(name)
        if tool is None:
            return await self._refuse(call, self.toolbox.unknown_tool(name), "failed")
        rule = self._rule(name, tool)
        if rule.approval == "never":
            return await self._refuse(call, f"Denied: {rule.why}", "denied")
        if self._asks(rule, name) or (ask and not await self._is_granted(name)):
            await self.ask([call])
        return await self._shielded(self._do(call, tool, None))

    async def perform(self, name: str, args: dict[str, Any], work: Work, *, id: str | None = None) -> ToolResult:
        """See `Tools`."""
        call, rule = ToolCall(name, args, id), self._rule(name, None)
        if rule.approval == "never":
            return await self._refuse(call, f"Denied: {rule.why}", "denied")
        if self._asks(rule, name):
            words = f"Denied: {rule.why}, and nobody can be asked about a tool that the agent keeps to itself"
            return await self._refuse(call, words, "denied")
        return await self._shielded(self._do(call, None, work))

    async def ask(self, calls: Sequence[ToolCall]) -> NoReturn:
        """See `Tools`."""
        raise ApprovalNeeded(calls)

    def asked(self, calls: Sequence[ToolCall]) -> list[tuple[Begun, str]]:
        """The questions of a run that is to wait: what begins, and why a person is asked."""
        return [
            (self._begun(call), self._rule(call.name, self.toolbox.get(call.name)).why or f"{call.name} asks first")
            for call in calls
        ]

    async def close(self) -> None:
        """Stop what the agent has left, and wait until all that the run has begun is over."""
        if self._tasks:
            self._cancelled.set("the agent has ended")
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def abandon(self) -> None:
        """End all of it at once, and write nothing: the run is somebody else's, or its end is written."""
        for task in self._tasks:
            task.cancel()
        await self._commands.abandon()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5.0)

    def _rule(self, name: str, tool: Tool | None) -> Rule:
        return self._workshop.rule(tool) if tool else self._workshop.rule_of(name, "always")

    def _asks(self, rule: Rule, name: str) -> bool:
        return rule.approval == "ask" and not (rule.grantable and name in self._granted)

    async def _is_granted(self, name: str) -> bool:
        async with self._database.read() as conn:
            self._granted |= await approvals.granted(conn, self._claim.session)
        return name in self._granted

    async def _shielded(self, work: Awaitable[ToolResult]) -> ToolResult:
        """Do it in a task of its own: whoever waits may be cancelled, the action gets its result."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: "asyncio.Future[ToolResult]") -> None:
        self._tasks.discard(task)  # pyright: ignore[reportArgumentType]
        if not task.cancelled():
            task.exception()  # Whoever waited has it; nobody may be there any more.

    def _begun(self, call: ToolCall) -> Begun:
        name = ev.clean_text(call.name)[:200]
        action = call.id if call.id and len(call.id) <= 128 and ev.clean_text(call.id) == call.id else new_id()
        return Begun(action, name, _storable(call.args), self._speech.offset)

    async def _refuse(self, call: ToolCall, words: str, outcome: ActionOutcome) -> ToolResult:
        """An action that does not even start."""
        self._speech.close_span()
        await self._speech.writer.flush()
        result = Result(output=words, status="error", outcome=outcome)
        begun = self._begun(call)
        records = await self._patiently(lambda tx: actions.record(tx, self._owner, self._claim.message, begun, result))
        self._speech.writer.advance(records or [])
        return ToolResult(words, failed=True)

    async def _do(self, call: ToolCall, tool: Tool | None, work: Work | None) -> ToolResult:
        """One action from its beginning to its result."""
        if self._cancelled.is_set:
            return _STOPPED
        self._speech.close_span()
        await self._speech.writer.flush()
        mark = self._commands.announcement() if tool and tool.confined else None
        begun = self._begun(call)
        found = await self._patiently(lambda tx: actions.begin(tx, self._owner, self._claim.message, begun, mark))
        if found is None:
            return _STOPPED
        action, records = found
        self._speech.writer.advance(records)
        return await self._carry(action, call.args, tool, work, mark)

    async def _carry_out(self, answer: Answer) -> ToolResult:
        """What a person has decided about an action that waited."""
        if not answer.approved:
            words = f"Denied by the user{f': {answer.reason}' if answer.reason else ''}"
            if answer.by is None:
                words = f"Denied: {answer.reason}"
            result = Result(output=words, status="error", outcome="denied")
            await self._patiently(lambda tx: _deny(tx, self._owner, answer, result))
            return ToolResult(words, failed=True)
        tool = self.toolbox.get(answer.tool)
        mark = self._commands.announcement() if tool and tool.confined else None
        if self._cancelled.is_set or not await self._patiently(
            lambda tx: approvals.take(tx, self._owner, answer, mark)
        ):
            return _STOPPED
        if tool is None:
            return await self._finish(
                answer.action, ToolResult(self.toolbox.unknown_tool(answer.tool), failed=True), "", "failed", None
            )
        return await self._carry(answer.action, answer.args, tool, None, mark, edited=answer.edited)

    async def _carry(
        self,
        action: str,
        args: dict[str, Any],
        tool: Tool | None,
        work: Work | None,
        mark: dict[str, Any] | None,
        *,
        edited: bool = False,
    ) -> ToolResult:
        live = Live(self._teller(action), self._room)
        if tool is not None:
            context = self._context(action, live, mark)
            work = partial(tool.call, context, args)
        assert work is not None
        result, outcome = await self._attempt(action, work)
        live.flush(last=True)
        if len(str(result.output)) > WHOLE_BYTES:
            result = await asyncio.to_thread(self._shorten, action, result)
        return await self._finish(action, result, newest(live.told), outcome, args if edited else None)

    async def _attempt(self, action: str, work: Work) -> tuple[ToolResult, ActionOutcome]:
        """Do the work; what goes wrong is a result."""
        task = asyncio.ensure_future(work())
        stop = asyncio.ensure_future(self._cancelled.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await self._stop(task)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            stop.cancel()
        if self._cancelled.is_set and not (task.done() and not task.cancelled() and task.exception() is None):
            return self._cut()
        result = self._judged(action, task)
        if self._cancelled.is_set and (result.failed or self._commands.ended):
            words, outcome = self._cut()
            said = f"{result.output}\n({words.output})" if isinstance(result.output, str) else result.output
            return ToolResult(said, True, result.extra), outcome
        return result, "failed" if result.failed else "success"

    async def _stop(self, task: "asyncio.Future[object]") -> None:
        """The run is to stop: a command ends by itself, a function is interrupted after the grace."""
        if self._commands.busy:
            await asyncio.wait({task})
            return
        await asyncio.wait({task}, timeout=self._grace_s)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=self._grace_s)

    def _judged(self, action: str, task: "asyncio.Future[object]") -> ToolResult:
        try:
            return as_result(task.result())
        except InvalidArguments as error:
            return ToolResult(f"Invalid arguments: {error}", failed=True)
        except (LeaseLost, Unavailable):
            raise
        except (Exception, asyncio.CancelledError) as error:
            name = new_id()
            log.error("action %s: error %s", action, name, exc_info=error)
            return ToolResult(f"The tool failed (error {name})", failed=True, extra={"error": name})

    def _cut(self) -> tuple[ToolResult, ActionOutcome]:
        if self._is_handing_back():
            return ToolResult("It was cut off by a restart of the server", failed=True), "interrupted"
        return ToolResult("It was stopped", failed=True), "cancelled"

    async def _finish(
        self, action: str, result: ToolResult, live: str, outcome: ActionOutcome, args: dict[str, Any] | None
    ) -> ToolResult:
        status = {"success": "success", "cancelled": "cancelled"}.get(outcome, "error")
        text = result.output if isinstance(result.output, str) else msgspec.json.encode(result.output).decode()
        told = Result(
            output=text,
            status=status,  # pyright: ignore[reportArgumentType]
            outcome=outcome,
            extra=result.extra,
            args=None if args is None else _storable(args),
            live=live,
        )
        await self._speech.writer.flush()
        records = await self._patiently(lambda tx: actions.finish(tx, self._owner, action, told))
        self._speech.writer.advance(records)
        return result

    def _context(self, action: str, live: Live, mark: dict[str, Any] | None) -> ToolContext:
        announced = [mark] if mark else []

        async def run(command: str, *, timeout_s: float, network: bool = False) -> CommandResult:
            path = self._workshop.output(self._claim.session, action)
            output = Output(path, self._workshop.output_bytes, live)
            result = await self._commands.run(
                command,
                output,
                action=action,
                timeout_s=timeout_s,
                network=network,
                announced=announced.pop() if announced else None,
            )
            return replace(result, link=self._link(action)) if result.truncated else result

        return ToolContext(
            self._claim.session, self._workshop.folder(self._claim.session), self._cancelled, run, live.say
        )

    def _teller(self, action: str) -> Callable[[str, str, bool], None]:
        writer = self._speech.writer

        def tell(stream: str, text: str, last: bool) -> None:
            if writer.failure is None:
                value = {"toolCallId": action, "stream": stream, "text": text, **({"cut": True} if last else {})}
                writer.put("CUSTOM", ev.encode(ev.Custom(name="action.output", value=value)))

        return tell

    def _room(self) -> Awaitable[None] | None:
        writer = self._speech.writer
        return writer.room() if writer.full else None

    def _link(self, action: str) -> str:
        return f"/api/sessions/{self._claim.session}/actions/{action}/output"

    def _shorten(self, action: str, result: ToolResult) -> ToolResult:
        """A result that is too large to tell: kept whole, told by its ends."""
        text = result.output if isinstance(result.output, str) else msgspec.json.encode(result.output).decode()
        if "link" not in result.extra:
            with create(self._workshop.output(self._claim.session, action)) as file:
                file.write(text.encode())
        left_out = len(text) - 2 * END_BYTES
        shown = f"{text[:END_BYTES]}\n... ({left_out} characters left out) ...\n{text[-END_BYTES:]}"
        extra = {**result.extra, "link": self._link(action)}
        extra.setdefault("bytes", len(text.encode()))
        return ToolResult(shown, result.failed, extra)


async def _deny(tx: Tx, owner: Owner, answer: Answer, result: Result) -> None:
    if await approvals.take(tx, owner, answer):
        await actions.finish(tx, owner, answer.action, result)


def _storable(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments as every store can hold them."""
    try:
        plain = clean(msgspec.to_builtins(args, str_keys=True))
        size = len(msgspec.json.encode(plain))
    except (TypeError, ValueError, RecursionError):
        return {"arguments": "(not JSON)"}
    return plain if size <= _ARGUMENT_BYTES else {"arguments": f"({size} bytes, too many to keep)"}
