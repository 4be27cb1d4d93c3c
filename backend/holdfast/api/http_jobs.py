"""HTTP: jobs, their output, their queues."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from holdfast.api import bodies, job_bodies
from holdfast.api.endpoints import Call, Endpoint
from holdfast.api.job_bodies import NewJob, QueueEdit
from holdfast.api.problems import JsonResponse, invalid, problem
from holdfast.clock import is_id
from holdfast.domain.errors import FieldError, Forbidden, InvalidRequest, JobNotFound, NoSandbox
from holdfast.domain.tasks import JOB_STATUSES
from holdfast.engine.joblog import PIECE_BYTES, JobLog, tail
from holdfast.store import gates, jobs
from holdfast.store.jobs import JobFilters, JobSpec

_BODY_BYTES = 512 * 1024
_PATH = "/usr/local/bin:/usr/bin:/bin"
_SYSTEM = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/")
_PING_S = 15.0
_ASK_S = 0.5


async def submit_job(call: Call) -> Response:
    """Put a job into a queue."""
    body = await bodies.read(call.request, NewJob, limit=_BODY_BYTES)
    spec = _spec(call, body)
    submitted = await call.services.engine.submit_job(call.user, spec)
    return JsonResponse(submitted, 201, {"Location": f"/api/jobs/{submitted['job_id']}"})


async def list_jobs(call: Call) -> Response:
    """The caller's jobs, the newest first."""
    query = call.request.query_params
    status = query.get("status")
    if status is not None and status not in JOB_STATUSES:
        raise invalid("/status", f"must be one of {', '.join(JOB_STATUSES)}")
    filters = JobFilters(status=status, queue=_text(query.get("queue"), "queue"), name=_text(query.get("name"), "name"))
    limit = bodies.page_limit(call.request)
    after = bodies.page_cursor(call.request, 1)
    if after is not None and not is_id(after[0]):
        raise invalid("/cursor", "is not a cursor that this list gave")
    database = call.services.database
    async with database.read() as conn:
        now = await database.now(conn)
        place = after[0] if after else None
        items = await jobs.list_for(conn, call.user, filters, place, limit + 1, now)
    more, items = len(items) > limit, items[:limit]
    return JsonResponse({"items": items, "next": bodies.make_cursor(items[-1]["job_id"]) if more else None})


async def get_job_queue(call: Call) -> Response:
    """A queue: its numbers, what runs, and what waits, the first in line first."""
    queue = _queue_name(call.request.query_params.get("queue", "default"))
    database = call.services.database
    async with database.read() as conn:
        return JsonResponse(await jobs.queue_of(conn, call.user, queue, await database.now(conn)))


async def list_queues(call: Call) -> Response:
    """The caller's queues."""
    async with call.services.database.read() as conn:
        return JsonResponse({"items": await jobs.queues_of(conn, call.user), "next": None})


async def edit_queue(call: Call) -> Response:
    """Change how many jobs of a queue run at once; a new name makes a queue."""
    queue = _queue_name(call.path("name"), "name")
    body = await bodies.read(call.request, QueueEdit, limit=_BODY_BYTES)
    gate = jobs.gate_of(call.user.id, queue)
    owner = call.user.id
    await call.services.database.transact(lambda tx: gates.set_capacity(tx, gate, body.max_running, owner))
    call.services.engine.job_worker.wake()
    async with call.services.database.read() as conn:
        found = await jobs.queues_of(conn, call.user)
    return JsonResponse(next(one for one in found if one["name"] == queue))


async def cancel_queue(call: Call) -> Response:
    """Cancel all that waits or runs in a queue."""
    queue = _queue_name(call.path("name"), "name")
    body = await bodies.read(call.request, bodies.CancelBody, limit=_BODY_BYTES, optional=True)
    removed, stopping = await call.services.engine.cancel_queue(call.user, queue, body.reason)
    return JsonResponse({"queue": queue, "removed": removed, "stopping": stopping})


async def get_job(call: Call) -> Response:
    """One job."""
    database = call.services.database
    try:
        async with database.read() as conn:
            row = await jobs.visible(conn, call.user, call.path("id"))
            return JsonResponse(await jobs.show(conn, row, await database.now(conn)))
    except JobNotFound as error:
        return _missing(call, error)


async def cancel_job(call: Call) -> Response:
    """Cancel a job; the answer comes when nothing of it lives any more."""
    body = await bodies.read(call.request, bodies.CancelBody, limit=_BODY_BYTES, optional=True)
    job = call.path("id")
    try:
        found, ended = await call.services.engine.cancel_job(call.user, job, body.reason)
    except JobNotFound as error:
        return JsonResponse({"success": False, "job_id": job, "message": error.message}, 404)
    told: dict[str, Any] = {"success": True, "job_id": job, "previous_status": found.previous}
    if found.previous == "queued":
        return JsonResponse({**told, "message": "Job removed from queue and cancelled"})
    if found.active and ended:
        return JsonResponse({**told, "message": "Job cancelled (was running)"})
    if found.active:
        return JsonResponse({**told, "message": "Cancellation requested"}, 202)
    told["success"] = False
    return JsonResponse({**told, "message": f"Job already finished with status: {found.previous}"}, 409)


async def get_job_output(call: Call) -> Response:
    """What a job has said: bytes from an offset, or followed as events until its end."""
    job = call.path("id")
    try:
        async with call.services.database.read() as conn:
            row = await jobs.visible(conn, call.user, job)
    except JobNotFound as error:
        return _missing(call, error)
    query = call.request.query_params
    follow = query.get("follow", "false")
    if follow not in ("true", "false"):
        raise invalid("/follow", "must be true or false")
    files = call.services.engine.jobs.log_of(row["id"])
    size = await asyncio.to_thread(lambda: files.size)
    resumed = call.request.headers.get("last-event-id") if follow == "true" else None
    offset = tail(size, _offset(resumed or query.get("offset", "0")))
    if offset > size:
        raise invalid("/offset", f"is beyond the end of the output, which has {size} bytes")
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Offset": str(offset)}
    if follow == "true":
        events = _events(call, files, row["id"], offset)
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")
    headers |= {"X-Next-Offset": str(size), "Content-Length": str(size - offset)}
    headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return StreamingResponse(_bytes(files, offset, size), headers=headers, media_type="application/octet-stream")


async def _bytes(files: JobLog, offset: int, until: int) -> AsyncIterator[bytes]:
    while offset < until:
        piece = await asyncio.to_thread(files.read, offset, min(PIECE_BYTES * 4, until - offset))
        if not piece:
            return
        offset += len(piece)
        yield piece


async def _events(call: Call, files: JobLog, job: str, offset: int) -> AsyncIterator[bytes]:
    """Server-sent events: pieces of output, a comment while it is silent, and the end."""
    engine, services = call.services.engine, call.services

    async def news(within_s: float) -> None:
        live = engine.jobs.live(job)
        if live is None:
            await asyncio.sleep(within_s)
            return
        live.news.clear()
        try:
            async with asyncio.timeout(within_s):
                await live.news.wait()
        except TimeoutError:
            return

    loop = asyncio.get_running_loop()
    told_at, asked_at = loop.time(), 0.0

    async def has_ended() -> bool:
        """Asks the store only now and then about a job that another process runs, or nobody yet."""
        nonlocal asked_at
        if engine.jobs.live(job) is not None:
            asked_at = 0.0
            return False
        if loop.time() - asked_at < _ASK_S:
            return False
        asked_at = loop.time()
        return await engine.job_has_ended(job)

    yield b": output\n\n"
    async for said in files.follow(offset, has_ended, news):
        if said is not None:
            data = msgspec.json.encode({"stream": said.stream, "text": said.text})
            yield b"id: %d\ndata: %s\n\n" % (said.next_offset, data)
            told_at = loop.time()
        elif services.draining:
            return  # The client comes back with the last id that it has seen.
        elif loop.time() - told_at > _PING_S:
            yield b": \n\n"
            told_at = loop.time()
    async with services.database.read() as conn:
        row = await jobs.row_of(conn, job)
        shown = await jobs.show(conn, row, await services.database.now(conn))
    end = {name: shown[name] for name in ("status", "exit_code", "signal", "error")}
    yield b"event: end\ndata: %s\n\n" % msgspec.json.encode(end)


def _missing(call: Call, error: JobNotFound) -> Response:
    """A problem that also has the shape of the cancel's answer."""
    response = problem(error)
    told = {**msgspec.json.decode(response.body), "success": False, "job_id": call.path("id"), "message": error.message}
    return Response(msgspec.json.encode(told), 404, media_type="application/problem+json")


def _spec(call: Call, body: NewJob) -> JobSpec:
    """The job that a body asks for.

    Raises:
        InvalidRequest: with all that is wrong.
        Forbidden: no sandbox is for admins.
        NoSandbox: this machine has none.
    """
    shop, settings = call.services.engine.workshop, call.services.settings
    faults = job_bodies.faults(body)
    run_at, run_at_fault = _run_at(body)
    faults += run_at_fault
    folder, cwd_fault = _folder(call, body)
    faults += cwd_fault
    if isinstance(body.command, list) and settings.role != "web" and not faults:
        faults += _program_fault(body.command[0], folder, body.env, confined=body.sandbox == "on")
    if body.memory_mb is not None and body.memory_mb << 20 > shop.limits.memory_bytes:
        faults.append(FieldError("/memory_mb", f"must be at most {shop.limits.memory_bytes >> 20} on this machine"))
    if faults:
        raise InvalidRequest("The job is not valid", errors=faults)
    if body.sandbox == "off" and not call.user.is_admin:
        raise Forbidden("Only an admin may run a job without a sandbox", field="sandbox")
    if body.sandbox == "on" and not shop.runs_jobs:
        raise NoSandbox('Install bubblewrap, allow it with --unsandboxed allow, or submit it with "sandbox": "off"')
    return JobSpec(
        name=body.name or job_bodies.name_of(body.command),
        command=body.command,
        env=body.env,
        cwd=str(folder) if folder else body.cwd,
        queue=body.queue,
        priority=body.priority,
        run_at=run_at,
        sandbox=body.sandbox,
        on_restart=body.on_restart,
        timeout_s=body.timeout,
        idle_timeout_s=body.idle_timeout,
        memory_mb=body.memory_mb,
        retries=body.retries,
        retry_backoff_s=body.retry_backoff,
        metadata=body.metadata,
    )


def _run_at(body: NewJob) -> tuple[datetime | None, list[FieldError]]:
    """When a job may start, in UTC; the last hours of the calendar may have no time there."""
    if body.run_at is None:
        return None, []
    try:
        run_at = body.run_at.astimezone(UTC)
    except OverflowError:
        run_at = None
    if run_at is None or run_at.year < 1970:
        return None, [FieldError("/run_at", "must be a time from 1970 to 9999")]
    return run_at, []


def _folder(call: Call, body: NewJob) -> tuple[Path | None, list[FieldError]]:
    """The folder of the host that a job names; None when it works in its own."""
    if body.cwd is None:
        return None, []
    if not body.cwd.startswith("/"):
        inside = ".." not in PurePosixPath(body.cwd).parts and body.cwd.strip()
        return None, [] if inside else [FieldError("/cwd", "must be inside the working folder of the job")]
    if not call.services.engine.workshop.is_allowed(folder := Path(body.cwd).resolve()):
        return None, [FieldError("/cwd", "is not in a folder that jobs may work in (see the setting job_folders)")]
    return folder, [] if folder.is_dir() else [FieldError("/cwd", "there is no such folder")]


def _program_fault(program: str, folder: Path | None, env: Mapping[str, str], *, confined: bool) -> list[FieldError]:
    """What is wrong with a program as far as can be seen from outside the sandbox."""
    if "/" not in program:
        found = "PATH" in env or shutil.which(program, path=_PATH)
    elif not program.startswith("/"):
        found = folder is not None and os.access(folder / program, os.X_OK)
    elif confined and program.startswith("/work/"):
        found = folder is not None and os.access(folder / program.removeprefix("/work/"), os.X_OK)
    else:
        is_seen = not confined or program.startswith(_SYSTEM)
        found = is_seen and os.access(program, os.X_OK) and not os.path.isdir(program)
    return [] if found else [FieldError("/command/0", f"there is no program {program[:200]!r}")]


def _queue_name(text: str, field: str = "queue") -> str:
    if not job_bodies.is_queue_name(text):
        raise invalid(f"/{field}", "must be 1 to 100 letters, digits, '.', '_' or '-'")
    return text


def _text(value: str | None, name: str) -> str | None:
    if value is not None and (len(value) > 500 or bodies.unstorable(value)):
        raise invalid(f"/{name}", "must be at most 500 characters of storable text")
    return value


def _offset(text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise invalid("/offset", "must be a whole number; below 0 it counts from the end")
    return int(text)


ENDPOINTS = [
    Endpoint("POST", "/api/jobs", submit_job, "Submit a job", NewJob, answers={201: "Job"}),
    Endpoint(
        "GET",
        "/api/jobs",
        list_jobs,
        "List jobs, newest first",
        query={
            "cursor": "`next` of the page before",
            "limit": "50, at most 100",
            "status": "queued, running, completed, failed or cancelled",
            "queue": "",
            "name": "",
        },
        answers={200: "JobList"},
    ),
    Endpoint(
        "GET",
        "/api/jobs/queue",
        get_job_queue,
        "Get a queue with its jobs",
        query={"queue": "its name; `default` unless told"},
        answers={200: "JobQueue"},
    ),
    Endpoint("GET", "/api/queues", list_queues, "List the queues", answers={200: "QueueList"}),
    Endpoint(
        "PATCH", "/api/queues/{name}", edit_queue, "Change or make a queue", QueueEdit, answers={200: "QueueState"}
    ),
    Endpoint(
        "POST",
        "/api/queues/{name}/cancel",
        cancel_queue,
        "Cancel all of a queue",
        bodies.CancelBody,
        body_optional=True,
        answers={200: "QueueCancelled"},
    ),
    Endpoint("GET", "/api/jobs/{id}", get_job, "Get a job", answers={200: "Job"}),
    Endpoint(
        "POST",
        "/api/jobs/{id}/cancel",
        cancel_job,
        "Cancel a job",
        bodies.CancelBody,
        body_optional=True,
        answers={200: "JobCancelled", 202: "JobCancelled"},
    ),
    Endpoint(
        "GET",
        "/api/jobs/{id}/output",
        get_job_output,
        "Get what a job has said",
        query={"offset": "the first byte; below 0 it counts from the end", "follow": "`true`: server-sent events"},
        answers={200: ""},
    ),
]
