"""From the name of an agent to the agent: `demo`, `module:function`, or `provider:model`."""

import importlib
import inspect
import os
import sys
from dataclasses import dataclass

from holdfast.agents.demo import demo
from holdfast.agents.turn import Agent

KEYS: dict[str, str | None] = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GOOGLE_API_KEY",
    "ollama": None,
}
"""The providers and the variable that holds each one's key."""


class AgentNotFound(ValueError):
    """No agent of this name can be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ResolvedAgent:
    """An agent with the name that it was asked for by, and its model if it has one."""

    name: str
    agent: Agent
    model: str | None = None


def resolve_agent(name: str) -> ResolvedAgent:
    """The agent of this name. Asks no network.

    Raises:
        AgentNotFound: the name, its module or function, its provider or key is wrong.
    """
    if name == "demo":
        return ResolvedAgent("demo", demo)
    before, colon, after = name.partition(":")
    if not colon or not before or not after:
        raise AgentNotFound(f"agent {name!r}: use `demo`, `module:function` or `provider:model`")
    if before in KEYS:
        return _from_provider(name, before, after)
    return ResolvedAgent(name, _from_module(name, before, after))


def _from_provider(name: str, provider: str, model: str) -> ResolvedAgent:
    key = KEYS[provider]
    if key is not None and not os.environ.get(key):
        if not (provider == "openai" and os.environ.get("OPENAI_BASE_URL")):
            raise AgentNotFound(f"agent {name!r}: set {key} to the provider's key")
    models = importlib.import_module("holdfast.agents.models")  # Its import takes a second.
    return ResolvedAgent(name, models.model_agent(provider, model), model)


def _from_module(name: str, module: str, function: str) -> Agent:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise AgentNotFound(f"agent {name!r}: there is no module {module!r} here") from None
        raise AgentNotFound(f"agent {name!r}: module {module!r} fails: {error}") from None
    except Exception as error:
        raise AgentNotFound(f"agent {name!r}: module {module!r} fails: {error!r}") from error
    agent = getattr(found, function, None)
    if agent is None:
        raise AgentNotFound(f"agent {name!r}: module {module!r} has no {function!r}")
    if not inspect.isasyncgenfunction(agent) and not inspect.isasyncgenfunction(getattr(agent, "__call__", None)):
        raise AgentNotFound(f"agent {name!r}: {function!r} must be an async generator function (async def, yield)")
    return agent
