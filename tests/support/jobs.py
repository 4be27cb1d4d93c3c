"""Jobs over HTTP, as a client of the public API submits, watches and cancels them."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from holdfast.engine.processes import process_started

Job = dict[str, Any]


def new_tag() -> str:
    """A number of seconds, for `sleep`, that no other process on this machine has in its command line."""
    return f"600.{secrets.randbelow(10**12):012}"


def alive(tag: str) -> list[int]:
    """The processes, but zombies, that have `tag` in their command line."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdecimal() and tag.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return [pid for pid in found if process_started(pid)]


async def until(condition: Callable[[], object], within_s: float = 20) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def submit(api: httpx2.AsyncClient, command: Any, **more: Any) -> str:
    """Submit a job that must be accepted; its id."""
    answer = await api.post("/api/jobs", json={"command": command, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["job_id"])


async def job_of(api: httpx2.AsyncClient, job: str) -> Job:
    """A job as it is now."""
    answer = await api.get(f"/api/jobs/{job}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def when(api: httpx2.AsyncClient, job: str, *statuses: str, within_s: float = 30) -> Job:
    """The job as soon as it has one of these statuses."""
    async with asyncio.timeout(within_s):
        while (found := await job_of(api, job))["status"] not in statuses:
            await asyncio.sleep(0.02)
    return found


async def ended(api: httpx2.AsyncClient, job: str, within_s: float = 30) -> Job:
    """The job as soon as it has ended."""
    return await when(api, job, "completed", "failed", "cancelled", within_s=within_s)


async def cancel(api: httpx2.AsyncClient, job: str) -> httpx2.Response:
    """Ask for a cancel."""
    return await api.post(f"/api/jobs/{job}/cancel")


async def queue_of(api: httpx2.AsyncClient, queue: str = "default") -> Job:
    """A queue as it is now."""
    answer = await api.get("/api/jobs/queue", params={"queue": queue})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def output_of(api: httpx2.AsyncClient, job: str, offset: int = 0) -> bytes:
    """What a job has said so far."""
    answer = await api.get(f"/api/jobs/{job}/output", params={"offset": offset})
    assert answer.status_code == 200, answer.text
    return answer.content


async def said(api: httpx2.AsyncClient, job: str, words: bytes, within_s: float = 20) -> None:
    """Wait until a job has said these words."""
    async with asyncio.timeout(within_s):
        while words not in await output_of(api, job):
            await asyncio.sleep(0.02)


async def limit(api: httpx2.AsyncClient, queue: str, max_running: int) -> None:
    """Set how many jobs of a queue run at once; makes the queue."""
    answer = await api.patch(f"/api/queues/{queue}", json={"max_running": max_running})
    assert answer.status_code == 200, answer.text
