"""A model provider as a real HTTP server: OpenAI's chat completions stream, and all its faults.

    with Provider() as provider:
        ... OPENAI_BASE_URL=provider.base_url ...

What it answers is a `Script`: the next one of `provider.queue`, else the user's last message read as
JSON (`{"say": ["a", "b"], "reset": "stream"}`), so that a server in another process can be scripted by
what is sent to it, else an echo. It runs in a thread and listens on TCP.
"""

import asyncio
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

SECRET_WORDS = "secret words of the provider"
_BATCH = 200


@dataclass
class Script:
    """One answer. Deltas come first: `think`, `say`, `count`, `calls`; then the fault, if there is one."""

    think: list[str] = field(default_factory=list[str])
    say: list[str] = field(default_factory=list[str])
    count: int = 0
    """So many deltas `w<n> ` more, as fast as the client reads them."""
    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Tools to call: `name`, `args` (an object, or text as it is) and `id`."""
    then: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """For a script in a message: the answers after this one, as long as no other message comes."""
    pause_s: float = 0.0
    """Between two deltas."""
    status: int = 200
    """With this status instead of an answer; `times` times for the same script, then it goes well."""
    times: int = 1_000_000
    retry_after: str | int | None = None
    message: str = SECRET_WORDS
    error_code: str | None = None
    reset: Literal["headers", "stream"] | None = None
    """Cut the connection (RST) before the headers (`times` times), or after the deltas."""
    truncate: bool = False
    """End the connection politely after the deltas, in the middle of the body."""
    error_event: bool = False
    """After the deltas, an event that tells an error."""
    garbage: bool = False
    """After the deltas, an event that is no JSON."""
    not_sse: bool = False
    """200, but a web page."""
    hang: Literal["headers", "stream"] | None = None
    """Silence, before the headers or after the deltas, until the client goes away."""
    usage: tuple[int, int] | None = (7, 11)
    finish: str | None = "stop"

    @classmethod
    def read(cls, prompt: str, answers: int = 0) -> "Script":
        """The script that a message is, after so many answers to it, or one that repeats the message."""
        try:
            told = json.loads(prompt)
        except ValueError:
            told = None
        if not isinstance(told, dict) or not set(told) <= {one.name for one in fields(cls)}:
            return cls(say=["I ", "heard: ", prompt])
        return cls(**[told, *told.get("then", ())][min(answers, len(told.get("then", ())))])

    @property
    def reason(self) -> str | None:
        """Why the answer ends: `finish`, and for calls what the protocol says of these."""
        return "tool_calls" if self.calls and self.finish == "stop" else self.finish


class Provider:
    """The server. `requests` are the bodies it got; a stream that the client closed sets `closed`."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.queue: deque[Script] = deque()
        self.hanging = threading.Event()
        self.closed = threading.Event()
        self.closed_at: float | None = None
        """When the client closed a stream, by `time.monotonic`."""
        self._failures: dict[str, int] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        app = Starlette(routes=[Route("/v1/chat/completions", self._complete, methods=["POST"])])
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=1, lifespan="off", http="h11"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> "Provider":
        self._socket.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        prompt = _last_prompt(body)
        script = self.queue.popleft() if self.queue else Script.read(prompt, _answers(body))
        answer = _Answer()
        watcher = asyncio.create_task(self._watch(request, answer))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        if script.hang == "headers":
            self.hanging.set()
            await watcher
        fails = script.status != 200 or script.reset == "headers"
        if fails and self._count(f"{prompt}{script}") <= script.times:
            answer.ended = True
            if script.reset == "headers":
                _reset(request)
            return _refusal(script)
        if script.not_sse:
            answer.ended = True
            return Response("<html>hello</html>", media_type="text/html")
        return StreamingResponse(self._stream(script, request, answer), media_type="text/event-stream")

    def _count(self, key: str) -> int:
        self._failures[key] = self._failures.get(key, 0) + 1
        return self._failures[key]

    async def _stream(self, script: Script, request: Request, answer: "_Answer") -> AsyncIterator[str]:
        async for piece in _deltas(script):
            yield piece
        if script.hang == "stream":
            self.hanging.set()
            await asyncio.Event().wait()
        answer.ended = True
        if script.reset == "stream":
            _reset(request)
            await asyncio.Event().wait()
        if script.truncate:
            _transport(request).close()
            await asyncio.Event().wait()
        if script.error_event:
            yield _event({"error": {"message": script.message, "type": "server_error", "code": script.error_code}})
        if script.garbage:
            yield "data: {this is not JSON\n\n"
        yield _chunk({}, finish=script.reason)
        if script.usage is not None:
            into, out = script.usage
            told = {"prompt_tokens": into, "completion_tokens": out, "total_tokens": into + out}
            yield _event({**_HEAD, "choices": [], "usage": told})
        yield "data: [DONE]\n\n"

    async def _watch(self, request: Request, answer: "_Answer") -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if not answer.ended:
            self._note_close()

    def _note_close(self) -> None:
        if self.closed_at is None:
            self.closed_at = time.monotonic()
        self.closed.set()


@dataclass
class _Answer:
    """One answer on its way. `ended` when the server has said, or cut off, all that it means to say."""

    ended: bool = False


_HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "test-model"}


async def _deltas(script: Script) -> AsyncIterator[str]:
    for text in script.think:
        yield _chunk({"reasoning_content": text})
        await asyncio.sleep(script.pause_s)
    for text in script.say:
        yield _chunk({"content": text})
        await asyncio.sleep(script.pause_s)
    for start in range(0, script.count, _BATCH):
        stop = min(start + _BATCH, script.count)
        yield "".join(_chunk({"content": f"w{n} "}) for n in range(start, stop))
        await asyncio.sleep(0)
    for number, call in enumerate(script.calls):
        for piece in _call(number, **call):
            yield _chunk({"tool_calls": [piece]})
        await asyncio.sleep(script.pause_s)


def _call(number: int, name: str, args: dict[str, Any] | str | None = None, id: str | None = None) -> Iterator[Any]:
    """The deltas of a call: its name, then its arguments in two pieces."""
    id = f"call_{number}" if id is None else id
    text = args if isinstance(args, str) else json.dumps(args or {})
    half = len(text) // 2
    yield {"index": number, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    for piece in (text[:half], text[half:]):
        yield {"index": number, "function": {"arguments": piece}}


def _answers(body: dict[str, Any]) -> int:
    """How many answers have come since the user's last message."""
    roles = [message["role"] for message in reversed(body["messages"])]
    return roles[: roles.index("user")].count("assistant")


def _last_prompt(body: dict[str, Any]) -> str:
    content = next(part["content"] for part in reversed(body["messages"]) if part["role"] == "user")
    return content if isinstance(content, str) else json.dumps(content)


def _refusal(script: Script) -> Response:
    headers = {} if script.retry_after is None else {"Retry-After": str(script.retry_after)}
    error = {"message": script.message, "type": "x", "code": script.error_code}
    return JSONResponse({"error": error}, max(script.status, 400), headers)


def _transport(request: Request) -> asyncio.Transport:
    """The connection itself: uvicorn's `receive` is a method of the object that holds it."""
    cycle = getattr(request.receive, "__self__", None)
    assert cycle is not None
    return cycle.transport


def _reset(request: Request) -> None:
    transport = _transport(request)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    return _event({**_HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
