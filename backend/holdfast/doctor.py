"""`holdfast doctor`: looks at everything that serving needs, and says what to do about each finding."""

import asyncio
import sqlite3

from holdfast.agents.mcp_servers import McpUnavailable
from holdfast.agents.resolve import AgentNotFound, resolve_agent
from holdfast.api.pages import UI
from holdfast.api.server import listen
from holdfast.config import Settings
from holdfast.preparation import CONNECT_S, NotReady, check_sandbox, find_tools, open_database
from holdfast.store import schema
from holdfast.store.health import in_words
from holdfast.store.schema import SchemaError


async def examine(settings: Settings) -> int:
    """Print a line for each finding; 1 when something keeps the service from starting."""
    findings = [
        await _database(settings),
        _agent(settings),
        _port(settings),
        _ui(),
        _sandbox(settings),
        _tools(settings),
        await _mcp(settings),
        _bus(settings),
    ]
    for state, name, words in findings:
        print(f"{state:5} {name:9} {words}")
    return int(any(state == "fail" for state, _, _ in findings))


Finding = tuple[str, str, str]


async def _database(settings: Settings) -> Finding:
    try:
        database = open_database(settings)
    except NotReady as error:
        return "fail", "database", str(error)
    shown = database.url.render_as_string(hide_password=True)
    try:
        async with asyncio.timeout(CONNECT_S):
            await schema.check(database)
    except SchemaError as error:
        if database.dialect == "sqlite" and "no schema" in str(error):
            return "ok", "database", f"{shown} (empty; serve makes the schema), SQLite {sqlite3.sqlite_version}"
        return "fail", "database", f"{shown}: {error}"
    except Exception as error:
        why = in_words(error)
        return "fail", "database", f"{shown} cannot be reached: {why}; is it running, and the address right?"
    finally:
        await database.close()
    return "ok", "database", f"{shown}, schema {schema.newest()}"


def _agent(settings: Settings) -> Finding:
    try:
        agent = resolve_agent(settings.agent)
    except AgentNotFound as error:
        return "fail", "model", str(error)
    if agent.name == "demo":
        return "ok", "model", "the demo agent, without a model; name a real one with --agent openai:MODEL"
    return "ok", "model", f"{agent.name} (the key is set; the provider is not asked)"


def _port(settings: Settings) -> Finding:
    try:
        listen(settings.host, settings.port).close()
    except OSError as error:
        return "fail", "port", f"{settings.host}:{settings.port}: {error.strerror}; choose another with --port"
    return "ok", "port", f"{settings.host}:{settings.port} is free"


def _ui() -> Finding:
    if (UI / "index.html").is_file():
        return "ok", "ui", "built"
    return "warn", "ui", "not built; the API works, the page does not. Run `make ui`"


def _sandbox(settings: Settings) -> Finding:
    try:
        sandbox = check_sandbox(settings)
    except NotReady as error:
        return "fail", "sandbox", str(error)
    if sandbox.confined:
        return "ok", "sandbox", f"{sandbox.name}, tried: commands run in it"
    what = "ask each time" if settings.unsandboxed == "ask" else "are off"
    return "warn", "sandbox", f"none works here, so tools that run commands {what}; install bubblewrap"


def _tools(settings: Settings) -> Finding:
    try:
        return "ok", "tools", ", ".join(find_tools(settings).names)
    except NotReady as error:
        return "fail", "tools", str(error)


async def _mcp(settings: Settings) -> Finding:
    if not settings.mcp:
        return "ok", "mcp", "no servers"
    from holdfast.agents.mcp import connected  # noqa: PLC0415 - only what is in use is loaded

    try:
        async with connected(settings.mcp) as toolbox:
            return "ok", "mcp", f"{len(settings.mcp)} connected: {', '.join(toolbox.names)}"
    except McpUnavailable as error:
        return "fail", "mcp", str(error)


def _bus(settings: Settings) -> Finding:
    if settings.redis_url:
        return "warn", "bus", "redis_url is set, but this version knows no bus; nodes poll the journal"
    return "ok", "bus", "none; several nodes poll the journal"
