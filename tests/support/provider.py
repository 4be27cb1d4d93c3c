"""A model provider as a real HTTP server: OpenAI's chat completions stream, and its faults.

What it does is chosen by the user's last message, a line of JSON: `{"say": ["a", "b"]}` and any of
`think` (reasoning deltas), `status` (with `times`: so often, then it goes well), `retry_after`,
`reset` (after the deltas the connection is cut), `garbage` (a line that is no JSON), `hang` (silence
after the deltas, until the client goes away).
"""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class Provider:
    """Runs in a thread of its own; `requests` are the bodies it got, `closed` counts hung-up streams."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self.hanging = threading.Event()
        self._failures: dict[str, int] = {}
        app = Starlette(routes=[Route("/v1/chat/completions", self._complete, methods=["POST"])])
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1, lifespan="off")
        )
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
        prompt = next(part["content"] for part in reversed(body["messages"]) if part["role"] == "user")
        try:
            script = json.loads(prompt)
        except ValueError:
            script = {"say": ["I ", "heard: ", prompt]}
        if "status" in script:
            count = self._failures[prompt] = self._failures.get(prompt, 0) + 1
            if count <= script.get("times", 1_000):
                headers = {"Retry-After": str(script["retry_after"])} if "retry_after" in script else {}
                error = {"error": {"message": "secret words of the provider", "type": "x"}}
                return JSONResponse(error, script["status"], headers)
        return StreamingResponse(self._stream(script), media_type="text/event-stream")

    async def _stream(self, script: dict[str, Any]) -> AsyncIterator[str]:
        for text in script.get("think", []):
            yield _chunk({"reasoning_content": text})
        for text in script.get("say", []):
            yield _chunk({"content": text})
            await asyncio.sleep(0)
        if script.get("hang"):
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.closed.set()
        if script.get("garbage"):
            yield "data: {this is not JSON\n\n"
        if script.get("reset"):
            raise ConnectionResetError
        yield _chunk({}, finish="stop")
        usage = {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}
        yield _line({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def _chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    return _line({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _line(more: dict[str, Any]) -> str:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "test-model", **more}
    return f"data: {json.dumps(chunk)}\n\n"
