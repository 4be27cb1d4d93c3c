"""Tools of other programs: servers of the Model Context Protocol, over stdio or streamable HTTP.

    [mcp.files]
    command = "mcp-server-files"
    args = ["/srv/docs"]
    approval = "always"

    [mcp.tickets]
    url = "https://tickets.example.com/mcp"
    headers = { Authorization = "Bearer ..." }

A tool `read` of the server `files` is `files_read` here. A program gets PATH, HOME and the like and what
`env` says, and none of the service's own variables; it is killed when the service ends, however it ends.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import BinaryContent

from holdfast.agents.calls import as_name
from holdfast.agents.faults import logged
from holdfast.agents.mcp_servers import McpServer, McpUnavailable
from holdfast.agents.tools import Tool, Toolbox, ToolContext, ToolResult

if TYPE_CHECKING:
    from pydantic_ai.mcp import MCPToolset

log = logging.getLogger("holdfast.agents")

NONE = Toolbox()

START_S = 10.0
"""How long a server may take to start and to tell its tools."""

CALL_S = 600.0
"""How long a server may be silent in a call."""

PROBE_S = 3.0

_NAME_CHARS = 64

_LAUNCH = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)
"""Becomes the program, after it has asked the kernel (PR_SET_PDEATHSIG) to be killed with the service."""


@contextlib.asynccontextmanager
async def connected(
    servers: Sequence[McpServer], beside: Toolbox = NONE, *, start_s: float = START_S
) -> AsyncGenerator[Toolbox, None]:
    """The tools `beside` and those of all servers, which are connected as long as the context is open.

    Raises:
        McpUnavailable: one does not start, does not answer in time, refuses, or has a tool with the name of
            another; all are closed.
    """
    connections = [_Connection(server, start_s) for server in servers]
    try:
        toolbox = beside
        for server, made in zip(servers, await _all(each.tools() for each in connections), strict=True):
            try:
                toolbox = toolbox.with_(made)
            except ValueError as error:
                raise McpUnavailable(server.name, f"needs another name: {error}") from None
        yield toolbox
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


async def _all(opening: Iterable[Any]) -> list[list[Tool]]:
    """What all of them give; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(each) for each in opening]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Connection:
    """The connection to one server; when it is lost, the next call makes a new one."""

    server: McpServer
    start_s: float
    _toolset: "MCPToolset[Any] | None" = field(default=None, init=False)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _closed: bool = field(default=False, init=False)

    async def tools(self) -> list[Tool]:
        """Connect, and make a tool of each that the server has.

        Raises:
            McpUnavailable: it cannot be had.
        """
        toolset = await self._ready()
        listed = await toolset.list_tools()
        names = _names(self.server.name, [each.name for each in listed])
        return [self._tool(names[each.name], each) for each in listed]

    async def call(self, name: str, args: dict[str, Any]) -> ToolResult:
        """Have a tool called, on a new connection if the last one is lost."""
        try:
            toolset = await self._ready()
        except McpUnavailable as error:
            return ToolResult(f"{str(error)[0].upper()}{str(error)[1:]}.", failed=True)
        try:
            return ToolResult(_plain(await toolset.direct_call_tool(name, args)))
        except ToolFailed as error:
            return ToolResult(error.message, failed=True)
        except ModelRetry as error:
            if await self._answers(toolset):
                return ToolResult(error.message, failed=True)
            reason: Exception = error
        except Exception as error:
            reason = error
        log.warning("MCP server %s is lost: %s", self.server.name, logged(reason))
        await self._drop(toolset)
        return ToolResult(
            f"The MCP server {self.server.name!r} was lost during the call; what the call has done is not known.",
            failed=True,
        )

    async def close(self) -> None:
        """End the connection, and with it the server's process if it is ours."""
        self._closed = True
        async with self._opening:
            if self._toolset is not None:
                await self._drop(self._toolset)

    def _tool(self, name: str, listed: Any) -> Tool:
        async def call(context: ToolContext, args: dict[str, Any]) -> ToolResult:
            return await self.call(listed.name, args)

        schema = dict(listed.input_schema if hasattr(listed, "input_schema") else listed.inputSchema)
        described = listed.description or listed.title or listed.name
        return Tool(name, described, {"type": "object", **schema}, call, self.server.approval)

    async def _ready(self) -> "MCPToolset[Any]":
        """The toolset, connected.

        Raises:
            McpUnavailable: it cannot be had.
        """
        async with self._opening:
            if self._closed:
                raise McpUnavailable(self.server.name, "is closed")
            if self._toolset is None:
                self._toolset = await self._open()
            return self._toolset

    async def _open(self) -> "MCPToolset[Any]":
        toolset = _toolset(self.server)
        try:
            async with asyncio.timeout(self.start_s):
                await toolset.__aenter__()
                await toolset.list_tools()
            return toolset
        except TimeoutError:
            why = f"did not answer within {self.start_s:g} seconds"
        except Exception as error:
            why = f"could not be connected: {logged(error)}"
        except BaseException:
            await self._drop(toolset)
            raise
        await self._drop(toolset)
        raise McpUnavailable(self.server.name, why)

    async def _answers(self, toolset: "MCPToolset[Any]") -> bool:
        """Whether the server still says something."""
        try:
            async with asyncio.timeout(PROBE_S):
                await toolset.client.list_tools()
        except Exception:
            return False
        return True

    async def _drop(self, toolset: "MCPToolset[Any]") -> None:
        """Forget this toolset and close its connection."""
        if self._toolset is toolset:
            self._toolset = None
        with contextlib.suppress(Exception):
            await toolset.client.close()


def _toolset(server: McpServer) -> "MCPToolset[Any]":
    """How pydantic-ai reaches the server.

    Raises:
        McpUnavailable: its program or a package is not there.
    """
    try:
        from fastmcp.client.transports import StdioTransport  # noqa: PLC0415 - only what is in use is loaded
        from pydantic_ai.mcp import MCPToolset  # noqa: PLC0415 - only what is in use is loaded
    except ImportError:
        raise McpUnavailable(server.name, "needs a package: install `pydantic-ai-slim[mcp]`") from None
    if server.command is None:
        headers = dict(server.headers) or None
        return MCPToolset(
            server.url or "", headers=headers, tool_error_behavior="failed", read_timeout=CALL_S, init_timeout=None
        )
    found = shutil.which(server.command, path=server.env.get("PATH"))
    if found is None:
        raise McpUnavailable(server.name, f"cannot be started: there is no command {server.command!r}")
    launch = ["-I", "-S", "-c", _LAUNCH, str(os.getpid()), found, *server.args]
    transport = StdioTransport(sys.executable, launch, env=dict(server.env), keep_alive=False)
    return MCPToolset(transport, tool_error_behavior="failed", read_timeout=CALL_S, init_timeout=None)


def _names(server: str, tools: Sequence[str]) -> Mapping[str, str]:
    """A name of our own for each tool, no two alike."""
    names: dict[str, str] = {}
    for tool in tools:
        name, number = as_name(f"{server}_{tool}"), 2
        while name in names.values():
            ending = f"_{number}"
            name, number = as_name(f"{server}_{tool}")[: _NAME_CHARS - len(ending)] + ending, number + 1
        names[tool] = name
    return names


def _plain(value: Any) -> Any:
    """What a server gave back as text or JSON; of an image or a file, its kind and size."""
    if isinstance(value, BinaryContent):
        return f"({value.media_type}, {len(value.data)} bytes)"
    if isinstance(value, list):
        parts = [_plain(each) for each in value]
        return "\n".join(parts) if all(isinstance(each, str) for each in parts) else {"content": parts}
    return value if isinstance(value, str | dict) else {"result": value}
