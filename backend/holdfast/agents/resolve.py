"""From names to what they stand for: agents (`demo`, `module:function`, `provider:model`) and tools.

The name of a provider wins over a module of the same name. pydantic-ai is imported only when a
provider is asked for, and a key that is missing is found before that.
"""

import functools
import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from typing import Any

from holdfast.agents.demo import demo
from holdfast.agents.tools import Tool
from holdfast.agents.turn import Agent

PROVIDERS = frozenset(
    "alibaba anthropic azure azure-responses bedrock bedrock-mantle cerebras cohere crusoe deepseek "  # noqa: SIM905
    "fireworks github github-copilot google google-cloud groq heroku huggingface litellm meta mistral "
    "moonshotai nebius ollama openai openai-chat openai-chatgpt openai-codex openai-responses openrouter "
    "ovhcloud sambanova snowflake together vercel vllm xai zai".split()
)
"""The providers of chat models that pydantic-ai knows, so that their names are known without it."""

_GATEWAY = "gateway/"

_NEEDS_ONE_OF: dict[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "openai-chat": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "openai-responses": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
}
"""Variables of which one must be set; the first is the one to tell. pydantic-ai checks the others."""


class AgentNotFound(ValueError):
    """No agent of this name can be had; the message says in one line why, and what to do."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"agent {name!r}: {' '.join(why.split())}")


class ToolsNotFound(ValueError):
    """No tools of this name can be had; the message says in one line why, and what to do."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"tools {name!r}: {' '.join(why.split())}")


class _Missing(Exception):
    """Something of a name is not there."""


@dataclass(frozen=True, slots=True)
class ResolvedAgent:
    """An agent with the name that it was asked for by, and its model if it has one."""

    name: str
    agent: Agent
    model: str | None = None


def resolve_agent(name: str, instructions: str = "") -> ResolvedAgent:
    """The agent of this name; `instructions` is what a model is told before all else. Asks no network.

    Raises:
        AgentNotFound: the name, its module or function, its provider or key is wrong.
    """
    if name == "demo":
        return ResolvedAgent("demo", demo)
    before, colon, after = name.partition(":")
    if not colon or not before or not after:
        raise AgentNotFound(name, "use `demo`, `module:function` or `provider:model`")
    if before in PROVIDERS or before.startswith(_GATEWAY):
        return _from_provider(name, before, after, instructions)
    try:
        return ResolvedAgent(name, _as_agent(_attribute(_import(before), after), after))
    except _Missing as error:
        raise AgentNotFound(name, str(error)) from error.__cause__


def resolve_tools(names: str) -> list[Tool]:
    """The tools of `module:name` and `module` (all that it has), separated by commas.

    Raises:
        ToolsNotFound: a module, or a tool in it, is not there.
    """
    found: list[Tool] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        module, _, path = name.partition(":")
        try:
            found += _tools_of(_import(module), path)
        except _Missing as error:
            raise ToolsNotFound(name, str(error)) from error.__cause__
    return found


def _tools_of(module: object, path: str) -> list[Tool]:
    if not path:
        tools = [each for each in vars(module).values() if isinstance(each, Tool)]
        if not tools:
            raise _Missing("the module has no tools; mark its functions with `@holdfast.agents.tools.tool`")
        return tools
    found = _attribute(module, path)
    if not isinstance(found, Tool):
        raise _Missing(f"`{path}` is no tool; mark the function with `@holdfast.agents.tools.tool`")
    return [found]


def _from_provider(name: str, provider: str, model: str, instructions: str) -> ResolvedAgent:
    needed = _NEEDS_ONE_OF.get(provider, ())
    if needed and not any(os.environ.get(variable) for variable in needed):
        raise AgentNotFound(name, f"set {needed[0]} to the provider's key")
    providers = importlib.import_module("holdfast.agents.providers")  # Its import takes a second.
    try:
        agent: Agent = providers.provider_agent(provider, model, instructions or None)
    except Exception as error:
        raise AgentNotFound(name, providers.what_is_missing(error)) from None
    return ResolvedAgent(name, agent, model)


def _as_agent(agent: Any, function: str) -> Agent:
    called: Any = agent if inspect.isroutine(agent) or isinstance(agent, functools.partial) else type(agent).__call__
    if inspect.isclass(agent) or not inspect.isasyncgenfunction(called):
        raise _Missing(f"`{function}` must be an async generator function (`async def` with `yield`)")
    try:
        inspect.signature(agent).bind(None)
    except TypeError:
        raise _Missing(f"`{function}` must take one argument, the turn") from None
    return agent


def _import(module: str) -> object:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            why = f"there is no provider and, seen from here, no module `{module}`; check its spelling and the folder"
            raise _Missing(why) from None
        raise _Missing(f"module `{module}` needs `{error.name}`, which is not installed") from None
    except (Exception, SystemExit) as error:
        raise _Missing(f"module `{module}` fails when it is imported: {error!r}") from error


def _attribute(found: object, path: str) -> Any:
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _Missing(f"the module has no `{path}`; check the name of the function") from None
    return found
