"""Carries out one claimed run: lets the agent speak, and sees to it that the run gets its one end."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from holdfast.agents.resolve import ResolvedAgent
from holdfast.agents.turn import AgentFault, CancelToken, HistoryMessage, Turn, TurnUser
from holdfast.clock import Clock, new_id
from holdfast.domain import events as ev
from holdfast.domain.errors import LeaseLost, Unavailable
from holdfast.domain.transcript import Message, fresh_metadata
from holdfast.engine.registry import AgentTaskRegistry
from holdfast.engine.speech import Speech
from holdfast.store import runs, transcripts
from holdfast.store.database import Database, Tx
from holdfast.store.journal import Journal, RunWriter
from holdfast.store.runs import Claim, End

log = logging.getLogger("holdfast.run")


class Runner:
    """Runs claims of this node. `cancel_grace_s` is how long an agent may take to stop by itself."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        registry: AgentTaskRegistry,
        agent: ResolvedAgent,
        clock: Clock,
        *,
        cancel_grace_s: float = 1.0,
        timeout_s: float = 3600.0,
        patience_s: float = 20.0,
    ) -> None:
        self._database = database
        self._journal = journal
        self._registry = registry
        self._agent = agent
        self._clock = clock
        self._cancel_grace_s = cancel_grace_s
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._handing_back: set[str] = set()

    def hand_back(self) -> None:
        """Stop all runs without ending them, so that another node goes on with them."""
        for entry in self._registry.running():
            self._handing_back.add(entry.run)
            entry.token.set("hand over")

    async def run(self, claim: Claim, node: str) -> None:
        """Carry out a claim to its end; never raises but for cancellation of the task itself."""
        writer = self._journal.open(claim.session, claim.run, claim.attempt, claim.head)
        token = CancelToken()
        writer.on_failure = lambda: token.set("what it says cannot be committed")
        self._registry.register(claim.session, claim.message, token, run=claim.run)
        try:
            speech, turn = await self._prepare(claim, writer, token)
            end = await self._converse(claim, turn, speech)
            await self._finish(claim, node, speech, end)
        except LeaseLost as lost:
            log.warning("lease lost: %s", lost)
        except Unavailable:
            log.error("run %s: the database is gone; it is ended when that is back", claim.run)
        except Exception:
            log.exception("run %s could not be ended; it is left to the recovery", claim.run)
        finally:
            self._handing_back.discard(claim.run)
            self._journal.close(writer)
            self._registry.mark_completed(claim.session, claim.run)
            self._registry.cleanup(claim.session, claim.run)

    async def _prepare(self, claim: Claim, writer: RunWriter, token: CancelToken) -> tuple[Speech, Turn]:
        history = await transcripts.history(self._database, claim.session, claim.message)
        said, reasoning = "", ""
        if claim.resumed and (message := await transcripts.message(self._database, claim.message)):
            said, reasoning = message.content, message.metadata.get("reasoning", "")
        if claim.prompt and history and history[-1].role == "user":
            history.pop()
        turn = Turn(
            session=claim.session,
            run=claim.run,
            user=TurnUser(claim.user, claim.user),
            prompt=claim.prompt,
            history=tuple(_as_history(message) for message in history if _is_told(message)),
            said=said,
            cancelled=token,
        )
        return Speech(claim, writer, self._clock, reasoning), turn

    async def _converse(self, claim: Claim, turn: Turn, speech: Speech) -> End:
        """Let the agent speak to its end, a cancel or a fault; how the run is to end."""
        consumer = asyncio.create_task(self._consume(claim, turn, speech), name=f"run {claim.run}")
        stop = asyncio.create_task(turn.cancelled.wait())
        try:
            await asyncio.wait({consumer, stop}, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            timed_out = not consumer.done() and not turn.cancelled.is_set
            if not consumer.done():
                turn.cancelled.set("timeout")
                await self._stop(claim, consumer)
        except asyncio.CancelledError:
            consumer.cancel()
            raise
        finally:
            stop.cancel()
        if timed_out:
            return _failed("timeout", "The run took longer than it may")
        return self._outcome(claim, turn, consumer)

    async def _consume(self, claim: Claim, turn: Turn, speech: Speech) -> None:
        writer = speech.writer
        said = self._agent.agent(turn)
        try:
            async for event in said:
                if turn.cancelled.is_set:
                    break
                speech.say(event)
                if writer.full:
                    await writer.room()
                if speech.checkpoint_due:
                    await self._checkpoint(claim, speech)
        finally:
            if isinstance(said, AsyncGenerator):
                await said.aclose()

    async def _stop(self, claim: Claim, consumer: "asyncio.Task[None]") -> None:
        """The agent was told; wait for it, then interrupt it, then leave it behind."""
        await asyncio.wait({consumer}, timeout=self._cancel_grace_s)
        for _ in range(3):
            if consumer.done():
                return
            consumer.cancel()
            await asyncio.wait({consumer}, timeout=self._cancel_grace_s)
        if not consumer.done():
            log.error("run %s: the agent does not stop; it is left behind, and can write nothing", claim.run)

    def _outcome(self, claim: Claim, turn: Turn, consumer: "asyncio.Task[None]") -> End:
        failure = consumer.exception() if consumer.done() and not consumer.cancelled() else None
        if isinstance(failure, LeaseLost | Unavailable):
            raise failure
        if turn.cancelled.is_set:
            if failure is not None:
                log.info("run %s: the agent failed while it was stopped: %r", claim.run, failure)
            return End(outcome="cancelled")
        if failure is None and not consumer.cancelled():
            return End(outcome="success")
        if isinstance(failure, AgentFault):
            log.warning("run %s: %s: %s", claim.run, failure.code, failure.message)
            return _failed(failure.code, failure.message)
        error = _failed("agent_error", "The agent failed")
        assert error.error is not None
        log.error("run %s: agent error %s", claim.run, error.error["id"], exc_info=failure)
        return error

    async def _checkpoint(self, claim: Claim, speech: Speech) -> None:
        await speech.writer.flush()
        tail, metadata = speech.take_tail(), speech.metadata(ended=False)
        metadata = fresh_metadata(streaming=True) | metadata
        seq = await self._journal.head(claim.session)

        async def fold(tx: Tx) -> None:
            await runs.checkpoint(tx, claim.run, claim.attempt, claim.message, tail, metadata, seq)

        await self._patiently(fold)

    async def _finish(self, claim: Claim, node: str, speech: Speech, end: End) -> None:
        closing = speech.closing()
        await speech.writer.flush()
        if end.outcome == "cancelled" and claim.run in self._handing_back:
            for event in closing:
                speech.writer.put(ev.event_type(event), ev.encode(event))
            await self._checkpoint(claim, speech)
            await self._patiently(lambda tx: runs.requeue(tx, claim.run, claim.attempt, node, "drain"))
            return
        final = End(
            outcome=end.outcome,
            error=end.error,
            tail=speech.take_tail(),
            metadata=speech.metadata(ended=True),
            closing=closing,
            usage=speech.usage(),
        )
        await self._patiently(lambda tx: runs.end(tx, claim.run, claim.attempt, final))

    async def _patiently(self, work: Callable[[Tx], Awaitable[Any]]) -> None:
        """A transaction of the run, tried again while the database is gone for a moment."""
        deadline = self._clock.monotonic() + self._patience_s
        while True:
            try:
                await self._database.transact(work)
                return
            except Unavailable:
                if self._clock.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.2)


def _failed(code: str, message: str) -> End:
    return End(outcome="failed", error={"code": code, "id": new_id(), "message": message})


def _is_told(message: Message) -> bool:
    return message.role in ("user", "assistant")


def _as_history(message: Message) -> HistoryMessage:
    cut = None
    if message.metadata.get("cancelled"):
        cut = "cancelled"
    elif message.metadata.get("has_error"):
        cut = "error"
    elif message.metadata.get("interrupted"):
        cut = "interrupted"
    role = "user" if message.role == "user" else "assistant"
    return HistoryMessage(role, message.content, cut)
