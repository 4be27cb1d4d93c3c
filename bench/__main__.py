"""`make bench`: one table, each row beside its control, measured in the same run."""

import argparse
import asyncio
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
from holdfast.clock import SystemClock, new_id
from holdfast.domain import events as ev
from holdfast.store import claims, nodes, runs, schema, sessions, transcripts, users
from holdfast.store.database import Database
from holdfast.store.journal import Journal
from holdfast.store.tables import events, messages
from sqlalchemy import insert

from bench import actions, jobs, naive
from bench.common import ROOT, Row, holdfast, quantiles, serving
from bench.returns import returns
from bench.wire import Reader, Wire, connect
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess


class Bare:
    """The bare socket as a process."""

    def __enter__(self) -> "Bare":
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        self.port = listener.getsockname()[1]
        command = [sys.executable, "-m", "bench.bare", str(listener.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=ROOT)
        listener.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    async def run(self, count: int, chunks: int, rate: int = 0) -> tuple[float, list[float]]:
        """Chunks a second over `count` sockets, and the ages of the chunks."""
        readers = [Reader(stamps=rate > 0) for _ in range(count)]
        wires = [await connect(self.port, reader) for reader in readers]
        start = time.perf_counter()
        for wire in wires:
            wire.send(n=chunks, rate=rate)
        await asyncio.gather(*(reader.done.wait() for reader in readers))
        took = time.perf_counter() - start
        for wire in wires:
            wire.transport.abort()
        return sum(reader.chunks for reader in readers) / took, [age for r in readers for age in r.ages]


async def throughput(name: str, server: ServerProcess, url: str) -> list[Row]:
    """(a) Chunks committed and delivered."""
    rows: list[Row] = []
    usual = await naive.chunks_per_second(url, 600)
    for count, chunks in ((1, 40_000), (50, 4_000), (500, 1_200)):
        with Bare() as bare:
            await bare.run(1, 100)
            control, _ = await bare.run(count, chunks)
        await holdfast(server, 1, "fast 100")
        ours, _ = await holdfast(server, count, f"fast {chunks}")
        title = f"(a) chunks/s committed and delivered, {count} sessions, {name}"
        rows.append(
            (title, f"{ours:,.0f}", f"{control:,.0f} bare socket", f"{ours / control:.2f}", ">= 0.8 / 0.6 at 50")
        )
        if count == 50:
            rows.append(
                (
                    f"(a) the same beside one ORM commit a chunk, {name}",
                    f"{ours:,.0f}",
                    f"{usual:,.0f} ORM",
                    f"{ours / usual:.0f}",
                    ">= 20",
                )
            )
    return rows


async def latency(name: str, url_arguments: tuple[str, ...]) -> list[Row]:
    """(b) From the agent's yield to the client, 200 sessions of 20 chunks/s."""
    with Bare() as bare:
        _, control = await bare.run(200, 100, 20)
    with serving("--agent", "bench.agents:steady", *url_arguments) as server:
        _, ours = await holdfast(server, 200, "100 20", stamps=True)
    (c50, c99), (o50, o99) = quantiles(control), quantiles(ours)
    return [
        (
            f"(b) latency p50 ms, 200 x 20/s, {name}",
            f"{o50:.2f}",
            f"{c50:.2f} bare socket",
            f"+{o50 - c50:.2f} ms",
            "<= +3 ms",
        ),
        (f"(b) latency p99 ms, 200 x 20/s, {name}", f"{o99:.2f}", f"{c99:.2f} bare socket", f"+{o99 - c99:.2f} ms", ""),
    ]


async def long_message(database: Database) -> list[Row]:
    """(c) What a chunk costs in a message of 10 MiB, beside the first ones."""
    journal = Journal(database, SystemClock())
    await journal.start()
    user = await database.transact(lambda tx: users.ensure_user(tx, "local", "admin", new_id()))
    session = (await database.transact(lambda tx: sessions.create(tx, user, new_id(), {})))["id"]
    ids = (new_id(), new_id(), new_id())
    await database.transact(lambda tx: runs.send(tx, user, session, "x", key=None, if_busy="queue", ids=ids))
    node = nodes.NodeIdentity(new_id(), "h", "b", 1, "1")
    await database.transact(lambda tx: nodes.register(tx, node, 3600))
    claim = (await database.transact(lambda tx: claims.claim(tx, node.id, "b", limit=1, per_user=9))).runs[0]
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    prefix = ev.chunk_prefix(claim.message)
    delta = "0123456789abcdef" * 4
    costs: list[float] = []
    group = 4096
    for _ in range(10 * 2**20 // (len(delta) * group)):
        start = time.perf_counter()
        for _ in range(group):
            writer.put("TEXT_MESSAGE_CONTENT", ev.encode_chunk(prefix, delta))
            if writer.full:
                await writer.room()
        await writer.flush()
        costs.append((time.perf_counter() - start) / group * 1e6)
    await journal.stop()
    first, last = statistics.median(costs[1:8]), statistics.median(costs[-8:])
    return [
        (
            f"(c) us a chunk at 10 MiB, {database.dialect}",
            f"{last:.1f}",
            f"{first:.1f} at the start",
            f"{last / first:.2f}",
            "<= 1.2",
        )
    ]


async def replay(database: Database) -> list[Row]:
    """(d) Reading 100,000 events through the store; the snapshot of 10,000 messages."""
    user = await database.transact(lambda tx: users.ensure_user(tx, "local", "admin", new_id()))
    session = (await database.transact(lambda tx: sessions.create(tx, user, new_id(), {})))["id"]
    data = ev.encode(ev.TextMessageContent(message_id=new_id(), delta="harbour "))
    shared = {"session_id": session, "task_id": None, "attempt": 0, "type": "TEXT_MESSAGE_CONTENT", "data": data}
    flags = {"streaming": False, "cancelled": False, "has_error": False, "interrupted": False}

    async def fill(tx: Any) -> None:
        for start in range(1, 100_001, 10_000):
            rows = [{**shared, "seq": seq, "created_at": tx.now} for seq in range(start, start + 10_000)]
            await tx.conn.execute(insert(events), rows)
        said = {"session_id": session, "content": "some words of a message " * 4, "content_seq": 0, "streaming": 0}
        said |= {"metadata": flags, "created_at": tx.now, "task_id": None}
        rows = [{**said, "id": new_id(), "seq": n, "role": "user" if n % 2 else "assistant"} for n in range(10_000)]
        await tx.conn.execute(insert(messages), rows)

    await database.transact(fill)
    journal = Journal(database, SystemClock())
    start, seen = time.perf_counter(), 0
    while found := await journal.read(session, seen, 512):
        seen = found[-1].seq
    rate = seen / (time.perf_counter() - start)
    from holdfast.domain import frames  # noqa: PLC0415

    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        stored = await transcripts.load(database, session, 1)
        frames.snapshot(session, "e", stored.transcript.seq, "initial", stored.transcript.snapshot())
        times.append((time.perf_counter() - start) * 1000)
    name = database.dialect
    return [
        (f"(d) replay, events/s, {name}", f"{rate:,.0f}", "-", "-", ">= 100,000"),
        (f"(d) snapshot of 10,000 messages, ms, {name}", f"{min(times):.0f}", "-", "-", "< 300"),
    ]


async def memory(server: ServerProcess) -> list[Row]:
    """(e) Memory of an idle socket, of a streaming session, and of clients that do not read."""
    process = psutil.Process(server.pid)
    await holdfast(server, 20, "fast 2000")

    def kib() -> float:
        return process.memory_info().rss / 1024

    before = kib()
    wires: list[Wire] = []
    async with httpx2.AsyncClient(base_url=server.base_url, trust_env=False) as api:
        made = [(await api.post("/api/sessions")).json()["id"] for _ in range(500)]
    for session in made:
        wire = await connect(server.port, Reader())
        wire.send(type="hello", id="1", protocol="1.0")
        wire.send(type="subscribe", id="2", session=session)
        wires.append(wire)
    await asyncio.sleep(2)
    idle = (kib() - before) / len(wires)
    before = kib()
    for wire, session in zip(wires[:200], made[:200], strict=True):
        wire.send(type="send", id="3", session=session, content="slow 100")
    await asyncio.sleep(4)
    streaming = (kib() - before) / 200
    await asyncio.sleep(3)
    stalled = await _stalled(server, made[-1], kib)
    for wire in wires:
        wire.transport.abort()
    return [
        ("(e) KiB an idle socket (of 500)", f"{idle:.1f}", "-", "-", "< 60"),
        ("(e) KiB more for a streaming session (of 200, 20 chunks/s)", f"{streaming:.1f}", "-", "-", ""),
        ("(e) KiB more for one that stopped reading (of 200)", f"{stalled:.1f}", "-", "-", "< 60 in all"),
    ]


async def _stalled(server: ServerProcess, session: str, kib: Callable[[], float]) -> float:
    """What a client costs once it has stopped reading, on a server whose heap is warm.

    All follow one session, so that its run is no cost; they read one answer, and then not the next.
    """
    wires: list[Wire] = []
    for _ in range(200):
        wire = await connect(server.port, Reader())
        wire.send(type="hello", id="1", protocol="1.0")
        wire.send(type="subscribe", id="2", session=session)
        wires.append(wire)
    wires[0].send(type="send", id="3", session=session, content="fast 20000")
    await asyncio.sleep(12)
    before = kib()
    for wire in wires:
        wire.transport.pause_reading()
    wires[0].send(type="send", id="4", session=session, content="fast 20000")
    await asyncio.sleep(10)
    cost = (kib() - before) / len(wires)
    for wire in wires:
        wire.transport.abort()
    return cost


async def cancels(server: ServerProcess) -> list[Row]:
    """(f) From the cancel frame to the run's end, as the client sees it."""
    times: list[float] = []
    async with httpx2.AsyncClient(base_url=server.base_url, trust_env=False) as api:
        for _ in range(60):
            session = (await api.post("/api/sessions")).json()["id"]
            reader = Reader()
            wire = await connect(server.port, reader)
            wire.send(type="hello", id="1", protocol="1.0")
            wire.send(type="subscribe", id="2", session=session)
            wire.send(type="send", id="3", session=session, content="slow 1000")
            while reader.chunks < 2:
                await asyncio.sleep(0.002)
            start = time.perf_counter()
            wire.send(type="cancel", id="4", session=session)
            await reader.done.wait()
            times.append((time.perf_counter() - start) * 1000)
            wire.transport.abort()
    p50, p99 = quantiles(times)
    return [("(f) cancel of text, ms p50", f"{p50:.1f}", f"p99 {p99:.1f}", "-", "< 20")]


async def start_time() -> list[Row]:
    """(g) From the start to serving; beside an interpreter that only imports."""
    start = time.perf_counter()
    with serving():
        took = time.perf_counter() - start
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import starlette, uvicorn, sqlalchemy.ext.asyncio"], check=True)
    control = time.perf_counter() - start
    return [("(g) start to ready, s", f"{took:.2f}", f"{control:.2f} imports alone", f"{took / control:.1f}", "")]


async def stores(postgres: PostgresServer, folder: Path, part: Callable[[Database], Awaitable[list[Row]]]) -> list[Row]:
    """A part on both databases."""
    rows: list[Row] = []
    for url in (f"sqlite:///{folder / f'{new_id()}.db'}", await postgres.create_database()):
        database = Database(url)
        await schema.upgrade(database)
        await database.load_epoch()
        rows += await part(database)
        await database.close()
    return rows


async def measure(only: str) -> list[Row]:
    """All parts, or those whose letters are in `only`."""
    rows: list[Row] = []
    postgres = PostgresServer()
    postgres.start()
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir="/tmp"))
    try:
        on_postgres = await postgres.create_database()
        database = Database(on_postgres)
        await schema.upgrade(database)
        await database.close()
        if "a" in only:
            with serving() as server:
                rows += await throughput("SQLite", server, naive.sqlite_url(folder))
            with serving("--database-url", on_postgres) as server:
                rows += await throughput("PostgreSQL", server, on_postgres)
        if "b" in only:
            rows += await latency("SQLite", ())
            rows += await latency("PostgreSQL", ("--database-url", on_postgres))
        if "c" in only:
            rows += await stores(postgres, folder, long_message)
        if "d" in only:
            rows += await stores(postgres, folder, replay)
        with serving() as server:
            if "e" in only:
                rows += await memory(server)
            if "f" in only:
                rows += await cancels(server)
        if "g" in only:
            rows += await start_time()
        if "h" in only:
            rows += await actions.cancels()
        if "i" in only:
            rows += await actions.starts()
        if "j" in only:
            rows += await actions.output()
        if "k" in only:
            rows += await jobs.claim_rates(postgres, folder)
        if "l" in only:
            rows += await jobs.starts()
        if "m" in only:
            rows += await jobs.idle()
        if "n" in only:
            rows += await returns("SQLite")
            rows += await returns("PostgreSQL", "--database-url", on_postgres)
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--only", default="abcdefghijklmn", help="the letters of the parts")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.only))
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    titles: Row = ("what", "Holdfast", "control", "ratio", "wanted")
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(5)]
    for row in (titles, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
