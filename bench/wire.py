"""A WebSocket client that costs almost nothing: counts events and reads the times that chunks carry."""

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Callable

_STAMP = re.compile(rb"@(\d+)@")


class Wire(asyncio.Protocol):
    """Parses frames' headers alone; `on_payload` gets each text frame's bytes."""

    def __init__(self, on_payload: Callable[[bytes], None]) -> None:
        self._buffer = bytearray()
        self._open = False
        self._on_payload = on_payload
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: holdfast.v1\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            del self._buffer[: end + 4]
            self._open = True
            self.ready.set_result(None)
        self._frames()

    def _frames(self) -> None:
        buffer, at, size = self._buffer, 0, len(self._buffer)
        while size - at >= 2:
            length, head = buffer[at + 1] & 0x7F, 2
            if length == 126:
                if size - at < 4:
                    break
                length, head = int.from_bytes(buffer[at + 2 : at + 4]), 4
            elif length == 127:
                if size - at < 10:
                    break
                length, head = int.from_bytes(buffer[at + 2 : at + 10]), 10
            if size - at < head + length:
                break
            if buffer[at] & 0x0F == 1:
                self._on_payload(bytes(buffer[at + head : at + head + length]))
            at += head + length
        del buffer[:at]

    def send(self, **frame: object) -> None:
        """Send a text frame, masked with zeros."""
        payload = json.dumps(frame).encode()
        size = len(payload)
        head = bytes([0x81, 0x80 | size]) if size < 126 else bytes([0x81, 0xFE]) + size.to_bytes(2)
        self.transport.write(head + b"\0\0\0\0" + payload)


async def connect(port: int, on_payload: Callable[[bytes], None]) -> Wire:
    """An upgraded connection."""
    _, wire = await asyncio.get_running_loop().create_connection(lambda: Wire(on_payload), "127.0.0.1", port)
    await wire.ready
    return wire


class Reader:
    """Counts chunks and collects how old they were, in ms, when they arrived."""

    def __init__(self, *, stamps: bool = False) -> None:
        self.chunks = 0
        self.ends = 0
        self.ages: list[float] = []
        self.follows = asyncio.Event()
        self.done = asyncio.Event()
        self._stamps = stamps

    def __call__(self, payload: bytes) -> None:
        self.chunks += payload.count(b"TEXT_MESSAGE_CONTENT")
        if self._stamps:
            now = time.monotonic_ns()
            self.ages += [(now - int(stamp)) / 1e6 for stamp in _STAMP.findall(payload)]
        if payload.startswith(b'{"type":"caught_up"'):
            self.follows.set()
        if b'"RUN_FINISHED"' in payload:
            self.ends += 1
            self.done.set()
