"""Carries out one claimed run: lets the agent speak, and sees to it that the run gets its one end."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable

import msgspec

from holdfast import tracing
from holdfast.agents.resolve import ResolvedAgent
from holdfast.agents.shortening import shorten_history
from holdfast.agents.tools import ApprovalNeeded
from holdfast.agents.turn import AgentFault, CancelToken, HistoryAction, HistoryMessage, Turn, TurnUser
from holdfast.clock import Clock, new_id
from holdfast.context import about
from holdfast.domain import events as ev
from holdfast.domain.errors import LeaseLost, Unavailable
from holdfast.domain.transcript import Message, fresh_metadata
from holdfast.engine.actions import Actions
from holdfast.engine.patience import Patience
from holdfast.engine.registry import AgentTaskRegistry
from holdfast.engine.speech import Speech
from holdfast.engine.worker import Claimed
from holdfast.engine.workshop import Workshop
from holdfast.store import approvals, claims, endings, texts, transcripts
from holdfast.store.actions import Owner
from holdfast.store.claims import Claim
from holdfast.store.database import Database, Tx
from holdfast.store.endings import End
from holdfast.store.journal import Journal, RunWriter

log = logging.getLogger("holdfast.run")


class Runner:
    """Runs claims of this node.

    `cancel_grace_s` is how long an agent may take to stop by itself; `history_tokens` how much of the past
    it is given, 0 for all.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        registry: AgentTaskRegistry,
        agent: ResolvedAgent,
        workshop: Workshop,
        clock: Clock,
        *,
        node: Callable[[], str],
        limit_per_user: int,
        cancel_grace_s: float = 1.0,
        timeout_s: float = 3600.0,
        history_tokens: int = 0,
        patience_s: float = 20.0,
    ) -> None:
        self._database = database
        self._journal = journal
        self._registry = registry
        self._agent = agent
        self._workshop = workshop
        self._clock = clock
        self._node = node
        self._limit_per_user = limit_per_user
        self._cancel_grace_s = cancel_grace_s
        self._timeout_s = timeout_s
        self._history_tokens = history_tokens
        self._patiently = Patience(database, clock, patience_s)
        self._handing_back: set[str] = set()

    async def claim(self, limit: int) -> Claimed:
        """See `Executor`."""
        node, agent, per_user = self._node(), self._agent.name, self._limit_per_user
        found = await self._database.transact(lambda tx: claims.claim(tx, node, agent, limit=limit, per_user=per_user))
        for claim in found.runs:
            self._workshop.meters.waited("agent", claim.waited_s)
        return Claimed(found.runs, found.again)

    def cancel(self, task: str, reason: str | None = None) -> None:
        """See `Executor`."""
        self._registry.cancel_task(task, reason)

    def lose(self, task: str) -> None:
        """See `Executor`. A silent agent would not notice by itself."""
        for entry in self._registry.running():
            if entry.run == task:
                entry.token.set("lease lost")

    def hand_back(self) -> None:
        """Stop all runs without ending them, so that another node goes on with them."""
        for entry in self._registry.running():
            self._handing_back.add(entry.run)
            entry.token.set("hand over")

    async def run(self, claim: Claim) -> None:
        """See `Executor`."""
        names = {"task": claim.run, "session": claim.session, "user": claim.user}
        with about(**names), tracing.going_on(claim.traceparent, "run", **names):
            await self._run(claim)

    async def _run(self, claim: Claim) -> None:
        node, began = claim.node, self._clock.monotonic()
        writer = self._journal.open(claim.session, claim.run, claim.attempt, claim.head)
        token = CancelToken()
        writer.on_failure = lambda: token.set("what it says cannot be committed")
        self._registry.register(claim.session, claim.message, token, run=claim.run)
        actions: Actions | None = None
        try:
            speech, said = await self._speech(claim, writer)
            actions = self._actions(claim, node, speech, token)
            end = await self._converse(claim, token, speech, actions, said)
            await actions.close()
            await self._finish(claim, node, speech, actions, end)
            status = "waiting" if isinstance(end, ApprovalNeeded) else end.outcome
            self._workshop.meters.ran("agent", self._clock.monotonic() - began, status)
        except LeaseLost as lost:
            log.warning("lease lost: %s", lost)
        except Unavailable:
            log.error("run %s: the database is gone; it is ended when that is back", claim.run)
        except Exception:
            log.exception("run %s could not be ended; it is left to the recovery", claim.run)
        finally:
            if actions is not None:
                await asyncio.shield(asyncio.ensure_future(actions.abandon()))
            self._handing_back.discard(claim.run)
            self._journal.close(writer)
            self._registry.mark_completed(claim.session, claim.run)
            self._registry.cleanup(claim.session, claim.run)

    async def _speech(self, claim: Claim, writer: RunWriter) -> tuple[Speech, Message | None]:
        """The run's speech, and what it had said when it was handed over."""
        said = await transcripts.message(self._database, claim.message) if claim.resumed else None
        if said is None:
            return Speech(claim, writer, self._clock), None
        return Speech(claim, writer, self._clock, said.metadata.get("reasoning", ""), len(said.content)), said

    def _actions(self, claim: Claim, node: str, speech: Speech, token: CancelToken) -> Actions:
        return Actions(
            self._database,
            self._workshop,
            claim,
            speech,
            token,
            self._patiently,
            node=node,
            grace_s=self._cancel_grace_s,
            is_handing_back=lambda: claim.run in self._handing_back,
        )

    async def _turn(
        self, claim: Claim, token: CancelToken, speech: Speech, actions: Actions, said: Message | None
    ) -> Turn:
        history = await transcripts.history(self._database, claim.session, claim.message)
        if claim.prompt and history and history[-1].role == "user":
            history.pop()
        turn = Turn(
            session=claim.session,
            run=claim.run,
            user=TurnUser(claim.user, claim.user),
            prompt=claim.prompt,
            history=tuple(_as_history(message) for message in history if _is_told(message)),
            said=said.content if said else "",
            done=_done(said) if said else (),
            tools=actions,
            cancelled=token,
        )
        return await self._shortened(claim, speech, turn) if self._history_tokens else turn

    async def _shortened(self, claim: Claim, speech: Speech, turn: Turn) -> Turn:
        """The turn with a history that fits; that something is left out is told in the transcript."""
        history, omitted, tokens = shorten_history(turn, self._history_tokens)
        if omitted == 0:
            return turn
        speech.shortened = {"omitted": omitted, "tokens": tokens}
        event = ev.Custom(name="history.shortened", value=speech.shortened)
        owner = Owner(claim.session, claim.run, claim.attempt)
        records = await self._patiently(lambda tx: texts.note(tx, owner, claim.message, event, "shortened"))
        speech.writer.advance(records)
        return dataclasses.replace(turn, history=history)

    async def _converse(
        self, claim: Claim, token: CancelToken, speech: Speech, actions: Actions, said: Message | None
    ) -> End | ApprovalNeeded:
        """Let the agent speak to its end, a cancel or a fault; how the run is to end."""
        work = self._consume(claim, token, speech, actions, said)
        consumer = asyncio.create_task(work, name=f"run {claim.run}")
        stop = asyncio.create_task(token.wait())
        try:
            await asyncio.wait({consumer, stop}, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            timed_out = not consumer.done() and not token.is_set
            if not consumer.done():
                token.set("timeout")
                await self._stop(claim, consumer)
        except asyncio.CancelledError:
            consumer.cancel()
            raise
        finally:
            stop.cancel()
        if timed_out:
            return _failed("timeout", "The run took longer than it may")
        return self._outcome(claim, token, consumer)

    async def _consume(
        self, claim: Claim, token: CancelToken, speech: Speech, actions: Actions, said: Message | None
    ) -> None:
        writer = speech.writer
        await actions.prepare()
        events = self._agent.agent(await self._turn(claim, token, speech, actions, said))
        try:
            async for event in events:
                if token.is_set:
                    speech.note(event)
                    break
                speech.say(event)
                if writer.full:
                    await writer.room()
                if speech.checkpoint_due:
                    await self._checkpoint(claim, speech)
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

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

    def _outcome(self, claim: Claim, token: CancelToken, consumer: "asyncio.Task[None]") -> End | ApprovalNeeded:
        failure = consumer.exception() if consumer.done() and not consumer.cancelled() else None
        if isinstance(failure, LeaseLost | Unavailable):
            raise failure
        if token.is_set:
            if failure is not None:
                log.info("run %s: the agent failed while it was stopped: %r", claim.run, failure)
            return End(outcome="cancelled")
        if failure is None and not consumer.cancelled():
            return End(outcome="success")
        if isinstance(failure, ApprovalNeeded):
            return failure
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
            await texts.checkpoint(tx, claim.run, claim.attempt, claim.message, tail, metadata, seq)

        await self._patiently(fold)

    async def _finish(
        self, claim: Claim, node: str, speech: Speech, actions: Actions, end: End | ApprovalNeeded
    ) -> None:
        closing = speech.closing()
        await speech.writer.flush()
        asked = end if isinstance(end, ApprovalNeeded) else None
        end = End(outcome="success") if isinstance(end, ApprovalNeeded) else end
        if end.outcome == "cancelled" and claim.run in self._handing_back:
            for event in closing:
                speech.writer.put(ev.event_type(event), ev.encode(event))
            await self._checkpoint(claim, speech)
            await self._patiently(lambda tx: endings.requeue(tx, claim.run, claim.attempt, node, "drain"))
            return
        final = msgspec.structs.replace(
            end,
            tail=speech.take_tail(),
            metadata=speech.metadata(ended=True),
            closing=closing,
            usage=speech.usage(),
            processes=tuple(actions.ended),
        )
        if asked is None:
            await self._patiently(lambda tx: endings.end(tx, claim.run, claim.attempt, final))
        else:
            questions, timeout_s = actions.asked(asked.calls), self._workshop.approval_timeout_s
            await self._patiently(lambda tx: approvals.wait(tx, claim.run, claim.attempt, final, questions, timeout_s))


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
    return HistoryMessage(role, message.content, cut, _done(message))


def _done(message: Message) -> tuple[HistoryAction, ...]:
    """The actions of a message that have a result."""
    return tuple(
        HistoryAction(
            action.id,
            action.type,
            action.input,
            str(action.output or ""),
            action.outcome,  # pyright: ignore[reportArgumentType]
            action.offset or 0,
        )
        for action in message.actions
        if action.outcome is not None
    )
