"""What an agent gets and what it may say: `Turn` in, `AgentEvent` out.

An agent is an async generator function that takes a `Turn` and yields agent events. It knows no
socket, no database and no task:

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield Text("Hello ")
        yield Text(turn.user.name)
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, as it comes. An empty delta is ignored."""

    delta: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's reasoning. Consecutive pieces form one span; text ends it."""

    delta: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used by the turn so far, and the model that used them. The last one counts."""

    input_tokens: int
    output_tokens: int
    model: str | None = None


AgentEvent = Text | Reasoning | Usage


class CancelToken:
    """Tells the work of one run that it is to stop; safe to set from any thread of its loop.

    Setting it twice is the same as once.
    """

    __slots__ = ("_callbacks", "_event", "reason")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._callbacks: list[Callable[[], object]] = []
        self.reason: str | None = None

    @property
    def is_set(self) -> bool:
        """True once a cancel was asked for."""
        return self._event.is_set()

    def set(self, reason: str | None = None) -> None:
        """Ask for the stop, and run the callbacks once."""
        if self._event.is_set():
            return
        self.reason = reason
        self._event.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_set(self, callback: Callable[[], object]) -> None:
        """Run `callback` when the token is set; at once when it is set already."""
        if self._event.is_set():
            callback()
        else:
            self._callbacks.append(callback)

    async def wait(self) -> None:
        """Return when the token is set."""
        await self._event.wait()


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    """One message of the conversation before this turn.

    `cut` says how an assistant's message ended when it did not end by itself.
    """

    role: Literal["user", "assistant"]
    content: str
    cut: Literal["cancelled", "error", "interrupted"] | None = None


@dataclass(frozen=True, slots=True)
class TurnUser:
    """Who the agent talks to."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Turn:
    """All that an agent is given for one turn.

    `prompt` is the user's new message; it is empty when the turn continues an answer that was cut
    short (then the last message of `history` is that answer, and `said` is empty). `said` is what
    this very turn has already said and committed, when it was handed over by a node that shut
    down: the agent goes on after it. `cancelled` is set when the turn is to stop; an agent that
    does not end within the grace is closed with `aclose()`.
    """

    session: str
    run: str
    user: TurnUser
    prompt: str
    history: tuple[HistoryMessage, ...] = ()
    said: str = ""
    cancelled: CancelToken = field(default_factory=CancelToken)


Agent = Callable[[Turn], AsyncIterator[AgentEvent]]


class AgentFault(Exception):
    """An agent's failure that may be told to the user in these words.

    Any other exception of an agent is told as an `agent_error` with an error id alone.
    """

    def __init__(self, code: Literal["agent_error", "provider_error", "timeout"], message: str) -> None:
        super().__init__(message)
        self.code: Literal["agent_error", "provider_error", "timeout"] = code
        self.message = message
