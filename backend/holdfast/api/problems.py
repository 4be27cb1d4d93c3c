"""Errors as HTTP tells them (RFC 9457) and as close codes of a socket."""

import logging
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from holdfast.clock import new_id
from holdfast.domain.errors import FieldError, HoldfastError, Internal, InvalidRequest

log = logging.getLogger("holdfast.http")

STATUS: dict[str, int] = {
    "invalid_frame": 400,
    "invalid_request": 400,
    "unknown_type": 400,
    "hello_required": 400,
    "unsupported_version": 406,
    "too_large": 413,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "session_not_found": 404,
    "run_not_found": 404,
    "run_active": 409,
    "conflict": 409,
    "interrupts_pending": 409,
    "no_open_interrupt": 409,
    "already_resolved": 409,
    "idempotency_conflict": 409,
    "rate_limited": 429,
    "overloaded": 503,
    "unavailable": 503,
    "sandbox_unavailable": 503,
    "internal": 500,
}

CLOSE_BAD_FRAME = 4400
CLOSE_UNAUTHENTICATED = 4401
CLOSE_FORBIDDEN = 4403
CLOSE_VERSION = 4406
CLOSE_HELLO_TIMEOUT = 4408
CLOSE_TOO_FAST = 4429
CLOSE_TOO_BIG = 1009
CLOSE_INTERNAL = 1011
CLOSE_RESTART = 1012


class JsonResponse(Response):
    """A JSON body, encoded by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return msgspec.json.encode(content)


def problem(error: HoldfastError) -> Response:
    """An error as `application/problem+json`."""
    status = STATUS[error.code]
    body: dict[str, Any] = {
        "type": f"urn:holdfast:error:{error.code}",
        "title": error.title,
        "status": status,
        "detail": error.message,
        "code": error.code,
    }
    errors = error.errors
    if not errors and error.field:
        errors = (FieldError("/" + error.field.replace(".", "/"), error.message),)
    if errors:
        body["errors"] = errors
    if error.current is not None:
        body["current"] = error.current
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), status, headers, media_type="application/problem+json")


async def on_holdfast_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for errors of our tree."""
    assert isinstance(error, HoldfastError)
    return problem(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own errors (no such route, wrong method) in the same form."""
    assert isinstance(error, HTTPException)
    body = {
        "type": "about:blank",
        "title": error.detail,
        "status": error.status_code,
        "detail": error.detail,
        "code": "not_found" if error.status_code == 404 else "invalid_request",
    }
    return Response(
        msgspec.json.encode(body),
        error.status_code,
        dict(error.headers or {}),
        media_type="application/problem+json",
    )


async def on_fault(request: Request, error: Exception) -> Response:
    """Our own fault: the log has it under the id that the client is told."""
    return problem(internal(error))


def internal(error: BaseException) -> Internal:
    """An error for the client, with the id under which the log has the cause."""
    error_id = new_id()
    log.error("internal error %s", error_id, exc_info=error)
    return Internal(f"Internal error {error_id}")


def invalid(pointer: str, detail: str) -> InvalidRequest:
    """A body or query with one fault."""
    return InvalidRequest(detail, errors=[FieldError(pointer, detail)])
