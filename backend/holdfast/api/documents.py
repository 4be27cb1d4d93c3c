"""OpenAPI 3.1 and AsyncAPI 3, made from the code that they describe, and a page that shows them."""

import html
from typing import Any

import msgspec

from holdfast import __version__
from holdfast.agents.folder import Entry
from holdfast.api import problems
from holdfast.api.endpoints import Endpoint
from holdfast.domain import frames
from holdfast.domain.actions import Action, Interrupt
from holdfast.domain.cursors import Cursor
from holdfast.domain.errors import ERRORS
from holdfast.domain.tasks import JOB_STATUSES
from holdfast.domain.transcript import ActiveRun, Message, QueueItem
from holdfast.domain.users import User
from holdfast.store.runs import Sent

_TEMPLATE = "#/components/schemas/{name}"
_STRING = {"type": "string"}
_MAYBE = {"type": ["string", "null"]}
_MAYBE_INTEGER = {"type": ["integer", "null"]}
_ID = {"type": "string", "format": "uuid"}
_TIME = {"type": "string", "format": "date-time"}
_MAYBE_TIME = {"type": ["string", "null"], "format": "date-time"}


def _object(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(name: str) -> dict[str, Any]:
    items = {"type": "array", "items": {"$ref": _TEMPLATE.format(name=name)}}
    return _object({"items": items, "next": _MAYBE})


_JOB: dict[str, Any] = {
    "job_id": _ID,
    "name": _STRING,
    "command": {"oneOf": [_STRING, {"type": "array", "items": _STRING}]},
    "cwd": _MAYBE,
    "sandbox": {"enum": ["on", "off"]},
    "on_restart": {"enum": ["end", "keep"]},
    "status": {"enum": list(JOB_STATUSES)},
    "queue": _STRING,
    "position": {**_MAYBE_INTEGER, "description": "from 1; null unless it waits"},
    "priority": {"type": "integer"},
    "exit_code": _MAYBE_INTEGER,
    "signal": _MAYBE_INTEGER,
    "error": _MAYBE,
    "cpu_s": {"type": ["number", "null"]},
    "max_rss_bytes": _MAYBE_INTEGER,
    "kill_failures": {"type": "integer", "description": "kills that had no effect, and are tried again"},
    "attempt": {"type": "integer", "description": "how often it was claimed"},
    "retries": {"type": "integer"},
    "failures": {"type": "integer", "description": "tries that have failed"},
    "version": {"type": "integer"},
    "cancellation_status": {"enum": [None, "Requested", "Cancelled"]},
    "cancelled_by": _MAYBE,
    "created_at": _TIME,
    "run_at": _MAYBE_TIME,
    "started_at": _MAYBE_TIME,
    "completed_at": _MAYBE_TIME,
    "metadata": {"type": "object"},
}

HAND_WRITTEN: dict[str, Any] = {
    "Session": _object(
        {
            "id": _ID,
            "owner": _ID,
            "title": _STRING,
            "notes": _MAYBE,
            "repository": _MAYBE,
            "branch": _MAYBE,
            "target_branch": _MAYBE,
            "sandbox": {"type": ["object", "null"]},
            "assignee": _MAYBE,
            "ui_status": {"enum": ["Idle", "InProgress", "NeedsReview", "Archived"]},
            "cancellation_status": {"enum": [None, "Requested", "Cancelled"]},
            "cancelled_at": _MAYBE_TIME,
            "cancelled_by": _MAYBE,
            "process_pid": {"type": ["integer", "null"]},
            "kill_failures": {"type": "integer", "description": "kills of what runs that had no effect so far"},
            "version": {"type": "integer"},
            "created_at": _TIME,
            "updated_at": _TIME,
            "waiting": {"type": "boolean", "description": "in lists: a run of it waits for approval"},
        },
        "waiting",
    ),
    "Run": _object(
        {
            "id": _ID,
            "session": _ID,
            "message": {**_MAYBE, "format": "uuid"},
            "status": {"enum": ["queued", "running", "waiting", "success", "failed", "cancelled"]},
            "attempt": {"type": "integer"},
            "created_at": _TIME,
            "started_at": _MAYBE_TIME,
            "ended_at": _MAYBE_TIME,
            "error": {"type": ["object", "null"], "properties": {"code": _STRING, "id": _STRING}},
        }
    ),
    "Problem": _object(
        {
            "type": _STRING,
            "title": _STRING,
            "status": {"type": "integer"},
            "detail": _STRING,
            "code": {"enum": [error.code for error in ERRORS]},
            "errors": {"type": "array", "items": _object({"pointer": _STRING, "detail": _STRING})},
            "current": {},
        },
        "errors",
        "current",
    ),
    "Cancelled": _object(
        {
            "effect": {"enum": ["requested", "already_terminal", "nothing_to_cancel"]},
            "runs": {"type": "array", "items": _ID},
            "session": {"$ref": _TEMPLATE.format(name="Session")},
        },
        "session",
    ),
    "Approved": _object({"run": {**_MAYBE, "description": "the run that goes on; null while others are open"}}),
    "Files": _object(
        {"path": _STRING, "entries": {"type": "array", "items": {"$ref": _TEMPLATE.format(name="Entry")}}}
    ),
    "Tools": _object(
        {
            "sandbox": _object({"name": _STRING, "confined": {"type": "boolean"}, "reason": _STRING}, "reason"),
            "tools": {
                "type": "array",
                "items": _object(
                    {"name": _STRING, "description": _STRING, "approval": {"enum": ["always", "ask", "never"]}}
                ),
            },
        }
    ),
    "Queue": _object({"queue": {"type": "array", "items": {"$ref": _TEMPLATE.format(name="QueueItem")}}}),
    "Job": _object(_JOB),
    "JobList": _list("Job"),
    "JobQueue": _object(
        {
            "queue": _STRING,
            "running": {"type": "integer"},
            "queued": {"type": "integer"},
            "max_running": {"type": "integer"},
            "jobs": {"type": "array", "items": {"$ref": _TEMPLATE.format(name="Job")}},
        }
    ),
    "QueueState": _object(
        {
            "name": _STRING,
            "max_running": {"type": "integer"},
            "running": {"type": "integer"},
            "queued": {"type": "integer"},
        }
    ),
    "QueueList": _list("QueueState"),
    "QueueCancelled": _object({"queue": _STRING, "removed": {"type": "integer"}, "stopping": {"type": "integer"}}),
    "JobCancelled": _object(
        {
            "success": {"type": "boolean"},
            "job_id": _STRING,
            "previous_status": {"enum": list(JOB_STATUSES)},
            "message": _STRING,
        },
        "previous_status",
    ),
    "Ticket": _object({"ticket": _STRING, "expires_in_s": {"type": "integer"}}),
    "SessionList": _list("Session"),
    "MessageList": _list("Message"),
    "object": {"type": "object"},
}


def openapi(endpoints: list[Endpoint]) -> dict[str, Any]:
    """The HTTP API."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    models: list[type] = [*bodies, Message, Action, ActiveRun, QueueItem, Interrupt, Entry, User, Sent]
    _, components = msgspec.json.schema_components(models, ref_template=_TEMPLATE)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, **HAND_WRITTEN},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}, {}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    names = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [{"name": name, "in": "path", "required": True, "schema": _ID} for name in names]
    parameters += [
        {"name": name, "in": "query", "required": False, "description": text, "schema": _STRING}
        for name, text in endpoint.query.items()
    ]
    problem = {"schema": {"$ref": _TEMPLATE.format(name="Problem")}}
    answers: dict[str, Any] = {"default": _answer("A problem", {"application/problem+json": problem})}
    for status, name in endpoint.answers.items():
        content = {"application/json": {"schema": {"$ref": _TEMPLATE.format(name=name)}}} if name else None
        answers[str(status)] = _answer(endpoint.summary, content)
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": answers,
    }
    if endpoint.body is not None:
        schema = {"schema": {"$ref": _TEMPLATE.format(name=endpoint.body.__name__)}}
        content = {"application/json": schema}
        operation["requestBody"] = {"required": not endpoint.body_optional, "content": content}
    return operation


def _answer(description: str, content: dict[str, Any] | None) -> dict[str, Any]:
    return {"description": description, **({"content": content} if content else {})}


def _server_frame(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    return _object(properties, *optional)


_CURSOR = {"$ref": _TEMPLATE.format(name="Cursor")}
_PLACE: dict[str, Any] = {"session": _ID, "epoch": _STRING}

SERVER_FRAMES: dict[str, dict[str, Any]] = {
    "welcome": _server_frame(
        {
            "re": _STRING,
            "protocol": _STRING,
            "connection": _ID,
            "heartbeatMs": {"type": "integer"},
            "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
            "agui": _STRING,
        }
    ),
    "ack": _server_frame(
        {"re": _STRING, "dup": {"type": "boolean"}, "result": {}, "at": {"oneOf": [_CURSOR, {"type": "null"}]}}
    ),
    "snapshot": _server_frame(
        {
            **_PLACE,
            "seq": {"type": "integer"},
            "reason": {"enum": ["initial", "epoch_changed", "cursor_expired", "cursor_ahead"]},
            "messages": {"type": "array", "items": {"$ref": _TEMPLATE.format(name="Message")}},
            "activeRun": {"oneOf": [{"$ref": _TEMPLATE.format(name="ActiveRun")}, {"type": "null"}]},
            "queue": {"type": "array", "items": {"$ref": _TEMPLATE.format(name="QueueItem")}},
            "interrupts": {"type": "array", "items": {"$ref": _TEMPLATE.format(name="Interrupt")}},
            "open": _object({"messages": {"type": "array"}, "actions": {"type": "array"}}),
            "earlier": {"type": "boolean"},
        },
        "earlier",
    ),
    "events": _server_frame(
        {
            **_PLACE,
            "events": {
                "type": "array",
                "minItems": 1,
                "items": _object({"seq": {"type": "integer"}, "run": _MAYBE, "ts": _TIME, "event": {"type": "object"}}),
            },
        }
    ),
    "caught_up": _server_frame({**_PLACE, "seq": {"type": "integer"}}),
    "error": _server_frame(
        {
            "re": _MAYBE,
            "code": {"enum": [error.code for error in ERRORS]},
            "message": _STRING,
            "field": _STRING,
            "retryable": {"type": "boolean"},
            "retryAfterMs": {"type": "integer"},
            "current": {},
        },
        "field",
        "retryAfterMs",
        "current",
    ),
    "pong": _server_frame({"re": _STRING}),
    "goaway": _server_frame({"reason": _STRING, "reconnectAfterMs": {"type": "integer"}}),
}
"""What the server sends; the tests validate every frame that they see against these."""


def asyncapi() -> dict[str, Any]:
    """The native WebSocket."""
    models: list[type] = [*frames.CLIENT_FRAMES, Cursor, Message, ActiveRun, QueueItem, Interrupt]
    _, components = msgspec.json.schema_components(models, ref_template=_TEMPLATE)
    messages: dict[str, Any] = {}
    for frame in frames.CLIENT_FRAMES:
        tag = str(frame.__struct_config__.tag)
        messages[tag] = {"payload": {"$ref": _TEMPLATE.format(name=frame.__name__)}}
    schemas: dict[str, Any] = dict(components)
    for tag, schema in SERVER_FRAMES.items():
        name = f"Server{tag.title().replace('_', '')}"
        told = {"type": {"const": tag}, **schema["properties"]}
        schemas[name] = {**schema, "properties": told, "required": ["type", *schema["required"]]}
        messages[f"server_{tag}"] = {"payload": {"$ref": _TEMPLATE.format(name=name)}}
    refs = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    sent = [name for name in refs if name.startswith("server_")]
    received = [name for name in refs if not name.startswith("server_")]
    channel = {"$ref": "#/channels/socket"}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Holdfast", "version": __version__},
        "channels": {"socket": {"address": "/ws", "messages": refs}},
        "operations": {
            "receive": _async_operation("receive", channel, received),
            "send": _async_operation("send", channel, sent),
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def _async_operation(action: str, channel: dict[str, str], names: list[str]) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/socket/messages/{name}"} for name in names]
    return {"action": action, "channel": channel, "messages": messages}


def page(endpoints: list[Endpoint]) -> str:
    """The API at a glance, without a script."""
    rows = "".join(
        f"<tr><td><code>{html.escape(endpoint.method)}</code></td><td><code>{html.escape(endpoint.path)}</code>"
        f"</td><td>{html.escape(endpoint.summary)}</td></tr>"
        for endpoint in endpoints
    )
    codes = "".join(
        f"<tr><td><code>{error.code}</code></td><td>{problems.STATUS[error.code]}</td>"
        f"<td>{html.escape(error.title)}</td></tr>"
        for error in ERRORS
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Holdfast API</title>"
        '<meta name=viewport content="width=device-width"><h1>Holdfast API</h1>'
        '<p><a href="/docs/openapi.json">OpenAPI 3.1</a> (HTTP), '
        '<a href="/docs/asyncapi.json">AsyncAPI 3</a> (WebSocket at <code>/ws</code>).</p>'
        f"<h2>HTTP</h2><table>{rows}</table><h2>Errors</h2><table>{codes}</table></html>"
    )
