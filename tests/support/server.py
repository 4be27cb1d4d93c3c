"""Holdfast as a real process: started like a user would, killed, stopped, started again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from uuid import uuid4

import psutil

BACKEND = Path(__file__).resolve().parents[2] / "backend"
START_S = 30.0
LEAVE_S = 5.0
"""How long the children of a server that is gone may take to notice."""

MARK = "TEST_SERVER_MARK"
"""The variable by which the processes of one server are found."""

_POLL = 0.02


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """`holdfast serve` on a free port, with its own data folder and log."""

    def __init__(self, *arguments: str, data_dir: Path | None = None, env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.data_dir = data_dir or Path(tempfile.mkdtemp(prefix="holdfast-data-"))
        self.arguments = arguments
        self.env = {**os.environ, "PYTHONPATH": str(BACKEND), **(env or {}), MARK: uuid4().hex}
        self.log = self.data_dir / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where HTTP is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """Where the WebSocket is."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process is not None
        return self.process.pid

    def start(self, *, wait: bool = True) -> "ServerProcess":
        """Start, and wait until it is ready."""
        command = [sys.executable, "-m", "holdfast.cli", "serve", "--port", str(self.port)]
        command += ["--data-dir", str(self.data_dir), *self.arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.env, cwd=self.data_dir)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until /ready says so.

        Raises:
            RuntimeError: it ended, or takes too long; the message has its log.
        """
        limit = time.monotonic() + START_S
        while time.monotonic() < limit:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log.read_text()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.base_url}/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(_POLL)
        raise RuntimeError(f"the server does not get ready: {self.log.read_text()}")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill9(self) -> None:
        """End it as a crash would."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and wait for the end; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)

    def end(self) -> None:
        """End it and its children, whatever state they are in.

        Raises:
            AssertionError: it had ended before, and has left processes behind.
        """
        if self.process is None:
            return
        had_ended = self.process.poll() is not None
        if had_ended:
            _, left = psutil.wait_procs(self._family(), LEAVE_S)
        else:
            left = self._family()
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait(10)
        psutil.wait_procs(left, 10)
        assert not (had_ended and left), f"the server left processes behind: {left}"

    def _family(self) -> list[psutil.Process]:
        """All processes that come from this one, those that have lost their parent too: they share its mark."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.env[MARK]:
                    found.append(process)
        return found
