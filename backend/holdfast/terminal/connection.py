"""One session over the WebSocket: stays connected, and goes on behind the last event that was shown."""

import asyncio
import random
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import websockets

from holdfast import __version__
from holdfast.domain.frames import SUBPROTOCOL

Frame = dict[str, Any]

_FINAL = {4400, 4401, 4403, 4406}


class Refused(Exception):
    """The server does not want us; trying again is no use."""


class Connection:
    """A socket that comes back. `on_frame` is given each frame; commands with a key are sent until answered."""

    def __init__(self, url: str, token: str | None, session: str, on_frame: Callable[[Frame], None]) -> None:
        self.session = session
        self._url = url.replace("http", "ws", 1).rstrip("/") + "/ws"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._on_frame = on_frame
        self._cursor: Frame | None = None
        self._pending: list[Frame] = []
        self._wire: websockets.ClientConnection | None = None
        self._next = 0

    async def send(self, command: Frame) -> None:
        """Send a command of this session; one with a `key` is sent again after a drop until it is answered."""
        command = {"session": self.session, **command}
        if "key" in command:
            self._pending.append(command)
        await self._try(command)

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            Refused: the server does not accept us.
        """
        tries = 0
        while True:
            try:
                async with websockets.connect(
                    self._url,
                    subprotocols=[websockets.Subprotocol(SUBPROTOCOL)],
                    additional_headers=self._headers,
                    max_size=None,
                    compression=None,
                ) as wire:
                    tries = 0
                    await self._serve(wire)
            except websockets.ConnectionClosed as closed:
                if closed.rcvd is not None and closed.rcvd.code in _FINAL:
                    raise Refused(closed.rcvd.reason or str(closed.rcvd.code)) from None
            except (OSError, websockets.InvalidHandshake, TimeoutError):
                pass
            finally:
                self._wire = None
            if tries == 0:
                print("\n[connection lost; coming back]", file=sys.stderr)
            await asyncio.sleep(random.uniform(0, min(30.0, 0.5 * 2**tries)))
            tries += 1

    async def _serve(self, wire: websockets.ClientConnection) -> None:
        client = {"name": "holdfast-chat", "version": __version__}
        await wire.send(_text({"type": "hello", "id": "hello", "protocol": "1.0", "client": client}))
        await wire.recv()
        self._wire = wire
        await self._try({"type": "subscribe", "session": self.session, "cursor": self._cursor})
        for command in list(self._pending):
            await self._try(command)
        async for text in wire:
            self._take(msgspec.json.decode(text))

    async def _try(self, command: Frame) -> None:
        if self._wire is None:
            return
        self._next += 1
        try:
            await self._wire.send(_text({"id": command.get("key") or str(self._next), **command}))
        except websockets.ConnectionClosed:
            return

    def _take(self, frame: Frame) -> None:
        match frame["type"]:
            case "ack" | "error":
                self._pending = [one for one in self._pending if one["key"] != frame["re"]]
            case "snapshot":
                self._cursor = {"epoch": frame["epoch"], "seq": frame["seq"]}
            case "events":
                self._cursor = {"epoch": frame["epoch"], "seq": frame["events"][-1]["seq"]}
            case _:
                pass
        self._on_frame(frame)


def _text(value: Frame) -> str:
    return msgspec.json.encode(value).decode()
