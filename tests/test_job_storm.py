"""A thousand jobs, submitted and cancelled in any order, on nodes that are killed and frozen meanwhile.

The limits are checked on the processes of the machine themselves, all the time; at the end nothing is left: no
process, no descriptor, no gate that is held, no row.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest
from holdfast.engine.families import Member, look_at, process_started
from holdfast.store import gates, schema
from holdfast.store.database import Database
from holdfast.store.tables import jobs, processes, tasks
from sqlalchemy import func, select

from tests.support.client import http
from tests.support.jobs import new_tag
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]
JOBS = 1000
LIMITS = {"narrow": 2, "wide": 12, "middle": 5}
SHORT_LEASE = ("--lease-s", "1.5", "--heartbeat-s", "0.4", "--kill-grace-s", "0.3", "--drain-s", "0")


@dataclass
class Storm:
    """What happens, and what was promised."""

    servers: list[ServerProcess]
    clients: list[httpx2.AsyncClient]
    chance: random.Random
    tags: dict[str, str] = field(default_factory=lambda: {queue: new_tag() for queue in LIMITS})
    submitted: list[str] = field(default_factory=list[str])
    cancels: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])
    promised: set[str] = field(default_factory=set[str])
    exceeded: list[str] = field(default_factory=list[str])
    most: Counter[str] = field(default_factory=Counter[str])
    deeds: Counter[str] = field(default_factory=Counter[str])
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, method: str, path: str, **body: object) -> httpx2.Response | None:
        """One request to any server; None when that one is gone or frozen."""
        client = self.chance.choice(self.clients)
        with contextlib.suppress(httpx2.TransportError, TimeoutError):
            async with asyncio.timeout(2):
                return await client.request(method, path, json=body or None)
        return None

    async def submit(self, count: int) -> None:
        for _ in range(count):
            queue = self.chance.choice(list(LIMITS))
            lasts = self.chance.choice([0.0, 0.05, 0.1, 0.5])
            # The tag is in the command line of the process that counts, for as long as the job lasts.
            command = ["bash", "-c", f"sleep {lasts} # {self.tags[queue]}\n:"]
            body = {"command": command, "queue": queue, "retries": self.chance.choice([0, 0, 1]), "retry_backoff": 0.01}
            body["priority"] = self.chance.choice([-5, 0, 0, 5])
            body["on_restart"] = self.chance.choice(["end", "end", "end", "keep"])
            answer = await self.ask("POST", "/api/jobs", **body)
            if answer is not None and answer.status_code == 201:
                self.submitted.append(answer.json()["job_id"])
                if self.chance.random() < 0.5:
                    self.cancels.append(asyncio.create_task(self.cancel(self.submitted[-1])))
            elif answer is not None:
                assert answer.status_code == 503, answer.text

    async def cancel(self, job: str) -> None:
        await asyncio.sleep(self.chance.random() ** 2)
        answer = await self.ask("POST", f"/api/jobs/{job}/cancel")
        if answer is None or answer.status_code == 503:
            return
        self.deeds[f"cancel {answer.status_code}"] += 1
        assert answer.status_code in (200, 202, 409), answer.text
        if answer.status_code == 200:
            self.promised.add(job)

    async def disturb(self) -> None:
        """Kill a node and start it again, or freeze it until its lease is gone."""
        while not self.over.is_set():
            await asyncio.sleep(self.chance.uniform(0.5, 1.5))
            server = self.chance.choice(self.servers)
            if self.chance.random() < 0.5:
                self.deeds["killed"] += 1
                await asyncio.to_thread(server.kill9)
                await asyncio.to_thread(server.start)
            else:
                self.deeds["frozen"] += 1
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(self.chance.choice([0.1, 0.5, 2.5]))
                server.signal(signal.SIGCONT)

    async def watch(self) -> None:
        """Count what really runs, again and again."""
        while not self.over.is_set():
            running = await asyncio.to_thread(self._running)
            for queue, count in running.items():
                self.most[queue] = max(self.most[queue], count)
                if count > LIMITS[queue]:
                    self.exceeded.append(f"{queue} runs {count} of {LIMITS[queue]}")
            await asyncio.sleep(0.03)

    def _running(self) -> Counter[str]:
        """How many jobs of each queue have a bash of their own, all of them alive at one moment.

        Those that were found are looked at a second time: who is there then too was there in between.
        """
        found: dict[int, tuple[Member, str]] = {}
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError, IndexError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if words[0] == b"bash" and (member := look_at(int(entry))) is not None:
                    queue = next((q for q, tag in self.tags.items() if tag.encode() in words[2]), None)
                    found |= {member.pid: (member, queue)} if queue else {}
        alive = [
            queue
            for pid, (member, queue) in found.items()
            # One that bash has just forked has its command line until it becomes its program.
            if member.parent not in found and process_started(pid) == member.started
        ]
        return Counter(alive)


async def _settled(url: str, within_s: float = 60) -> None:
    database = Database(url)
    open_ = select(func.count()).select_from(tasks).where(tasks.c.ended_at.is_(None))
    limit = time.monotonic() + within_s
    while True:
        async with database.read() as conn:
            left = await conn.scalar(open_)
        if left == 0:
            break
        if time.monotonic() > limit:
            async with database.read() as conn:
                found = await conn.execute(select(tasks, jobs).join(jobs).where(tasks.c.ended_at.is_(None)))
                known = await conn.execute(select(processes))
                raise AssertionError(f"{left} tasks have not ended: {found.mappings().all()} {known.mappings().all()}")
        await asyncio.sleep(0.2)
    await database.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "nodes"), [("sqlite", 2), ("postgresql", 4)])
async def test_a_thousand_jobs_in_a_storm_leave_nothing_and_keep_the_limits(
    request: pytest.FixtureRequest, make_server: MakeServer, tmp_path: Path, kind: str, nodes: int
) -> None:
    url = f"sqlite:///{tmp_path / 'holdfast.db'}"
    if kind == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = await postgres.create_database()
    database = Database(url)
    await schema.upgrade(database)
    servers = [make_server("--database-url", url, *SHORT_LEASE) for _ in range(nodes)]
    async with http(servers[0].base_url) as client:
        for queue, limit in LIMITS.items():
            await client.patch(f"/api/queues/{queue}", json={"max_running": limit})
    clients = [http(server.base_url) for server in servers]
    storm = Storm(servers, clients, random.Random(f"{kind} {nodes}"))
    around = [asyncio.create_task(storm.disturb()), asyncio.create_task(storm.watch())]
    async with asyncio.timeout(240):
        await asyncio.gather(*(storm.submit(JOBS // 10) for _ in range(10)))
        await asyncio.gather(*storm.cancels)
        storm.over.set()
        await asyncio.gather(*around)
        await _settled(url)
    await asyncio.gather(*(client.aclose() for client in clients))
    assert storm.exceeded == []
    assert storm.deeds["killed"] + storm.deeds["frozen"] >= 3, storm.deeds
    assert storm.deeds["cancel 200"] > JOBS / 20, storm.deeds
    assert storm.most["wide"] > LIMITS["narrow"], "there was a crowd"
    assert storm._running().total() == 0, "no process is left"
    async with database.read() as conn:
        assert (await conn.execute(select(processes.c.mark))).all() == []
        assert (await conn.execute(gates._usage())).all() == []
        states = Counter(await conn.scalars(select(tasks.c.state)))
        rows = await conn.execute(select(tasks.c.id, tasks.c.state, jobs.c.error).join(jobs, jobs.c.id == tasks.c.id))
        ends = {row[0]: (row[1], row[2]) for row in rows}
    await database.close()
    assert set(storm.submitted) <= ends.keys(), "what was accepted is there"
    for job in storm.promised:
        assert ends[job] == ("Canceled", "Cancelled by user"), "a cancel that was told is final"
    assert states["Success"] > 0
    for server in servers:
        process = psutil.Process(server.pid)
        opened = [file.path for file in process.open_files() if "/jobs/" in file.path]
        assert opened == []
        assert process.num_fds() < 150
