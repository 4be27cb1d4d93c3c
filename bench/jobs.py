"""What jobs cost: to be claimed within limits, started, followed by the next, and to lie there when they are done."""

import asyncio
import random
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import procrastinate
import psutil
from holdfast.clock import new_id
from holdfast.domain.users import User
from holdfast.store import gates, nodes, schema, users
from holdfast.store.database import Database, Tx
from holdfast.store.nodes import NodeIdentity
from holdfast.store.tables import gates as gates_table
from holdfast.store.tables import jobs, sessions, task_gates, tasks
from procrastinate.jobs import Status
from sqlalchemy import insert, select, update
from sqlalchemy.engine import make_url

from bench.common import Row, quantiles, serving
from tests.support.jobs import ended, limit, output_of, submit
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess

TASKS = 6_000
SESSIONS = 1_500
QUEUES = 40
RULES = 60
CAPACITY = 40
CLAIMERS = 8
BATCH = 64
AGAIN_S = 0.01
NOW = ["date", "+%s.%N"]
FINISHED = 100_000

Rates = tuple[float, str]


async def claim_rates(postgres: PostgresServer, folder: Path) -> list[Row]:
    """(k) Tasks claimed a second by eight claimers, each through a session's gate and two more; all end in between."""
    control = await _procrastinate(await postgres.create_database())
    rows: list[Row] = []
    for name, url, wanted in (
        ("PostgreSQL", await postgres.create_database(), ">= 1,000"),
        ("SQLite", f"sqlite:///{folder / 'claims.db'}", ">= 2,000"),
    ):
        rate = await _claim_rate(url)
        beside = f"{control:,.0f} procrastinate, PostgreSQL, a lock alone"
        rows.append(
            (f"(k) claims/s, 8 claimers, 3 gates, {name}", f"{rate:,.0f}", beside, f"{rate / control:.1f}", wanted)
        )
    return rows


async def _claim_rate(url: str) -> float:
    database = Database(url)
    await schema.upgrade(database)
    user = await database.transact(lambda tx: users.ensure_user(tx, "bench", "user", new_id()))
    through = await database.transact(lambda tx: _fill(tx, user))
    bases = [Database(url, pool_size=2) for _ in range(CLAIMERS)]
    claimed = 0
    exceeded: list[str] = []

    async def claimer(base: Database) -> None:
        nonlocal claimed
        node = NodeIdentity(new_id(), "h", "b", 1, "1")
        await base.transact(lambda tx: nodes.register(tx, node, 3600))
        while claimed < TASKS:
            taken = await base.transact(lambda tx: gates.take(tx, "process", node.id, limit=BATCH))
            ids = [row["id"] for row in taken.tasks]
            claimed += len(ids)
            if not ids:  # Somebody else holds the gates: as a worker does, come again in a moment.
                await asyncio.sleep(random.uniform(0.5, 1.5) * AGAIN_S)
                continue
            names = [gate for task in ids for gate in through[task]]
            active.update(names)
            exceeded.extend(gate for gate in names if active[gate] > capacities[gate])
            active.subtract(names)  # Before they end: what is counted is never more than what is.
            await base.transact(lambda tx, ids=ids: _end(tx, ids))

    active = Counter[str]()
    async with database.read() as conn:
        rows = await conn.execute(select(gates_table.c.id, gates_table.c.capacity))
        capacities: dict[str, int] = {row[0]: row[1] for row in rows}
    began = time.perf_counter()
    await asyncio.gather(*(claimer(base) for base in bases))
    took = time.perf_counter() - began
    for base in (*bases, database):
        await base.close()
    assert claimed == TASKS, "each task is claimed exactly once"
    assert exceeded == [], "no limit is exceeded"
    return TASKS / took


async def _fill(tx: Tx, user: User) -> dict[str, list[str]]:
    """Tasks that wait, four to a session."""
    lines = [new_id() for _ in range(SESSIONS)]
    blank = {"owner": user.id, "title": "", "ui_status": "Idle", "version": 1, "oldest_seq": 1}
    times = {"created_at": tx.now, "updated_at": tx.now}
    await tx.conn.execute(insert(sessions), [{"id": line, **blank, **times} for line in lines])
    limits = [{"id": f"session:{line}", "capacity": 1} for line in lines]
    limits += [{"id": f"queue:{n}", "capacity": CAPACITY} for n in range(QUEUES)]
    limits += [{"id": f"rule:{n}", "capacity": CAPACITY} for n in range(RULES)]
    await tx.conn.execute(insert(gates_table), limits)
    common = {"executor": "process", "user_id": user.id, "state": "Pending", "priority": 0, "attempt": 0, "version": 1}
    made: list[dict[str, Any]] = []
    through: dict[str, list[str]] = {}
    for number in range(TASKS):
        task, line = new_id(), lines[number % SESSIONS]
        place = {"session_id": line, "place": number // SESSIONS, "rank": task}
        made.append({"id": task, **common, **place, "created_at": tx.now, "last_updated": tx.now})
        through[task] = [f"session:{line}", f"queue:{number % QUEUES}", f"rule:{number % RULES}"]
    await tx.conn.execute(insert(tasks), made)
    pairs = [{"task_id": task, "gate_id": gate} for task, names in through.items() for gate in names]
    await tx.conn.execute(insert(task_gates), pairs)
    return through


async def _end(tx: Tx, ids: list[str]) -> None:
    done = {"state": "Success", "node_id": None, "ended_at": tx.now, "last_updated": tx.now}
    await tx.conn.execute(update(tasks).where(tasks.c.id.in_(ids)).values(**done))


async def _procrastinate(url: str) -> float:
    """The same number of jobs, claimed and ended by as many of procrastinate's workers, one at a time as it does."""
    parsed = make_url(url)
    conninfo = f"host={parsed.query['host']} user={parsed.username} dbname={parsed.database}"
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo, min_size=8, max_size=10))

    @app.task(name="nothing", pass_context=False)
    async def nothing() -> None:
        return

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        many = TASKS // 4
        for number in range(0, many, 500):
            lots = range(number, min(number + 500, many))
            await app.job_manager.batch_defer_jobs_async(
                [nothing.configure(lock=f"s{n % (SESSIONS // 4)}").job for n in lots]
            )
        done = 0

        async def worker() -> None:
            nonlocal done
            own = await app.job_manager.register_worker()
            while done < many:
                job = await app.job_manager.fetch_job(None, own)
                if job is None:
                    await asyncio.sleep(0.001)
                    continue
                done += 1
                await app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(CLAIMERS)))
        return many / (time.perf_counter() - began)


async def starts() -> list[Row]:
    """(l) From a submission, and from the end of the job before, to the moment at which a command runs."""
    waits: list[float] = []
    gaps: list[float] = []
    bare: list[float] = []
    with serving() as server:
        async with _client(server) as api:
            for _ in range(60):
                began = time.perf_counter()
                job = await submit(api, NOW)
                bare.append((time.perf_counter() - began) * 1000)
                submitted = _moment((await ended(api, job))["created_at"])
                waits.append((await _told(api, job) - submitted) * 1000)
            made = [await submit(api, NOW) for _ in range(60)]
            ends = [_moment((await ended(api, job))["completed_at"]) for job in made]
            begins = [await _told(api, job) for job in made]
            gaps = [(after - before) * 1000 for before, after in zip(ends[:-1], begins[1:], strict=True)]
    rows: list[Row] = []
    for what, times, wanted in (
        ("(l) submission to start, ms p50", waits, "< 50"),
        ("(l) one job's end to the next one's start, ms p50", gaps, "< 100"),
    ):
        p50, p99 = quantiles(times)
        beside = f"{quantiles(bare)[0]:.1f} the submission itself"
        rows.append((what, f"{p50:.1f}", f"p99 {p99:.1f}; {beside}", "-", wanted))
    return rows


async def _told(api: httpx2.AsyncClient, job: str) -> float:
    """When the command of a job ran, as it says itself; the clock is that of the server."""
    return float(await output_of(api, job))


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _client(server: ServerProcess) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.base_url, trust_env=False, timeout=60)


async def idle() -> list[Row]:
    """(m) What a server costs that has nothing to do, beside 100,000 finished jobs and beside none."""
    empty, _ = await _idle_cost(0)
    full, grown = await _idle_cost(FINISHED)
    what = f"(m) idle beside {FINISHED:,} finished jobs, % of a core"
    return [(what, f"{full:.2f}", f"{empty:.2f} beside none; {grown} bytes more in 20 s", "-", "< 1, and none")]


async def _idle_cost(finished: int) -> tuple[float, int]:
    with serving() as server:
        async with _client(server) as api:
            await limit(api, "default", 1)
            await ended(api, await submit(api, ["true"]))
        file = server.data_dir / "holdfast.db"
        if finished:
            database = Database(f"sqlite:///{file}")
            await database.transact(lambda tx: _finished(tx, finished))
            await database.close()
        await asyncio.sleep(3)
        process = psutil.Process(server.pid)
        size, used, began = file.stat().st_size, sum(process.cpu_times()[:2]), time.perf_counter()
        await asyncio.sleep(20)
        took = time.perf_counter() - began
        return (sum(process.cpu_times()[:2]) - used) / took * 100, file.stat().st_size - size


async def _finished(tx: Tx, count: int) -> None:
    user = await tx.conn.scalar(select(tasks.c.user_id).limit(1))
    common = {"executor": "process", "user_id": user, "state": "Success", "priority": 0, "place": 0, "attempt": 1}
    common |= {"version": 1, "queue": "default", "created_at": tx.now, "last_updated": tx.now, "ended_at": tx.now}
    blank = {"user_id": user, "name": "j", "command": ["true"], "env": {}, "sandbox": "on", "on_restart": "end"}
    blank |= {"retries": 0, "retry_backoff_s": 1.0, "failures": 0, "kill_failures": 0, "metadata": {}}
    for _ in range(count // 1000):
        ids = [new_id() for _ in range(1000)]
        await tx.conn.execute(insert(tasks), [{"id": one, "rank": one, **common} for one in ids])
        await tx.conn.execute(insert(jobs), [{"id": one, **blank} for one in ids])
        gate = f"queue:{user}:default"
        await tx.conn.execute(insert(task_gates), [{"task_id": one, "gate_id": gate} for one in ids])
