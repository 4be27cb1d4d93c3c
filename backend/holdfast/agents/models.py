"""Real models through pydantic-ai: text, reasoning, usage, history, errors, and an immediate cancel.

One policy of retries for all providers: what fails with 429 or 5xx, or cannot be reached, before the
first token is tried again with growing pauses (or as `Retry-After` says); everything else, and what
fails in mid-stream, is told as a `provider_error` in words of our own. The provider's text goes to
the log alone.
"""

import asyncio
import contextlib
import email.utils
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
from pydantic_ai import Agent as ModelAgent
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UnexpectedModelBehavior, UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    UserPromptPart,
)
from pydantic_ai.models import Model

from holdfast.agents.turn import (
    Agent,
    AgentEvent,
    AgentFault,
    CancelToken,
    HistoryMessage,
    Reasoning,
    Text,
    Turn,
    Usage,
)

log = logging.getLogger("holdfast.agents")

TRIES = 4
LONGEST_PAUSE_S = 30.0
SILENCE_S = 120.0

GO_ON = "Your last answer was cut off. Go on exactly where it stopped; repeat nothing of it."
_CUT = {
    "cancelled": "[The user stopped this answer here.]",
    "error": "[This answer was cut short by an error.]",
    "interrupted": "[This answer was cut short by a restart of the server.]",
}

Sleep = Callable[[CancelToken, float], Awaitable[None]]


async def _sleep(cancelled: CancelToken, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(cancelled.wait(), seconds)
