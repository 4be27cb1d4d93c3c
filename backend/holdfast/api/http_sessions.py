"""HTTP: sessions, their messages, their queue, their runs."""

from typing import Any

import msgspec
from starlette.responses import Response

from holdfast import portable
from holdfast.api import bodies
from holdfast.api.endpoints import Call, Endpoint, etag
from holdfast.api.problems import JsonResponse, invalid
from holdfast.api.socket import checked_content
from holdfast.clock import is_id, new_id, parse_rfc3339
from holdfast.domain.errors import (
    FieldError,
    InvalidFrame,
    InvalidRequest,
    JobNotFound,
    RunNotFound,
    SessionNotFound,
)
from holdfast.domain.tasks import CancellationStatus, UiStatus
from holdfast.store import jobs, runs, sessions, transcripts

BODY_BYTES = 256 * 1024


async def list_sessions(call: Call) -> Response:
    """The caller's sessions, the last changed first."""
    query = call.request.query_params
    filters = sessions.Filters(
        ui_status=_choice(query.get("ui_status"), "ui_status", UiStatus),
        cancellation_status=_choice(query.get("cancellation_status"), "cancellation_status", CancellationStatus),
        assignee=_uuid_or_none(query.get("assignee"), "assignee"),
        q=_query_text(query.get("q")),
    )
    limit = bodies.page_limit(call.request)
    after = bodies.page_cursor(call.request, 2)
    if after is not None and (not _is_time(after[0]) or not is_id(after[1])):
        raise invalid("/cursor", "is not a cursor that this list gave")
    place = (after[0], after[1]) if after else None
    async with call.services.database.read() as conn:
        items = await sessions.list_for(conn, call.user, filters, place, limit + 1)
    more = len(items) > limit
    items = items[:limit]
    following = bodies.make_cursor(items[-1]["updated_at"], items[-1]["id"]) if more else None
    return JsonResponse({"items": items, "next": following})


async def create_session(call: Call) -> Response:
    """A new session."""
    body = await bodies.read(call.request, bodies.NewSession, limit=BODY_BYTES, optional=True)
    values = msgspec.structs.asdict(body)
    session = await call.services.database.transact(lambda tx: sessions.create(tx, call.user, new_id(), values))
    return JsonResponse(session, 201, {**etag(session), "Location": f"/api/sessions/{session['id']}"})


async def get_session(call: Call) -> Response:
    """One session."""
    async with call.services.database.read() as conn:
        session = sessions.body(await sessions.visible(conn, call.user, session_of(call)))
    return JsonResponse(session, headers=etag(session))


async def edit_session(call: Call) -> Response:
    """Write the named fields of a session."""
    session = session_of(call)
    body = await bodies.read(call.request, bodies.SessionEdit, limit=BODY_BYTES)
    changes = {
        name: value
        for name, value in msgspec.structs.asdict(body).items()
        if value is not msgspec.UNSET and name != "version"
    }
    version = bodies.if_match(call.request)
    if version is None and body.version is not msgspec.UNSET:
        version = body.version
    if not changes:
        raise InvalidRequest("Nothing is changed", errors=[FieldError("", "name at least one field")])
    edited = await call.services.database.transact(lambda tx: sessions.edit(tx, call.user, session, changes, version))
    return JsonResponse(edited, headers=etag(edited))


async def delete_session(call: Call) -> Response:
    """Delete a session and all that belongs to it."""
    session = session_of(call)
    await call.services.database.transact(lambda tx: sessions.remove(tx, call.user, session))
    await call.services.engine.workshop.remove(session)
    return Response(status_code=204)


async def list_messages(call: Call) -> Response:
    """The messages of a session, oldest first; each as it stands at this moment."""
    session = session_of(call)
    limit = bodies.page_limit(call.request)
    after = bodies.page_cursor(call.request, 2)
    if after is not None and not (after[0].isdigit() and len(after[0]) < 20 and is_id(after[1])):
        raise invalid("/cursor", "is not a cursor that this list gave")
    async with call.services.database.read() as conn:
        await sessions.visible(conn, call.user, session)
    place = (int(after[0]), after[1]) if after else None
    found = await transcripts.page(call.services.database, session, place, limit + 1)
    more = len(found) > limit
    found = found[:limit]
    following = bodies.make_cursor(*found[-1][0]) if more else None
    return JsonResponse({"items": [message for _, message in found], "next": following})


async def send_message(call: Call) -> Response:
    """Accept a user's message; the answer comes as events."""
    session = session_of(call)
    limit = call.services.settings.content_bytes
    body = await bodies.read(call.request, bodies.NewMessage, limit=limit * 6 + 4096)
    content = _content(body.content, limit)
    sent, _, _ = await call.services.engine.send(call.user, session, content, key=body.key, if_busy=body.ifBusy)
    return JsonResponse(sent, 202)


async def cancel_session(call: Call) -> Response:
    """Stop all that is active or waiting in a session."""
    session = session_of(call)
    body = await bodies.read(call.request, bodies.CancelBody, limit=BODY_BYTES, optional=True)
    effect, concerned, _ = await call.services.engine.cancel(call.user, session, None, body.reason)
    async with call.services.database.read() as conn:
        row = sessions.body(await sessions.row_of(conn, session))
    return JsonResponse({"effect": effect, "runs": concerned, "session": row})


async def get_queue(call: Call) -> Response:
    """The messages that wait in a session."""
    session = session_of(call)
    async with call.services.database.read() as conn:
        await sessions.visible(conn, call.user, session)
        return JsonResponse({"queue": await transcripts.queue.read(conn, session)})


async def change_queue(call: Call) -> Response:
    """Move, edit, remove or swap what waits."""
    session = session_of(call)
    limit = call.services.settings.content_bytes
    body = await bodies.read(call.request, bodies.QueueBody, limit=limit * 6 + 4096)
    needed = {"move": ["position"], "edit": ["content"], "remove": [], "swap": ["other", "withVersion"]}
    names = {"other": "with"}
    missing = [names.get(name, name) for name in needed[body.op] if getattr(body, name) is None]
    if missing:
        faults = [FieldError(f"/{name}", f"required for op {body.op}") for name in missing]
        raise InvalidRequest("The body is not valid", errors=faults)
    content = _content(body.content, limit) if body.content is not None else ""
    items, _ = await call.services.engine.change_queue(
        call.user,
        session,
        body.op,
        body.task,
        body.version,
        position=body.position or 1,
        content=content,
        other=body.other or "",
        other_version=body.withVersion or 0,
    )
    return JsonResponse({"queue": items})


async def swap_queue(call: Call) -> Response:
    """Exchange the places of two waiting messages of one session, or of two waiting jobs of one queue."""
    body = await bodies.read(call.request, bodies.QueueSwap, limit=BODY_BYTES)
    if await _is_job(call, body.a):
        return await _swap_jobs(call, body)
    async with call.services.database.read() as conn:
        one, two = await runs.visible(conn, call.user, body.a), await runs.visible(conn, call.user, body.b)
    if one["session_id"] != two["session_id"]:
        raise invalid("/b", "belongs to another session")
    items, _ = await call.services.engine.change_queue(
        call.user,
        one["session_id"],
        "swap",
        body.a,
        body.version_a,
        other=body.b,
        other_version=body.version_b,
    )
    return JsonResponse({"queue": items})


async def _is_job(call: Call, task: str) -> bool:
    async with call.services.database.read() as conn:
        try:
            await jobs.visible(conn, call.user, task)
        except JobNotFound:
            return False
    return True


async def _swap_jobs(call: Call, body: bodies.QueueSwap) -> Response:
    user, database = call.user, call.services.database
    await database.transact(lambda tx: jobs.swap(tx, user, (body.a, body.version_a), (body.b, body.version_b)))
    async with database.read() as conn:
        queue = (await jobs.visible(conn, user, body.a))["queue"]
        return JsonResponse(await jobs.queue_of(conn, user, queue, await database.now(conn)))


async def get_run(call: Call) -> Response:
    """One run."""
    async with call.services.database.read() as conn:
        return JsonResponse(runs.body(await runs.visible(conn, call.user, run_of(call))))


async def cancel_run(call: Call) -> Response:
    """Stop one run."""
    run = run_of(call)
    body = await bodies.read(call.request, bodies.CancelBody, limit=BODY_BYTES, optional=True)
    async with call.services.database.read() as conn:
        session = (await runs.visible(conn, call.user, run))["session_id"]
    effect, concerned, _ = await call.services.engine.cancel(call.user, session, run, body.reason)
    return JsonResponse({"effect": effect, "runs": concerned})


async def continue_run(call: Call) -> Response:
    """A new run that goes on from what a run said before it was cut short."""
    body = await bodies.read(call.request, bodies.ContinueBody, limit=BODY_BYTES, optional=True)
    sent, _ = await call.services.engine.continue_run(call.user, run_of(call), key=body.key)
    return JsonResponse(sent, 202)


async def export_session(call: Call) -> Response:
    """A session as a file: its journal (jsonl), its state (json), or to read (markdown)."""
    session = session_of(call)
    kind = call.request.query_params.get("format", "jsonl")
    if kind not in portable.FORMATS:
        raise invalid("/format", f"must be one of {', '.join(portable.FORMATS)}")
    async with call.services.database.read() as conn:
        row = await sessions.visible(conn, call.user, session)
    text = await portable.export(call.services.database, call.services.engine.journal, row, kind)
    name = f"{session}.{portable.FORMATS[kind][0]}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text, headers=headers, media_type=portable.FORMATS[kind][1])


_LIST = {"cursor": "`next` of the page before", "limit": "50, at most 100"}

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/sessions",
        list_sessions,
        "List sessions",
        query={**_LIST, "ui_status": "", "cancellation_status": "", "assignee": "", "q": "in the title"},
        answers={200: "SessionList"},
    ),
    Endpoint(
        "POST",
        "/api/sessions",
        create_session,
        "Create a session",
        bodies.NewSession,
        body_optional=True,
        answers={201: "Session"},
    ),
    Endpoint("GET", "/api/sessions/{id}", get_session, "Get a session", answers={200: "Session"}),
    Endpoint(
        "PATCH", "/api/sessions/{id}", edit_session, "Edit a session", bodies.SessionEdit, answers={200: "Session"}
    ),
    Endpoint("DELETE", "/api/sessions/{id}", delete_session, "Delete a session", answers={204: ""}),
    Endpoint(
        "GET",
        "/api/sessions/{id}/messages",
        list_messages,
        "List messages, oldest first",
        query=_LIST,
        answers={200: "MessageList"},
    ),
    Endpoint(
        "POST",
        "/api/sessions/{id}/messages",
        send_message,
        "Send a message",
        bodies.NewMessage,
        answers={202: "Sent"},
    ),
    Endpoint(
        "POST",
        "/api/sessions/{id}/cancel",
        cancel_session,
        "Cancel all that is active or waiting",
        bodies.CancelBody,
        body_optional=True,
        answers={200: "Cancelled"},
    ),
    Endpoint("GET", "/api/sessions/{id}/queue", get_queue, "Get the queue", answers={200: "Queue"}),
    Endpoint(
        "POST",
        "/api/sessions/{id}/queue",
        change_queue,
        "Change the queue",
        bodies.QueueBody,
        answers={200: "Queue"},
    ),
    Endpoint(
        "GET",
        "/api/sessions/{id}/export",
        export_session,
        "Export a session",
        query={"format": "jsonl, json or markdown"},
        answers={200: ""},
    ),
    Endpoint("POST", "/api/queue/swap", swap_queue, "Exchange two places", bodies.QueueSwap, answers={200: "Queue"}),
    Endpoint("GET", "/api/runs/{id}", get_run, "Get a run", answers={200: "Run"}),
    Endpoint(
        "POST",
        "/api/runs/{id}/cancel",
        cancel_run,
        "Cancel a run",
        bodies.CancelBody,
        body_optional=True,
        answers={200: "Cancelled"},
    ),
    Endpoint(
        "POST",
        "/api/runs/{id}/continue",
        continue_run,
        "Continue a run that was cut short",
        bodies.ContinueBody,
        body_optional=True,
        answers={202: "Sent"},
    ),
]


def session_of(call: Call) -> str:
    """The id of a session in the path; whether there is one is not known."""
    session = call.path("id")
    if not is_id(session):
        raise SessionNotFound if _looks_like_id(session) else invalid("/id", "is not a UUID")
    return session


def run_of(call: Call) -> str:
    """The id of a run in the path; whether there is one is not known."""
    run = call.path("id")
    if not is_id(run):
        raise RunNotFound if _looks_like_id(run) else invalid("/id", "is not a UUID")
    return run


def _looks_like_id(text: str) -> bool:
    return is_id(text.lower())


def _content(content: str, limit: int) -> str:
    try:
        return checked_content(content, limit)
    except InvalidFrame as error:
        raise invalid("/content", error.message) from None


def _choice(value: str | None, name: str, kind: Any) -> str | None:
    if value is not None and value not in list(kind):
        raise invalid(f"/{name}", f"must be one of {', '.join(kind)}")
    return value


def _uuid_or_none(value: str | None, name: str) -> str | None:
    if value is not None and not is_id(value):
        raise invalid(f"/{name}", "is not a UUID")
    return value


def _query_text(value: str | None) -> str | None:
    if value is not None and (len(value) > 500 or bodies.unstorable(value)):
        raise invalid("/q", "must be at most 500 characters of storable text")
    return value


def _is_time(text: str) -> bool:
    try:
        parse_rfc3339(text)
    except ValueError:
        return False
    return text.endswith("Z")
