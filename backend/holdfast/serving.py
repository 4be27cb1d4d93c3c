"""`holdfast serve`: checks everything, then serves in one process, or in several on one port."""

import asyncio
import ctypes
import gc
import signal
import socket
import subprocess
import sys
import time

from holdfast import __version__
from holdfast.agents.resolve import AgentNotFound, resolve_agent
from holdfast.api.app import create_app
from holdfast.api.server import listen
from holdfast.api.server import serve as serve_app
from holdfast.config import Settings
from holdfast.preparation import NotReady, open_database, prepare
from holdfast.telemetry import set_up_logging

_PR_SET_PDEATHSIG = 1
_RESTART_S = 1.0


def serve(settings: Settings, listen_fd: int | None = None) -> int:
    """Serve until a signal ends it; the exit code."""
    if listen_fd is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    set_up_logging(settings.log_format, settings.log_level)
    try:
        agent = resolve_agent(settings.agent)
        database = open_database(settings)
        asyncio.run(_prepare_once(settings))
        listener = socket.socket(fileno=listen_fd) if listen_fd is not None else _listen(settings)
    except (NotReady, AgentNotFound) as error:
        print(f"holdfast: {error}", file=sys.stderr)
        return 1
    if listen_fd is None:
        _announce(settings, listener, database.url.render_as_string(hide_password=True))
    if settings.processes > 1 and listen_fd is None:
        return _supervise(settings.processes, listener)
    app = create_app(settings, database, agent)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    serve_app(app, settings, listener)
    return 0


async def _prepare_once(settings: Settings) -> None:
    """On an event loop of its own: the pool of the serving loop must not see these connections."""
    database = open_database(settings)
    try:
        await prepare(database, upgrade=database.dialect == "sqlite")
    finally:
        await database.close()


def _listen(settings: Settings) -> socket.socket:
    try:
        return listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotReady(f"cannot listen on {settings.host}:{settings.port} ({reason}); choose another --port") from None


def _announce(settings: Settings, listener: socket.socket, database: str) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"Holdfast {__version__} serves http://{shown}:{port}", flush=True)
    print(f"  agent {settings.agent}, auth {settings.auth}, {database}", flush=True)


def _supervise(count: int, listener: socket.socket) -> int:
    """Keep `count` processes on one listening socket; a dead one is replaced, a signal ends all."""
    fd = listener.fileno()
    command = [sys.executable, "-m", "holdfast.cli", *sys.argv[1:], "--listen-fd", str(fd)]
    children = [subprocess.Popen(command, pass_fds=[fd]) for _ in range(count)]
    stopping = 0

    def stop(signum: int, _frame: object) -> None:
        nonlocal stopping
        stopping += 1
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while True:
        time.sleep(0.1)
        if stopping:
            if all(child.poll() is not None for child in children):
                return 0
            continue
        for place, child in enumerate(children):
            if child.poll() is not None:
                print(f"holdfast: process {child.pid} ended with {child.returncode}", file=sys.stderr, flush=True)
                time.sleep(_RESTART_S)
                if not stopping:
                    children[place] = subprocess.Popen(command, pass_fds=[fd])
