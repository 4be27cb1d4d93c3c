"""Job cancellation as its guide tells it, scenario by scenario, on both databases, with real processes."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import psutil
import pytest
from holdfast.clock import new_id
from holdfast.store.database import Database
from holdfast.store.tables import jobs, tasks
from sqlalchemy import select

from tests.support.client import http
from tests.support.jobs import alive, cancel, ended, job_of, limit, new_tag, queue_of, said, submit, when
from tests.support.server import ServerProcess

STUBBORN = "trap '' TERM; echo ready; while :; do sleep TAG & wait; done"


@pytest.fixture
async def api(brief_server: ServerProcess) -> AsyncIterator[httpx2.AsyncClient]:
    async with http(brief_server.base_url) as client:
        yield client


@pytest.fixture
async def queue(api: httpx2.AsyncClient) -> str:
    """A queue of its own for each test, that runs one job at once."""
    name = f"q-{new_id()}"
    await limit(api, name, 1)
    return name


async def test_cancel_queued_job(api: httpx2.AsyncClient, queue: str) -> None:
    first = await submit(api, ["sleep", tag := new_tag()], queue=queue)
    queued = await submit(api, ["touch", "/work/it-ran"], queue=queue)
    await when(api, first, "running")
    answer = await cancel(api, queued)
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "job_id": queued,
        "previous_status": "queued",
        "message": "Job removed from queue and cancelled",
    }
    standing = await queue_of(api, queue)
    assert (standing["running"], standing["queued"]) == (1, 0)
    assert [job["job_id"] for job in standing["jobs"]] == [first]
    assert (await job_of(api, queued))["status"] == "cancelled"
    assert (await job_of(api, queued))["started_at"] is None
    assert (await job_of(api, first))["status"] == "running"
    assert alive(tag)
    await cancel(api, first)


async def test_cancel_running_job(api: httpx2.AsyncClient, queue: str) -> None:
    tag = new_tag()
    running = await submit(api, f"sleep {tag} & sleep {tag}", queue=queue)
    following = await submit(api, "true", queue=queue)
    await when(api, running, "running")
    answer = await cancel(api, running)
    assert not alive(tag), "the answer comes when nothing of it lives"
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "job_id": running,
        "previous_status": "running",
        "message": "Job cancelled (was running)",
    }
    assert (await job_of(api, running))["status"] == "cancelled"
    assert (await ended(api, following))["status"] == "completed", "the next one starts by itself"


async def test_cancel_completed_job(api: httpx2.AsyncClient, queue: str) -> None:
    job = await submit(api, "true", queue=queue)
    before = await ended(api, job)
    answer = await cancel(api, job)
    assert answer.status_code == 409
    assert answer.json() == {
        "success": False,
        "job_id": job,
        "previous_status": "completed",
        "message": "Job already finished with status: completed",
    }
    assert await job_of(api, job) == before


@pytest.mark.parametrize("unknown", ["invalid-job-id", "01900000-0000-7000-8000-000000000000", "%00", "a" * 300])
async def test_cancel_non_existent_job(api: httpx2.AsyncClient, unknown: str) -> None:
    answer = await cancel(api, unknown)
    assert answer.status_code == 404
    told = unknown if unknown != "%00" else "\x00"
    assert answer.json() == {"success": False, "job_id": told, "message": "Job not found"}


async def test_multiple_cancellations_idempotency(api: httpx2.AsyncClient, queue: str) -> None:
    job = await submit(api, ["sleep", new_tag()], queue=queue)
    await when(api, job, "running")
    await cancel(api, job)
    once = await job_of(api, job)
    for _ in range(3):
        answer = await cancel(api, job)
        assert answer.status_code == 409
        assert answer.json() == {
            "success": False,
            "job_id": job,
            "previous_status": "cancelled",
            "message": "Job already finished with status: cancelled",
        }
    assert await job_of(api, job) == once


async def test_cancellations_at_the_same_time_have_one_effect(api: httpx2.AsyncClient, queue: str) -> None:
    job = await submit(api, ["sleep", new_tag()], queue=queue)
    await when(api, job, "running")
    answers = await asyncio.gather(*(cancel(api, job) for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert 200 in {answer.status_code for answer in answers}
    assert (await job_of(api, job))["status"] == "cancelled"


async def test_queue_continues_after_cancellation(api: httpx2.AsyncClient, queue: str) -> None:
    a, b, c = [await submit(api, ["sleep", new_tag()], queue=queue) for _ in range(3)]
    await when(api, a, "running")
    standing = await queue_of(api, queue)
    assert (standing["running"], standing["queued"], standing["max_running"]) == (1, 2, 1)
    assert [(job["job_id"], job["position"]) for job in standing["jobs"]] == [(a, None), (b, 1), (c, 2)]
    await cancel(api, a)
    await when(api, b, "running", within_s=1)
    assert (await job_of(api, c))["position"] == 1, "C moves to position 1 in queue"
    await cancel(api, b)
    await when(api, c, "running", within_s=1)
    await cancel(api, c)
    assert (await queue_of(api, queue))["jobs"] == []


async def test_graceful_vs_force_termination(api: httpx2.AsyncClient, queue: str, brief_server: ServerProcess) -> None:
    obeys = await submit(api, "trap 'echo bye; exit 3' TERM; echo ready; sleep 60 & wait", queue=queue)
    await said(api, obeys, b"ready")
    await cancel(api, obeys)
    assert (await job_of(api, obeys))["exit_code"] == 3, "it has ended in its own way"
    resists = await submit(api, STUBBORN.replace("TAG", tag := new_tag()), queue=queue)
    await said(api, resists, b"ready")
    assert (await cancel(api, resists)).json()["message"] == "Job cancelled (was running)"
    assert not alive(tag)
    log = brief_server.log.read_text()
    killed = [int(pid) for pid in re.findall(r"process (\d+): killed", log)]
    terminated = [int(pid) for pid in re.findall(r"process (\d+): terminated with 3", log)]
    assert killed, "forced"
    assert terminated, "graceful"
    for pid in (*killed[-1:], *terminated[-1:]):
        steps = re.findall(rf"process {pid}: ([A-Za-z]+)", log)
        assert steps[:3] == ["started", "stop", "SIGTERM"]
    assert f"process {killed[-1]}: SIGKILL to" in log


async def test_database_verification(api: httpx2.AsyncClient, queue: str, brief_server: ServerProcess) -> None:
    job = await submit(api, ["sleep", new_tag()], queue=queue)
    await when(api, job, "running")
    await cancel(api, job)
    shown = await job_of(api, job)
    assert (shown["status"], shown["error"]) == ("cancelled", "Cancelled by user")
    assert shown["completed_at"] is not None
    database = Database(_url_of(brief_server))
    async with database.read() as conn:
        columns = (tasks.c.state, tasks.c.cancellation_status, tasks.c.ended_at, tasks.c.node_id, jobs.c.error)
        joined = select(*columns).join_from(tasks, jobs, jobs.c.id == tasks.c.id).where(tasks.c.id == job)
        row = (await conn.execute(joined)).one()
    await database.close()
    assert (row[0], row[1], row[3], row[4]) == ("Canceled", "Cancelled", None, "Cancelled by user")
    assert row[2] is not None


def _url_of(server: ServerProcess) -> str:
    if "--database-url" in server.arguments:
        return server.arguments[server.arguments.index("--database-url") + 1]
    return f"sqlite:///{Path(server.data_dir) / 'holdfast.db'}"


async def test_jobs_that_are_submitted_and_cancelled_rapidly_leave_nothing_behind(
    api: httpx2.AsyncClient, queue: str, brief_server: ServerProcess
) -> None:
    await limit(api, queue, 8)
    tag = new_tag()

    async def once() -> None:
        job = await submit(api, ["sleep", tag], queue=queue)
        assert (await cancel(api, job)).status_code == 200

    for _ in range(2):  # What is opened once for good is not counted.
        await asyncio.gather(*(once() for _ in range(10)))
    process = psutil.Process(brief_server.pid)
    before = process.num_fds()
    for _ in range(6):
        await asyncio.gather(*(once() for _ in range(10)))
    assert not alive(tag)
    assert process.num_fds() <= before + 8
    standing = await queue_of(api, queue)
    assert (standing["running"], standing["queued"]) == (0, 0)
    job = await submit(api, "true", queue=queue)
    assert (await ended(api, job))["status"] == "completed", "the queue goes on"
