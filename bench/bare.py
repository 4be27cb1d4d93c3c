"""The control: a bare Starlette socket that sends the same frames and stores nothing."""

import asyncio
import socket
import sys
import time

import uvicorn
from holdfast.api.server import SocketProtocol
from holdfast.domain import events as ev
from holdfast.domain import frames
from holdfast.domain.events import Recorded
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

SESSION = "01900000-0000-7000-8000-000000000000"
TS = "2026-01-01T00:00:00.000000Z"
END = frames.events(SESSION, "e", [frames.item(Recorded(1, SESSION, TS, '{"type":"RUN_FINISHED"}'))])


def frame(prefix: str, seq: int, delta: str) -> str:
    """One chunk in a frame of its own."""
    return frames.events(SESSION, "e", [frames.item(Recorded(seq, SESSION, TS, ev.encode_chunk(prefix, delta)))])


async def endpoint(websocket: WebSocket) -> None:
    """`{"n": N, "rate": R}`: N chunks, as fast as possible or R a second."""
    await websocket.accept("holdfast.v1")
    order = await websocket.receive_json()
    prefix = ev.chunk_prefix(SESSION)
    begin = time.monotonic()
    for number in range(order["n"]):
        if order["rate"]:
            await asyncio.sleep(max(0.0, begin + number / order["rate"] - time.monotonic()))
            await websocket.send_text(frame(prefix, number + 1, f"@{time.monotonic_ns()}@ "))
        else:
            await websocket.send_text(frame(prefix, number + 1, "harbour "))
    await websocket.send_text(END)
    await asyncio.sleep(3600)


def main() -> None:
    """Serve on the socket whose descriptor is the first argument."""
    config = uvicorn.Config(
        Starlette(routes=[WebSocketRoute("/ws", endpoint)]),
        loop="uvloop",
        ws=SocketProtocol,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
