"""The keeper of a job that outlives the service: takes its output, and writes down how it ended.

A program of its own that needs nothing of Holdfast, and the home of `LogWriter`, which the service uses for all
other jobs. A log is the bytes as they came; beside it an index tells where which stream goes on.

    keeper.py LOG INDEX RECORD MARK LIMIT_BYTES LINGER_S -- COMMAND...
"""

import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time

ENTRY = struct.Struct("<QB")
"""An entry of the index: from this byte on the stream is 0 (stdout) or 1 (stderr)."""

STREAMS = ("stdout", "stderr")

_CHUNK_BYTES = 64 << 10


class LogFull(Exception):
    """The log has taken as much as it may."""


class LogWriter:
    """Appends to a log and its index; what a try before has written stays. Belongs to the service alone (0600)."""

    def __init__(self, log: str, index: str, limit_bytes: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._log = os.open(log, flags, 0o600)
        self._index = os.open(index, flags, 0o600)
        self.bytes = os.fstat(self._log).st_size
        self._until = self.bytes + limit_bytes
        self._stream: int | None = None

    def write(self, stream: int, data: bytes) -> None:
        """Append what a stream (0 or 1) has said.

        Raises:
            LogFull: that is more than may be kept; what fits is.
        """
        if stream != self._stream:
            os.write(self._index, ENTRY.pack(self.bytes, stream))
            self._stream = stream
        rest = memoryview(data)[: self._until - self.bytes]
        while rest:
            written = os.write(self._log, rest)
            self.bytes += written
            rest = rest[written:]
        if self.bytes >= self._until:
            raise LogFull

    def close(self) -> None:
        """No more comes."""
        os.close(self._log)
        os.close(self._index)


def _pump(child: "subprocess.Popen[bytes]", writer: LogWriter, linger_s: float) -> bool:
    """Take all output, until both pipes are closed or the child is gone for `linger_s`; whether it was too much."""
    selector = selectors.DefaultSelector()
    for stream, pipe in enumerate((child.stdout, child.stderr)):
        assert pipe is not None
        selector.register(pipe, selectors.EVENT_READ, stream)
    gone_at: float | None = None
    while selector.get_map():
        ready = selector.select(0.05)
        for key, _ in ready:
            data = os.read(key.fd, _CHUNK_BYTES)
            if not data:
                selector.unregister(key.fileobj)
                continue
            try:
                writer.write(key.data, data)
            except LogFull:
                child.kill()
                return True
        if gone_at is None and _has_ended(child):
            gone_at = time.monotonic()
        if not ready and gone_at is not None and time.monotonic() - gone_at > linger_s:
            break
    return False


def _has_ended(child: "subprocess.Popen[bytes]") -> bool:
    found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None


def main(log: str, index: str, record: str, mark: str, limit: str, linger: str, dashes: str, *command: str) -> int:
    """Run the command to its end; its exit code as a shell would tell it."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _stay)  # Not SIG_IGN, which the command would inherit.
    writer = LogWriter(log, index, int(limit))
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    too_much = _pump(child, writer, float(linger))
    _, status, usage = os.wait4(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    told = {
        "mark": mark,
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "max_rss_bytes": usage.ru_maxrss << 10,
        "too_much": too_much,
    }
    fresh = f"{record}.{os.getpid()}"
    with open(fresh, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        json.dump(told, file)
    os.replace(fresh, record)
    return code if code >= 0 else 128 - code


def _stay(_number: int, _frame: object) -> None:
    """What ends the command ends the keeper, after it has written down how."""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
