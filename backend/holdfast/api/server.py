"""uvicorn as Holdfast runs it: its socket protocol, its signals, one process or several."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from holdfast.agents.mcp_servers import McpUnavailable
from holdfast.api.app import Services
from holdfast.config import Settings

log = logging.getLogger("holdfast.server")

_WRITE_HIGH = 4 * 1024
"""How many unsent bytes make a socket wait: then it holds the rest of one frame, and builds no other."""

_SAME_SIGNAL_S = 1.0

_SWITCH_S = 0.0005
"""How long a thread waits before it asks for the interpreter: a commit is not to wait 5 ms for each statement."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with a small write buffer and a way to cut a stalled peer off.

    `send` and `close` both wait for a peer that may never read; the transport's `abort`, put into
    the scope's state, does not. `writable` stands beside it: set while the peer keeps up.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        real = cast("asyncio.Transport", transport)
        self.app_state = {**self.app_state, "abort": real.abort, "writable": self.writable}
        real.set_write_buffer_limits(high=_WRITE_HIGH, low=_WRITE_HIGH - 1)
        super().connection_made(transport)


class Server(uvicorn.Server):
    """A uvicorn server that drains at the first SIGTERM or SIGINT and ends at the second, a second later or more."""

    def __init__(self, config: uvicorn.Config, services: Services, announcement: str | None) -> None:
        super().__init__(config)
        self._announcement = announcement
        self._services = services
        self._drain: asyncio.Task[None] | None = None
        self._signalled_at: float | None = None
        self.refusal: McpUnavailable | None = None
        """Why it did not even start."""
        self._loop: asyncio.AbstractEventLoop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn's signal handler."""
        now = time.monotonic()
        if self._signalled_at is not None and now - self._signalled_at < _SAME_SIGNAL_S:
            return  # A terminal tells the whole group, and a supervisor tells its children again.
        if self._signalled_at is not None or not hasattr(self, "_loop"):
            log.warning("ending at once")
            self.should_exit = self.force_exit = True
            if self._drain is not None:
                self._drain.cancel()
            return
        log.info("%s: draining", signal.Signals(sig).name)
        self._loop.call_soon_threadsafe(self._start_drain)
        self._signalled_at = now

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and remember the loop that signals are handed to."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._services.connect()
        except McpUnavailable as refusal:
            self.refusal, self.should_exit = refusal, True
            return
        await super().startup(sockets)
        if self._announcement and self.started:
            print(self._announcement, flush=True)

    def _start_drain(self) -> None:
        self._drain = self._loop.create_task(self._drained())

    async def _drained(self) -> None:
        try:
            await self._services.drain()
        finally:
            self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def serve(app: Starlette, settings: Settings, listener: socket.socket, announcement: str | None = None) -> int:
    """Print the announcement once it serves, and serve until a signal ends it; the exit code."""
    sys.setswitchinterval(_SWITCH_S)
    limits: dict[str, Any] = {"ws_max_size": settings.frame_bytes, "ws_max_queue": 32}
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws=SocketProtocol,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        **limits,
    )
    server = Server(config, app.state.services, announcement)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if server.refusal is not None:
        print(f"holdfast: {server.refusal}", file=sys.stderr)
        return 1
    return 0
