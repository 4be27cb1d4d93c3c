"""HTTP: approvals, the files of a session, the whole output of an action, the tools of this node."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from holdfast.agents.folder import Entry, FolderError
from holdfast.api import bodies
from holdfast.api.endpoints import Call, Endpoint
from holdfast.api.http_sessions import run_of, session_of
from holdfast.api.problems import JsonResponse, invalid
from holdfast.domain.errors import NotFound
from holdfast.store import actions, runs, sessions
from holdfast.store.approvals import Decision

_PIECE_BYTES = 256 << 10


async def approve(call: Call) -> Response:
    """Answer questions of a run that waits for approval."""
    run = run_of(call)
    body = await bodies.read(call.request, bodies.ApproveBody, limit=call.services.settings.content_bytes)
    async with call.services.database.read() as conn:
        session = (await runs.visible(conn, call.user, run))["session_id"]
    decisions = [
        Decision(one.interruptId, one.approved, one.editedArgs, one.reason, one.always) for one in body.decisions
    ]
    going_on, _, _ = await call.services.engine.decide(call.user, session, run, decisions, key=body.key)
    return JsonResponse({"run": going_on})


async def list_files(call: Call) -> Response:
    """What a folder of the session's working folder holds."""
    session = await _visible(call)
    path = _path(call, required=False)
    folder = call.services.engine.workshop.folder(session)
    try:
        entries = await asyncio.to_thread(folder.list, path)
    except FolderError as error:
        raise NotFound(str(error)) from None
    return JsonResponse({"path": path, "entries": [_as_told(entry) for entry in entries]})


async def get_file(call: Call) -> Response:
    """A file of the session's working folder, as it is."""
    session = await _visible(call)
    path = _path(call, required=True)
    folder = call.services.engine.workshop.folder(session)
    try:
        descriptor = await asyncio.to_thread(folder.open, path)
    except FolderError as error:
        raise NotFound(str(error)) from None
    return _download(descriptor, path.rpartition("/")[2])


async def get_output(call: Call) -> Response:
    """All that an action said, when that was more than its result tells."""
    session, action = await _visible(call), call.path("action")
    async with call.services.database.read() as conn:
        if not await actions.find(conn, session, action):
            raise NotFound("No such action")
    path = call.services.engine.workshop.output(session, action)
    try:
        descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        raise NotFound("Its result tells all of it") from None
    return _download(descriptor, f"{Path(path).name}.txt")


async def list_tools(call: Call) -> Response:
    """The tools of this node, the rules about them, and what commands run in."""
    shop = call.services.engine.workshop
    sandbox: dict[str, Any] = {"name": shop.sandbox.name, "confined": shop.sandbox.confined}
    if not shop.sandbox.confined:
        sandbox["reason"] = "No sandbox: a command runs as the service itself"
    tools = [
        {"name": tool.name, "description": tool.description, "approval": shop.rule(tool).approval}
        for tool in shop.toolbox
    ]
    return JsonResponse({"sandbox": sandbox, "tools": tools})


async def _visible(call: Call) -> str:
    session = session_of(call)
    async with call.services.database.read() as conn:
        await sessions.visible(conn, call.user, session)
    return session


def _path(call: Call, *, required: bool) -> str:
    path = call.request.query_params.get("path", "")
    if required and not path:
        raise invalid("/path", "required")
    if bodies.unstorable(path) or len(path) > 4096:
        raise invalid("/path", "must be at most 4096 characters of storable text")
    return path


def _as_told(entry: Entry) -> dict[str, Any]:
    name = entry.name.encode(errors="surrogateescape").decode(errors="replace")
    return {"name": name, "kind": entry.kind, "bytes": entry.bytes, "modified": entry.modified}


def _download(descriptor: int, name: str) -> Response:
    """A file that no browser shows or runs by itself, sent as it is read."""

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while piece := await asyncio.to_thread(os.read, descriptor, _PIECE_BYTES):
                yield piece
        finally:
            os.close(descriptor)

    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "no-store",
    }
    return StreamingResponse(pieces(), headers=headers, media_type="application/octet-stream")


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/runs/{id}/approve",
        approve,
        "Answer what a run waits for",
        bodies.ApproveBody,
        answers={200: "Approved"},
    ),
    Endpoint(
        "GET",
        "/api/sessions/{id}/files",
        list_files,
        "List a folder of the session",
        query={"path": "a folder within the working folder"},
        answers={200: "Files"},
    ),
    Endpoint(
        "GET",
        "/api/sessions/{id}/files/content",
        get_file,
        "Get a file of the session",
        query={"path": "a file within the working folder"},
        answers={200: ""},
    ),
    Endpoint(
        "GET",
        "/api/sessions/{id}/actions/{action}/output",
        get_output,
        "Get the whole output of an action",
        answers={200: ""},
    ),
    Endpoint("GET", "/api/tools", list_tools, "List the tools", answers={200: "Tools"}),
]
