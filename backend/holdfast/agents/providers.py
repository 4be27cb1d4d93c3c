"""From the name of a provider and a model to an agent; the variables are each provider's own.

`openai:` is the chat completions protocol, so that `OPENAI_BASE_URL` may name any server that speaks
it; `ollama:` is one such server, on this machine unless `OLLAMA_BASE_URL` says otherwise.
"""

import os
import re
import warnings

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.profiles.openai import OpenAIModelProfile

from holdfast.agents.models import model_agent
from holdfast.agents.turn import Agent

OLLAMA_BASE_URL = "http://127.0.0.1:11434/v1"

_WHOLE = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
"""A stream that just stops is a fault, and not a whole answer."""

_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
_EXTRA = re.compile(r"pydantic-ai-slim\[([\w-]+)\]")


def provider_agent(provider: str, model: str, instructions: str | None = None) -> Agent:
    """An agent on a provider's model, which is told `instructions` before all else.

    Raises:
        Exception: of whatever kind the provider's package has; see `what_is_missing`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return model_agent(build_model(provider, model), instructions=instructions)


def build_model(provider: str, name: str) -> Model:
    """pydantic-ai's model. Asks no network.

    Raises:
        Exception: of whatever kind the provider's package has; see `what_is_missing`.
    """
    match provider:
        case "openai" | "openai-chat":
            from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415 - only what is in use is loaded
            from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415 - only what is in use is loaded

            base_url, key = os.environ.get("OPENAI_BASE_URL") or None, os.environ.get("OPENAI_API_KEY") or None
            keyless = "none" if base_url else None
            server = OpenAIProvider(base_url=base_url, api_key=key or keyless)
            return OpenAIChatModel(name, provider=server, profile=_WHOLE)
        case "ollama":
            from pydantic_ai.models.ollama import OllamaModel  # noqa: PLC0415 - only what is in use is loaded
            from pydantic_ai.providers.ollama import OllamaProvider  # noqa: PLC0415 - only what is in use is loaded

            base_url = os.environ.get("OLLAMA_BASE_URL") or OLLAMA_BASE_URL
            return OllamaModel(name, provider=OllamaProvider(base_url=base_url), profile=_WHOLE)
        case _:
            return infer_model(f"{provider}:{name}")


def what_is_missing(error: Exception) -> str:
    """What to do about a failure to build a model, in one line."""
    text = str(error)
    if isinstance(error, ImportError):
        extra = _EXTRA.search(text)
        return f"install `pydantic-ai-slim[{extra[1]}]`" if extra else f"a package is missing: {text}"
    variables = list(dict.fromkeys(_VARIABLE.findall(text)))
    if isinstance(error, UserError) and variables:
        return f"set {' or '.join(variables)}"
    return (text.splitlines() or [type(error).__name__])[0]
