"""What a client costs that comes back, when all do at once: after a restart, or a network that was gone."""

import asyncio
import json
import time
from typing import Any

import httpx2

from bench.common import Row, serving
from bench.wire import Reader, Wire, connect

CLIENTS = 400


class Returning(Reader):
    """A reader that also knows where its session stood."""

    def __init__(self) -> None:
        super().__init__()
        self.place: dict[str, Any] = {}

    def __call__(self, payload: bytes) -> None:
        super().__call__(payload)
        if payload.startswith(b'{"type":"ack","re":"2"'):
            self.place = json.loads(payload)["at"]


async def returns(name: str, *arguments: str) -> list[Row]:
    """(n) Each follows a session with one answer of 300 chunks: with a cursor, and without."""
    with serving(*arguments) as server:
        async with httpx2.AsyncClient(base_url=server.base_url, trust_env=False) as api:
            made = [(await api.post("/api/sessions")).json()["id"] for _ in range(CLIENTS)]
        readers, wires = await _come(server.port, [{"session": session} for session in made])
        for wire, session in zip(wires, made, strict=True):
            wire.send(type="send", id="3", session=session, content="fast 300")
        await asyncio.gather(*(reader.done.wait() for reader in readers))
        _go(wires)
        alone = await _each_ms(server.port, [])
        new = [{"session": session} for session in made]
        readers, wires = await _come(server.port, new)
        _go(wires)
        seen = [{"session": s, "cursor": reader.place} for s, reader in zip(made, readers, strict=True)]
        snapshot, replay = await _each_ms(server.port, new), await _each_ms(server.port, seen)
    return [
        (f"(n) ms a client of {CLIENTS} that all come back, by its cursor, {name}", f"{replay:.1f}", *_beside(alone)),
        (f"(n) the same without a cursor: a snapshot, {name}", f"{snapshot:.1f}", *_beside(alone)),
    ]


def _beside(alone: float) -> tuple[str, str, str]:
    return f"{alone:.1f} to connect", "-", ""


async def _each_ms(port: int, subscriptions: list[dict[str, Any]]) -> float:
    """How long it takes until all follow, by their number; the median of three times."""
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        _, wires = await _come(port, subscriptions)
        times.append((time.perf_counter() - start) / CLIENTS * 1000)
        _go(wires)
    return sorted(times)[1]


async def _come(port: int, subscriptions: list[dict[str, Any]]) -> tuple[list[Returning], list[Wire]]:
    """Connect and subscribe; without subscriptions only connect."""
    readers = [Returning() for _ in range(CLIENTS)]
    wires = [await connect(port, reader) for reader in readers]
    for wire, fields in zip(wires, subscriptions, strict=False):
        wire.send(type="hello", id="1", protocol="1.0")
        wire.send(type="subscribe", id="2", **fields)
    if subscriptions:
        await asyncio.gather(*(reader.follows.wait() for reader in readers))
    return readers, wires


def _go(wires: list[Wire]) -> None:
    for wire in wires:
        wire.transport.abort()
