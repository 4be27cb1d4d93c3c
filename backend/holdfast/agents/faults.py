"""What goes wrong with a provider: whether to try again, what the user is told, what is logged.

    before the first event                        after it
    429, 5xx, no connection    tried again        told, what came is kept
    silence, 4xx, other        told               told, what came is kept

The user is told words of our own; the provider's text goes to the log alone, without secrets.
"""

import os
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import httpx2
from pydantic_ai.exceptions import (
    AgentRunError,
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelServerError,
    ModelTimeoutError,
    ModelUnavailableError,
    UnexpectedModelBehavior,
    UserError,
)

from holdfast.agents.demo import pause
from holdfast.agents.turn import AgentFault, CancelToken

PROVIDER_ERRORS = (AgentRunError, UserError, httpx2.HTTPError, httpx2.StreamError, OSError)
"""What a provider's failure can be once pydantic-ai has had its say; see `is_of_provider`."""

LOG_CHARS = 2000

_PASSING = (ModelRateLimitError, ModelUnavailableError, ModelServerError, ModelConnectionError, httpx2.TransportError)
_READ_TIMEOUTS = (httpx2.ReadTimeout, ModelRequestTimeout)
_LIBRARIES = ("openai", "anthropic", "google", "httpx", "httpx2", "httpcore2", "pydantic_core", "json")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|AIza)[-_]?[\w*-]{12,}|(?<=bearer )\S+", re.IGNORECASE)


class Unfinished(UnexpectedModelBehavior):
    """The answer ended before it was whole, without an error; the message may be told to the user."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and after what pauses, a provider is asked again.

    Pauses grow from `first_s` to `longest_s`, with full jitter. `Retry-After` is kept to the second,
    plus up to `first_s` of jitter; one that is longer than `longest_s` is not waited for.
    """

    tries: int = 4
    first_s: float = 1.0
    longest_s: float = 30.0
    sleep: Callable[[CancelToken, float], Awaitable[None]] = pause
    uniform: Callable[[float, float], float] = random.uniform

    def pause_s(self, error: BaseException, attempt: int) -> float | None:
        """Seconds to wait after the failure of try `attempt` (from 1); None when trying again is no use."""
        if attempt >= self.tries or not is_passing(error):
            return None
        asked_s = error.retry_after if isinstance(error, ModelAPIError) else None
        if asked_s is None:
            return self.uniform(0, min(self.longest_s, self.first_s * 2 ** (attempt - 1)))
        if asked_s > self.longest_s:
            return None
        return asked_s + self.uniform(0, self.first_s)


def is_of_provider(error: BaseException) -> bool:
    """Whether the provider, or the way to it, is at fault; anything else is a fault of the agent."""
    if isinstance(error, PROVIDER_ERRORS):
        return True
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, ModelQuotaExceededError) or _is_silence(error):
        return False
    if isinstance(error, ModelHTTPError):
        return error.status_code == 429 or error.status_code >= 500
    return isinstance(error, _PASSING)


def told(error: BaseException, *, begun: bool) -> AgentFault:
    """The fault as it is told to the user."""
    code: Literal["timeout", "provider_error"] = "timeout" if _is_silence(error) else "provider_error"
    if isinstance(error, Unfinished):
        return AgentFault(code, error.message)
    if not begun:
        return AgentFault(code, _words(error))
    verb = "fell silent" if code == "timeout" else "failed"
    return AgentFault(code, f"The model provider {verb} before the answer was whole; what came is kept.")


def logged(error: BaseException) -> str:
    """The error and its causes in one line, cut to a length, without secrets."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < 5:
        parts.append(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
        cause = cause.__cause__
    return without_secrets(" <- ".join(dict.fromkeys(parts)))[:LOG_CHARS]


def without_secrets(text: str) -> str:
    """`text` without the values of secret variables, and without what looks like a key."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAME.search(name):
            text = text.replace(value, "[secret]")
    return _SECRET.sub("[secret]", text)


def _is_silence(error: BaseException) -> bool:
    if isinstance(error, ModelTimeoutError):
        return error.phase in (None, "read")
    return isinstance(error, _READ_TIMEOUTS)


def _words(error: BaseException) -> str:
    match error:
        case ModelAuthenticationError():
            return "The model provider refused the credentials."
        case ModelNotFoundError():
            return "The model provider does not know this model."
        case ModelContextWindowExceededError():
            return "The conversation is too long for this model."
        case ModelQuotaExceededError():
            return "The account at the model provider has no quota or credit left."
        case ModelRequestRejectedError():
            return "The model provider refused the request."
        case ModelRateLimitError():
            return "The model provider is over its limits; try again later."
        case ContentFilterError():
            return "The content filter of the model provider stopped the answer."
        case _ if _is_silence(error):
            return "The model provider was silent for too long."
        case ModelHTTPError():
            return _words_of_status(error.status_code)
        case ModelUnavailableError() | ModelServerError():
            return _words_of_status(500)
        case ModelConnectionError(phase="read"):
            return "The connection to the model provider broke."
        case ModelConnectionError() | httpx2.TransportError() | OSError():
            return "The model provider cannot be reached."
        case UnexpectedModelBehavior():
            return "The model provider gave no answer that could be understood."
        case _:
            return "The model provider failed."


def _words_of_status(status: int) -> str:
    if status < 500:
        return "The model provider refused the request."
    return "The model provider has a fault; try again later."
