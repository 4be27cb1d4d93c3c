"""What an agent gets and what it may say: `Turn` in, `AgentEvent` out.

An agent is an async generator function that takes a `Turn` and yields agent events. It knows no
socket, no database and no task:

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield Text("Hello ")
        yield Text(turn.user.name)
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from holdfast.agents.cancel import CancelToken
from holdfast.agents.tools import NO_TOOLS, Tools

__all__ = [
    "Agent",
    "AgentEvent",
    "AgentFault",
    "CancelToken",
    "Cut",
    "HistoryAction",
    "HistoryMessage",
    "Reasoning",
    "Text",
    "Turn",
    "TurnUser",
    "Usage",
]


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


Cut = Literal["cancelled", "error", "interrupted"]


@dataclass(frozen=True, slots=True)
class HistoryAction:
    """One tool call of an assistant's message, and how it went.

    `offset` is the number of characters that the message had when the action began. An action that was
    `denied` was refused by a person or a rule, one that was `cancelled` was stopped on the way, and
    what an `interrupted` one has done is not known.
    """

    id: str
    name: str
    input: dict[str, Any]
    output: str
    outcome: Literal["success", "failed", "denied", "cancelled", "interrupted"]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    """One message of the conversation before this turn.

    `cut` says how an assistant's message ended when it did not end by itself; `actions` are its tool
    calls in order.
    """

    role: Literal["user", "assistant"]
    content: str
    cut: Cut | None = None
    actions: tuple[HistoryAction, ...] = ()


@dataclass(frozen=True, slots=True)
class TurnUser:
    """Who the agent talks to."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Turn:
    """All that an agent is given for one turn.

    `prompt` is the user's new message; it is empty when the turn continues an answer that was cut
    short, or that waited for approvals (then the last message of `history` is that answer, and `said`
    is empty). `said` and `done` are what this very turn has already said and done, committed, when it
    was handed over by a node that shut down: the agent goes on after it. `cancelled` is set when the
    turn is to stop; an agent that does not end within the grace is closed with `aclose()`.
    """

    session: str
    run: str
    user: TurnUser
    prompt: str
    history: tuple[HistoryMessage, ...] = ()
    said: str = ""
    done: tuple[HistoryAction, ...] = ()
    tools: Tools = NO_TOOLS
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
