"""A server of the Model Context Protocol: `python mcp_server.py [stdio|PORT]`."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

from mcp.server.mcpserver import MCPServer
from pydantic import Field

server = MCPServer("tests")


@server.tool()
def add(a: int, b: Annotated[int, Field(ge=0)]) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def broken() -> str:
    """Fail."""
    raise ValueError("out of order")


@server.tool()
def variables() -> list[str]:
    """The names of the variables that this process has."""
    return sorted(os.environ)


@server.tool()
def process() -> int:
    """The id of this process."""
    return os.getpid()


@server.tool()
async def wait(sign: str) -> str:
    """Make the file `sign`, and never end."""
    Path(sign).touch()
    await asyncio.Event().wait()
    return "never"


@server.tool()
def die() -> str:
    """End the process."""
    os._exit(1)


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["stdio"]):
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
