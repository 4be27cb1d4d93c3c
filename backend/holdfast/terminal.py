"""`holdfast chat`: a chat in the terminal, over the same WebSocket as everybody else.

Ctrl-C cancels the run that goes on, and ends the chat when none does. A lost connection comes back,
and the text goes on behind the last event that was shown.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
from typing import Any

import httpx2
import msgspec
import websockets

from holdfast import __version__
from holdfast.clock import new_id
from holdfast.domain.frames import SUBPROTOCOL

_FINAL = {4400, 4401, 4403, 4406}


class Refused(Exception):
    """The server does not want us; trying again is no use."""


class Terminal:
    """One session in one terminal."""

    def __init__(self, url: str, token: str | None, session: str) -> None:
        self._socket_url = url.replace("http", "ws", 1).rstrip("/") + "/ws"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session
        self._cursor: dict[str, Any] | None = None
        self._pending: list[dict[str, Any]] = []
        self._wire: websockets.ClientConnection | None = None
        self._next = 0
        self.running: str | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.failed = False

    async def say(self, content: str) -> None:
        """Send a message; it is sent again after a drop until the server has it."""
        self.idle.clear()
        command = {"type": "send", "session": self._session, "content": content, "key": new_id()}
        self._pending.append(command)
        await self._try(command)

    async def cancel(self) -> None:
        """Ask the run that goes on to stop."""
        await self._try({"type": "cancel", "session": self._session})

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            Refused: the server does not accept us.
        """
        tries = 0
        while True:
            try:
                async with websockets.connect(
                    self._socket_url,
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
        await self._try({"type": "subscribe", "session": self._session, "cursor": self._cursor})
        for command in list(self._pending):
            await self._try(command)
        async for text in wire:
            self._take(msgspec.json.decode(text))

    async def _try(self, command: dict[str, Any]) -> None:
        if self._wire is None:
            return
        self._next += 1
        try:
            await self._wire.send(_text({"id": command.get("key") or str(self._next), **command}))
        except websockets.ConnectionClosed:
            return

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "ack":
                self._pending = [one for one in self._pending if one["key"] != frame["re"]]
            case "error":
                self._pending = [one for one in self._pending if one["key"] != frame["re"]]
                print(f"[{frame['code']}: {frame['message']}]", file=sys.stderr)
                self.failed = True
                self.idle.set()
            case "snapshot":
                self._cursor = {"epoch": frame["epoch"], "seq": frame["seq"]}
                self._show_snapshot(frame)
            case "events":
                for record in frame["events"]:
                    self._cursor = {"epoch": frame["epoch"], "seq": record["seq"]}
                    self._show(record["event"])
            case _:
                pass

    def _show_snapshot(self, frame: dict[str, Any]) -> None:
        for message in frame["messages"]:
            mark = "> " if message["role"] == "user" else ""
            print(f"{mark}{message['content']}", end="\n" if not message["metadata"]["streaming"] else "", flush=True)
        self.running = frame["activeRun"]["run"] if frame["activeRun"] else None

    def _show(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "RUN_STARTED":
                self.running = event["runId"]
            case "TEXT_MESSAGE_CONTENT":
                print(event["delta"], end="", flush=True)
            case "REASONING_MESSAGE_CONTENT":
                print(f"\x1b[2m{event['delta']}\x1b[0m" if sys.stdout.isatty() else "", end="", flush=True)
            case "REASONING_END":
                print(flush=True)
            case "RUN_FINISHED":
                cancel = (event.get("metadata") or {}).get("cancel")
                self._ended(f"[stopped in {cancel['took_ms']} ms]" if cancel else "")
            case "RUN_ERROR":
                self.failed = True
                self._ended(f"[{event['code']}: {event['message']}]")
            case _:
                pass

    def _ended(self, words: str) -> None:
        print(flush=True)
        if words:
            print(words, file=sys.stderr)
        self.running = None
        self.idle.set()


async def chat(url: str, token: str | None, session: str | None, message: str | None) -> int:
    """Chat until the end of the input; with `message`, say that and end after the answer."""
    try:
        session = session or await _new_session(url, token)
    except (httpx2.HTTPError, OSError, KeyError) as error:
        print(f"holdfast: {url} cannot be used: {error}", file=sys.stderr)
        return 1
    terminal = Terminal(url, token, session)
    connection = asyncio.create_task(terminal.run())
    talk = asyncio.create_task(_say_one(terminal, message) if message else _talk(terminal, session))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, _interrupted, terminal, talk)
    try:
        await asyncio.wait({connection, talk}, return_when=asyncio.FIRST_COMPLETED)
        if connection.done() and (error := connection.exception()):
            print(f"holdfast: {error}", file=sys.stderr)
            return 1
    finally:
        for task in (connection, talk):
            task.cancel()
        await asyncio.gather(connection, talk, return_exceptions=True)
    return int(terminal.failed and message is not None)


async def _new_session(url: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        response = await client.post("/api/sessions", json={})
        response.raise_for_status()
        return str(response.json()["id"])


async def _say_one(terminal: Terminal, message: str) -> None:
    await terminal.say(message)
    await terminal.idle.wait()


async def _talk(terminal: Terminal, session: str) -> None:
    print(f"[session {session}; end with Ctrl-D]", file=sys.stderr)
    lines = _lines_of_input()
    while (line := await lines.get()) is not None:
        if line.strip():
            await terminal.say(line)
            await terminal.idle.wait()


def _lines_of_input() -> "asyncio.Queue[str | None]":
    """The lines of standard input, then None; read by a thread that does not keep the process from ending."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        rest = b""
        with contextlib.suppress(OSError, RuntimeError):  # The loop is closed when the chat has ended.
            while block := os.read(0, 65536):
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    loop.call_soon_threadsafe(lines.put_nowait, line.decode(errors="replace"))
            if rest:
                loop.call_soon_threadsafe(lines.put_nowait, rest.decode(errors="replace"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _interrupted(terminal: Terminal, talk: "asyncio.Task[None]") -> None:
    if terminal.running or not terminal.idle.is_set():
        _cancels.add(task := asyncio.ensure_future(terminal.cancel()))
        task.add_done_callback(_cancels.discard)
    else:
        talk.cancel()


_cancels: set["asyncio.Future[None]"] = set()


def _text(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()
