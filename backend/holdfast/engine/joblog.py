"""What a job says: where it is kept, read by byte offset, and followed while it grows.

The log is a file of the host that runs the job. It is never held in memory: it is read in pieces.
"""

import asyncio
import codecs
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from holdfast.engine.keeper import ENTRY, STREAMS

PIECE_BYTES = 64 << 10
_LOOK_S = 0.1
"""How long a follower waits for news before it looks at the file by itself."""


class ExitRecord(msgspec.Struct, frozen=True):
    """What a keeper has written down; `mark` names the process that it is about."""

    mark: str
    exit_code: int | None
    signal: int | None
    cpu_s: float
    max_rss_bytes: int
    too_much: bool


class Said(NamedTuple):
    """A piece of output: the offset behind it, its stream and its text."""

    next_offset: int
    stream: str
    text: str


class JobLog:
    """The files of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "output"
        self.index = folder / "output.index"
        self.record = folder / "exit.json"

    def make(self) -> None:
        """Make the folder; of a try before, only the log stays."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.record.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """How many bytes there are."""
        try:
            return self.log.stat().st_size
        except OSError:
            return 0

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`."""
        try:
            with self.log.open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(limit) or b""
        except FileNotFoundError:
            return b""

    def exit_record(self, mark: str) -> ExitRecord | None:
        """How the process of that mark has ended, if its keeper has told."""
        try:
            found = msgspec.json.decode(self.record.read_bytes(), type=ExitRecord)
        except (OSError, msgspec.MsgspecError):
            return None
        return found if found.mark == mark else None

    def stream_at(self, offset: int) -> tuple[int, int | None]:
        """Which stream the byte at `offset` is of, and where the next one begins (None: not yet)."""
        try:
            size = self.index.stat().st_size // ENTRY.size
            with self.index.open("rb") as file:
                low, high = 0, size
                while low < high:  # The first entry beyond the offset.
                    middle = (low + high) // 2
                    file.seek(middle * ENTRY.size)
                    if ENTRY.unpack(file.read(ENTRY.size))[0] <= offset:
                        low = middle + 1
                    else:
                        high = middle
                if low == 0:
                    return 0, None
                file.seek((low - 1) * ENTRY.size)
                stream = ENTRY.unpack(file.read(ENTRY.size))[1]
                return stream, ENTRY.unpack(file.read(ENTRY.size))[0] if low < size else None
        except (OSError, ValueError):
            return 0, None

    def say(self, offset: int, *, ended: bool) -> Said | None:
        """The next piece as text; bytes that are not UTF-8 show as U+FFFD, half a character waits for its rest."""
        stream, until = self.stream_at(offset)
        limit = PIECE_BYTES if until is None else min(PIECE_BYTES, until - offset)
        data = self.read(offset, limit)
        if not data:
            return None
        whole = (until is not None and len(data) == until - offset) or (ended and offset + len(data) >= self.size)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data, final=whole)
        waiting = len(decoder.getstate()[0])
        if waiting == len(data):
            return None
        return Said(offset + len(data) - waiting, STREAMS[stream], text)

    async def follow(
        self, offset: int, has_ended: Callable[[], Awaitable[bool]], news: Callable[[float], Awaitable[None]]
    ) -> AsyncIterator[Said | None]:
        """Pieces from `offset` on, until the job has ended and all is said; None now and then while nothing comes.

        `news` waits for something new, at most so many seconds.
        """
        while True:
            ended = await has_ended()  # Asked before the file is read: what comes in between is not missed.
            quiet = True
            while (said := self.say(offset, ended=ended)) is not None:
                offset, quiet = said.next_offset, False
                yield said
                await asyncio.sleep(0)
            if ended:
                return
            if quiet:
                yield None
                await news(_LOOK_S)


def tail(size: int, offset: int) -> int:
    """The byte that an offset names; one below 0 counts from the end."""
    return offset if offset >= 0 else max(0, size + offset)


def keeper_command(log: JobLog, mark: str, limit_bytes: int, linger_s: float, python: str) -> list[str]:
    """What stands before a command that is to outlive the service."""
    program = os.path.join(os.path.dirname(__file__), "keeper.py")
    files = [str(log.log), str(log.index), str(log.record)]
    return [python, "-I", "-S", program, *files, mark, str(limit_bytes), str(linger_s), "--"]
