"""What a command says: all of it in a file, its ends in memory, and a part of it told live."""

import asyncio
import codecs
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

from holdfast.domain.events import clean_text

WHOLE_BYTES = 256 << 10
"""Output up to this size is told whole; of more, the first and the last `END_BYTES` and a link."""

END_BYTES = 16 << 10

LIVE_CHARS = 256 << 10
"""So much of one action's output is told while it runs."""

PIECE_CHARS = 16 << 10
PAUSE_S = 0.05
"""Live output is told at most so often, unless there is a whole piece."""

Stream = str
"""`stdout`, `stderr`, or what a tool calls its own."""

Tell = Callable[[Stream, str, bool], None]
"""Tells a piece of live output; the last argument says that there will be no more of it."""


class TooMuchOutput(Exception):
    """A command has said more than is kept."""


class Output:
    """Takes the output of one command."""

    def __init__(self, path: Path, limit_bytes: int, live: "Live") -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._live = live
        self._file: BinaryIO | None = None
        self._head = bytearray()
        self._tail = bytearray()
        self.bytes = 0

    @property
    def truncated(self) -> bool:
        """Whether `text` leaves out the middle."""
        return self.bytes > WHOLE_BYTES

    async def take(self, stream: Stream, data: bytes) -> None:
        """Take the next piece.

        Raises:
            TooMuchOutput: the limit is reached; what came before is kept.
        """
        self.bytes += len(data)
        if self.bytes > self._limit_bytes:
            raise TooMuchOutput
        if len(self._head) < WHOLE_BYTES:
            self._head += data[: WHOLE_BYTES - len(self._head)]
        self._tail += data
        if len(self._tail) > END_BYTES * 8:
            del self._tail[:-END_BYTES]
        if self.truncated:
            self._keep(data)
        await self._live.hear(stream, data)

    def text(self) -> str:
        """The output as it is told."""
        if not self.truncated:
            return clean_text(self._head.decode(errors="replace"))
        head, tail = bytes(self._head[:END_BYTES]), bytes(self._tail[-END_BYTES:])
        left_out = self.bytes - len(head) - len(tail)
        shown = f"{head.decode(errors='ignore')}\n... ({left_out} bytes left out) ...\n{tail.decode(errors='ignore')}"
        return clean_text(shown)

    def close(self) -> None:
        """No more comes."""
        self._live.flush(last=True)
        if self._file is not None:
            self._file.close()

    def _keep(self, data: bytes) -> None:
        """Write to the file; it begins with what was only in memory until now."""
        if self._file is None:
            self._file = create(self._path)
            before = self.bytes - len(data)
            self._file.write(self._head[:before])
        self._file.write(data)


class Live:
    """Tells output as it comes, in pieces that are whole characters, and not more than is worth telling.

    What `room` gives is awaited before more is taken, so that a fast command waits for the journal.
    """

    def __init__(self, tell: Tell, room: Callable[[], Awaitable[None] | None]) -> None:
        self._tell = tell
        self._room = room
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._waiting: list[str] = []
        self._chars = 0
        self._stream: Stream = "stdout"
        self._told_chars = 0
        self._told_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[str] = []

    @property
    def told(self) -> str:
        """All that was told."""
        return "".join(self._parts)

    async def hear(self, stream: Stream, data: bytes) -> None:
        """Take bytes of a command."""
        if self._told_chars < LIVE_CHARS:
            await self.say(stream, self._decoders[stream].decode(data))

    async def say(self, stream: Stream, text: str) -> None:
        """Take text."""
        if self._told_chars >= LIVE_CHARS or not text:
            return
        if stream != self._stream:
            self.flush()
            self._stream = stream
        self._waiting.append(clean_text(text))
        self._chars += len(text)
        loop = asyncio.get_running_loop()
        if self._chars >= PIECE_CHARS or loop.time() - self._told_at >= PAUSE_S:
            self.flush()
        elif self._timer is None:
            self._timer = loop.call_later(PAUSE_S, self.flush)
        if (room := self._room()) is not None:
            await room

    def flush(self, *, last: bool = False) -> None:
        """Tell what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if last:
            self._waiting += [clean_text(rest) for one in self._decoders.values() if (rest := one.decode(b"", True))]
        text = "".join(self._waiting)[: LIVE_CHARS - self._told_chars]
        self._waiting, self._chars = [], 0
        self._told_at = asyncio.get_running_loop().time()
        for start in range(0, len(text), PIECE_CHARS):
            piece = text[start : start + PIECE_CHARS]
            self._told_chars += len(piece)
            self._parts.append(piece)
            self._tell(self._stream, piece, self._told_chars >= LIVE_CHARS)


def create(path: Path) -> BinaryIO:
    """A new file that only the service may read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0)
