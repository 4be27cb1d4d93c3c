"""Real models through pydantic-ai: text, reasoning, usage, and a cancel that is immediate.

A cancel goes through pydantic-ai's own token: it ends the run, and with it the provider's HTTP stream,
even while the provider is silent. Retries are those of `faults` alone, of one request and before its
first event; the providers' packages have none of their own. See `providers` for models by name,
`conversation` for what is sent, and `model_tools` for what the model may do.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_ai import Agent as ModelAgent
from pydantic_ai import CancellationToken, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import RetryModelRequest, RunCancelled, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import (
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
)
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import UsageLimits

from holdfast.agents.conversation import conversation
from holdfast.agents.faults import Retries, is_of_provider, logged, told
from holdfast.agents.model_tools import TurnTools, Waiting
from holdfast.agents.turn import AgentEvent, AgentFault, Reasoning, Text, Turn, Usage

log = logging.getLogger("holdfast.agents")

SILENCE_S = 120.0
"""How long a provider may send nothing at all, before its answer or in it."""

MAX_REQUESTS = 100
"""How often a model is asked in one turn; each round of tools asks once more."""


class _Speaker(Protocol):
    def __call__(self, turn: Turn) -> AsyncGenerator[AgentEvent, None]: ...


def model_agent(
    model: "Model | ModelAgent[Any, str]",
    *,
    instructions: str | None = None,
    retries: Retries | None = None,
    silence_s: float = SILENCE_S,
) -> _Speaker:
    """An agent that asks a model, or an agent of pydantic-ai that talks and needs no `deps`.

    It raises `AgentFault` for a fault of the provider, with the tokens told before it if known, and lets
    `ApprovalNeeded` through.
    """
    asked = model if isinstance(model, ModelAgent) else ModelAgent(model, name="holdfast", retries=0)
    policy = retries or Retries()

    async def agent(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        if turn.cancelled.is_set:
            return
        run = _Run(asked, turn, instructions, policy, silence_s)
        try:
            async with contextlib.aclosing(run.events()) as events:
                async for event in events:
                    yield event
            return
        except Exception as error:
            if turn.cancelled.is_set:
                return
            failure = error
        if (used := run.usage()) is not None:
            yield used
        raise _as_told(failure, turn, begun=run.begun) from None

    return agent


def _as_told(error: Exception, turn: Turn, *, begun: bool) -> BaseException:
    """What the turn raises for an error of its run."""
    match error:
        case Waiting():
            return error.needed
        case UsageLimitExceeded():
            return AgentFault(
                "agent_error", f"The model was asked {MAX_REQUESTS} times in one turn and came to no end."
            )
        case _ if is_of_provider(error):
            log.warning("run %s: provider failed: %s", turn.run, logged(error))
            return told(error, begun=begun)
        case _:
            return error


class _Run:
    """One run of pydantic-ai: requests, and tools between them. `begun` is true from the first event."""

    def __init__(
        self, agent: "ModelAgent[Any, str]", turn: Turn, instructions: str | None, retries: Retries, silence_s: float
    ) -> None:
        self.begun = False
        self._agent = agent
        self._turn = turn
        self._instructions = instructions
        self._settings = _settings(agent.model, silence_s)
        self._model = getattr(agent.model, "model_name", None)
        self._tools = TurnTools(turn.tools)
        self._tries = _Tries(retries, turn)
        self._used: Any = None

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        """What the model says, as it comes, and what it used. Ends quietly when the turn is cancelled."""
        token = CancellationToken()
        self._turn.cancelled.on_set(token.cancel)
        prompt, history = conversation(self._turn)
        try:
            async with self._agent.run_stream_events(
                prompt,
                message_history=history,
                instructions=self._instructions,
                model_settings=self._settings,
                usage_limits=UsageLimits(request_limit=MAX_REQUESTS),
                capabilities=[self._tools, self._tries],
                cancellation_token=token,
                infer_name=False,
            ) as events:
                async for event in events:
                    self.begun = True
                    self._used = events.usage
                    if (said := _said(event)) is not None:
                        yield said
        except RunCancelled as cancelled:
            self._used = cancelled.usage
            if (used := self.usage()) is not None:
                yield used
            return
        except UnexpectedModelBehavior:
            if not self._tools.silent:
                raise
        yield self.usage() or Usage(0, 0, self._model)

    def usage(self) -> Usage | None:
        """The tokens as far as the provider has told them; None when it has told none."""
        if self._used is None or not (self._used.input_tokens or self._used.output_tokens):
            return None
        return Usage(self._used.input_tokens, self._used.output_tokens, self._model)


@dataclass
class _Tries(AbstractCapability[Any]):
    """Asks a provider again after a fault that passes, as long as nothing of this response has come."""

    retries: Retries
    turn: Turn

    async def on_model_request_error(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, error: Exception
    ) -> ModelResponse:
        """Wait, and have the request sent again.

        Raises:
            RetryModelRequest: once more.
            Exception: the error, when trying again is no use.
        """
        attempt = request_context.attempt
        pause_s = self.retries.pause_s(error, attempt)
        if pause_s is None:
            raise error
        log.warning("run %s: provider failed, try %d: %s", self.turn.run, attempt, logged(error))
        await self.retries.sleep(self.turn.cancelled, pause_s)
        raise RetryModelRequest()


def _settings(model: Any, silence_s: float) -> ModelSettings:
    """No retries by the provider's package, and a limit on silence, as far as the model knows these."""
    unknown = getattr(model, "unsupported_settings", None) or ()
    settings = ModelSettings()
    if "max_retries" not in unknown:
        settings["max_retries"] = 0
    if "timeout" not in unknown:
        settings["timeout"] = silence_s
    return settings


def _said(event: object) -> AgentEvent | None:
    match event:
        case PartStartEvent(part=TextPart(content=text)) if text:
            return Text(text)
        case PartStartEvent(part=ThinkingPart(content=text)) if text:
            return Reasoning(text)
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)) if text:
            return Text(text)
        case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=text)) if text:
            return Reasoning(text)
        case _:
            return None
