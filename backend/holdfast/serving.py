"""`holdfast serve`: checks everything, then serves in one process, or in several on one port."""

import asyncio
import ctypes
import gc
import signal
import socket
import subprocess
import sys
import time

from holdfast import __version__, tracing
from holdfast.agents.resolve import AgentNotFound, resolve_agent
from holdfast.config import Settings
from holdfast.preparation import NotReady, check_sandbox, find_tools, open_database, prepare
from holdfast.telemetry import set_up_logging

_PR_SET_PDEATHSIG = 1
_RESTART_S = 1.0


def serve(settings: Settings, listen_fd: int | None = None) -> int:
    """Serve until a signal ends it; the exit code."""
    if listen_fd is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    set_up_logging(settings.log_format, settings.log_level)
    try:
        agent = resolve_agent(settings.agent, settings.instructions)
        toolbox, sandbox = find_tools(settings), check_sandbox(settings)
        database = open_database(settings)
        asyncio.run(_prepare_once(settings))
        listener = socket.socket(fileno=listen_fd) if listen_fd is not None else _listen(settings)
    except (NotReady, AgentNotFound) as error:
        print(f"holdfast: {error}", file=sys.stderr)
        return 1
    shown = _announcement(settings, listener, database.url.render_as_string(hide_password=True))
    if settings.processes > 1 and listen_fd is None:
        print(shown, flush=True)
        return _supervise(settings.processes, listener)
    from holdfast.api.app import create_app  # noqa: PLC0415 - a fault is told before half a second of imports
    from holdfast.api.server import serve as serve_app  # noqa: PLC0415 - the same

    end_traces = tracing.set_up()
    app = create_app(settings, database, agent, toolbox, sandbox)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        return serve_app(app, settings, listener, shown if listen_fd is None else None)
    finally:
        end_traces()


async def _prepare_once(settings: Settings) -> None:
    """On an event loop of its own: the pool of the serving loop must not see these connections."""
    database = open_database(settings)
    try:
        await prepare(database, upgrade=database.dialect == "sqlite")
    finally:
        await database.close()


def _listen(settings: Settings) -> socket.socket:
    from holdfast.api.server import listen  # noqa: PLC0415 - a fault is told before half a second of imports

    try:
        return listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotReady(f"cannot listen on {settings.host}:{settings.port} ({reason}); choose another --port") from None


def _announcement(settings: Settings, listener: socket.socket, database: str) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return (
        f"Holdfast {__version__} serves http://{shown}:{port}\n"
        f"  agent {settings.agent}, auth {settings.auth}, {database}"
    )


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
