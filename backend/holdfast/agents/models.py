"""Real models through pydantic-ai: text, reasoning, usage, and a cancel that is immediate.

A cancel goes through pydantic-ai's own token: it ends the run, and with it the provider's HTTP stream,
even while the provider is silent. Retries are those of `faults` alone; the providers' packages have
none of their own. See `providers` for models by name and `conversation` for what is sent.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from pydantic_ai import Agent as ModelAgent
from pydantic_ai import CancellationToken
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import (
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
)
from pydantic_ai.models import Model
from pydantic_ai.run import AgentRunResultEvent
from pydantic_ai.settings import ModelSettings

from holdfast.agents.conversation import conversation
from holdfast.agents.faults import Retries, Unfinished, is_of_provider, logged, told
from holdfast.agents.turn import AgentEvent, Reasoning, Text, Turn, Usage

log = logging.getLogger("holdfast.agents")

SILENCE_S = 120.0
"""How long a provider may send nothing at all, before its answer or in it."""


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

    It raises `AgentFault` for a fault of the provider, with the tokens told before it if known.
    """
    asked = model if isinstance(model, ModelAgent) else ModelAgent(model, name="holdfast", retries=0)
    policy = retries or Retries()

    async def agent(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        attempt = 0
        while not turn.cancelled.is_set:
            attempt += 1
            request = _Request(asked, turn, instructions, silence_s)
            try:
                async with contextlib.aclosing(request.events()) as events:
                    async for event in events:
                        yield event
                return
            except Exception as error:
                if turn.cancelled.is_set:
                    return
                if not is_of_provider(error):
                    raise
                pause_s = None if request.begun else policy.pause_s(error, attempt)
                log.warning("run %s: provider failed, try %d: %s", turn.run, attempt, logged(error))
                if pause_s is None:
                    if (used := request.usage()) is not None:
                        yield used
                    raise told(error, begun=request.begun) from None
            await policy.sleep(turn.cancelled, pause_s)

    return agent


class _Request:
    """One try to get an answer. `begun` is true from the first event: then there is no second try."""

    def __init__(self, agent: "ModelAgent[Any, str]", turn: Turn, instructions: str | None, silence_s: float) -> None:
        self.begun = False
        self._agent = agent
        self._turn = turn
        self._instructions = instructions
        self._settings = _settings(agent.model, silence_s)
        self._model = getattr(agent.model, "model_name", None)
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
                cancellation_token=token,
                infer_name=False,
            ) as events:
                async for event in events:
                    self.begun = True
                    self._used = events.usage
                    if isinstance(event, AgentRunResultEvent):
                        _check_end(event.result.response)
                    elif (said := _said(event)) is not None:
                        yield said
                yield self.usage() or Usage(0, 0, self._model)
        except RunCancelled as cancelled:
            self._used = cancelled.usage
            if (used := self.usage()) is not None:
                yield used

    def usage(self) -> Usage | None:
        """The tokens as far as the provider has told them; None when it has told none."""
        if self._used is None or not (self._used.input_tokens or self._used.output_tokens):
            return None
        return Usage(self._used.input_tokens, self._used.output_tokens, self._model)


def _check_end(response: ModelResponse) -> None:
    """Raise when the answer is not whole, although the stream ended in good order.

    Raises:
        Unfinished: a limit on its length or a filter ended it.
    """
    if response.finish_reason == "length":
        raise Unfinished("The answer is longer than the model gives at once; what came is kept.")
    if response.finish_reason == "content_filter":
        raise Unfinished("The content filter of the model provider stopped the answer; what came is kept.")


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
