"""A small client of the public protocol, and nothing else, for the tests."""

import asyncio
import json
from types import TracebackType
from typing import Any

import httpx2
import websockets

Frame = dict[str, Any]
TERMINAL = {"RUN_FINISHED", "RUN_ERROR"}


class Client:
    """One WebSocket. `frames` is all it got; `events` those of each session, by seq."""

    def __init__(self, url: str, *, token: str | None = None, hello: bool = True, **options: Any) -> None:
        self.url = url
        self.frames: list[Frame] = []
        self.events: dict[str, list[Frame]] = {}
        self.closed: int | None = None
        self._hello = hello
        self._options = options
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._next = 0
        self._news = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self.wire: websockets.ClientConnection

    async def __aenter__(self) -> "Client":
        self.wire = await websockets.connect(
            self.url,
            subprotocols=[websockets.Subprotocol("holdfast.v1")],
            additional_headers=self._headers,
            max_size=None,
            compression=None,
            **self._options,
        )
        self._reader = asyncio.create_task(self._read())
        if self._hello:
            await self.ask("hello", protocol="1.0")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.wire.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def send(self, type: str, **fields: Any) -> str:
        """Send a frame; its id."""
        self._next += 1
        frame_id = fields.pop("id", None) or str(self._next)
        await self.wire.send(json.dumps({"type": type, "id": frame_id, **fields}))
        return frame_id

    async def ask(self, type: str, **fields: Any) -> Frame:
        """Send a frame and return its answer."""
        frame_id = await self.send(type, **fields)
        return await self.wait_for(lambda frame: frame.get("re") == frame_id)

    async def follow(self, session: str, cursor: Frame | None = None) -> Frame:
        """Subscribe, and catch up: all that is committed after this comes as events. The answer."""
        before = len(self.frames)
        answer = await self.ask("subscribe", session=session, cursor=cursor)

        def caught_up() -> bool:
            return any(f["type"] == "caught_up" and f["session"] == session for f in self.frames[before:])

        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(lambda: caught_up() or self.closed is not None)
        return answer

    async def wait_for(self, wanted: Any, seconds: float = 30.0) -> Frame:
        """The first frame, from the beginning, that is wanted."""

        def found() -> Frame | None:
            return next((frame for frame in self.frames if wanted(frame)), None)

        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: found() is not None or self.closed is not None)
        frame = found()
        if frame is None:
            raise ConnectionError(f"closed with {self.closed}")
        return frame

    async def wait_event(self, session: str, wanted: Any, seconds: float = 30.0) -> Frame:
        """The first event of a session that is wanted."""

        def found() -> Frame | None:
            return next((event for event in self.events.get(session, []) if wanted(event)), None)

        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: found() is not None or self.closed is not None)
        event = found()
        if event is None:
            raise ConnectionError(f"closed with {self.closed}")
        return event

    async def wait_end(self, session: str, run: str, seconds: float = 30.0) -> Frame:
        """The end of a run."""
        return await self.wait_event(session, lambda e: e["run"] == run and e["event"]["type"] in TERMINAL, seconds)

    async def wait_closed(self, seconds: float = 10.0) -> int:
        """The code that the socket was closed with."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: self.closed is not None)
        assert self.closed is not None
        return self.closed

    async def _read(self) -> None:
        try:
            async for text in self.wire:
                frame = json.loads(text)
                async with self._news:
                    self.frames.append(frame)
                    if frame["type"] == "events":
                        self.events.setdefault(frame["session"], []).extend(frame["events"])
                    self._news.notify_all()
        except websockets.ConnectionClosed:
            pass
        finally:
            async with self._news:
                self.closed = self.wire.close_code or 1006
                self._news.notify_all()


def deltas(events: list[Frame], run: str | None = None) -> str:
    """The text that the events say."""
    return "".join(
        event["event"]["delta"]
        for event in events
        if event["event"]["type"] == "TEXT_MESSAGE_CONTENT" and run in (None, event["run"])
    )


def http(base_url: str, token: str | None = None, **options: Any) -> httpx2.AsyncClient:
    """An HTTP client for the server."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx2.AsyncClient(base_url=base_url, headers=headers, trust_env=False, timeout=30, **options)
