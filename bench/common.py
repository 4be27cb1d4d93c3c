"""What all parts of the benchmark use: a server, many sessions at once, quantiles."""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import httpx2

from bench.wire import Reader, connect
from tests.support.server import ServerProcess

Row = tuple[str, str, str, str, str]
LIMITS = (
    *("--commands-per-second", "100000", "--sockets", "100000", "--subscriptions", "10000"),
    *("--max-runs", "5000", "--max-runs-per-user", "5000"),
)
ROOT = str(Path(__file__).resolve().parent.parent)


class serving:  # noqa: N801
    """A server with wide limits in a folder of its own."""

    def __init__(self, *arguments: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir="/tmp"))
        env = {"PYTHONPATH": f"{ROOT}/backend:{ROOT}"}
        self.server = ServerProcess(*LIMITS, *arguments, data_dir=self.folder, env=env)

    def __enter__(self) -> ServerProcess:
        return self.server.start()

    def __exit__(self, *_: object) -> None:
        self.server.end()
        shutil.rmtree(self.folder, ignore_errors=True)


async def holdfast(
    server: ServerProcess, count: int, content: str, *, stamps: bool = False
) -> tuple[float, list[float]]:
    """Chunks a second over `count` sessions, from the first send to the last end, and their ages."""
    async with httpx2.AsyncClient(base_url=server.base_url, trust_env=False) as api:
        made = [(await api.post("/api/sessions")).json()["id"] for _ in range(count)]
    readers = [Reader(stamps=stamps) for _ in made]
    wires = [await connect(server.port, reader) for reader in readers]
    for wire, session in zip(wires, made, strict=True):
        wire.send(type="hello", id="1", protocol="1.0")
        wire.send(type="subscribe", id="2", session=session)
    await asyncio.gather(*(reader.follows.wait() for reader in readers))
    start = time.perf_counter()
    for wire, session in zip(wires, made, strict=True):
        wire.send(type="send", id="3", session=session, content=content)
    await asyncio.gather(*(reader.done.wait() for reader in readers))
    took = time.perf_counter() - start
    for wire in wires:
        wire.transport.abort()
    return sum(reader.chunks for reader in readers) / took, [age for r in readers for age in r.ages]


def quantiles(values: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
