"""HTTP: health, readiness, metrics."""

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from holdfast.api.problems import JsonResponse
from holdfast.domain.errors import Forbidden, HoldfastError

_CHECK_S = 2.0


async def health(request: Request) -> Response:
    """The process and the database; 503 when the database does not answer."""
    database = await _database_answers(request)
    body = {"status": "ok" if database else "unavailable", "database": database}
    return JsonResponse(body, 200 if database else 503)


async def ready(request: Request) -> Response:
    """Whether this node wants requests; 503 when it drains, or the database does not answer."""
    services = request.app.state.services
    reason = None
    if services.draining:
        reason = "draining"
    elif not await _database_answers(request):
        reason = "database"
    body = {"status": "ready" if reason is None else "not ready", "reason": reason}
    return JsonResponse(body, 200 if reason is None else 503)


async def metrics(request: Request) -> Response:
    """Prometheus metrics; with `auth=tokens` for admins alone."""
    services = request.app.state.services
    user = await services.authenticator.identify(request)
    if not user.is_admin:
        raise Forbidden("Only an admin may do this")
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _database_answers(request: Request) -> bool:
    database = request.app.state.services.database
    try:
        async with asyncio.timeout(_CHECK_S), database.read() as conn:
            await conn.execute(text("SELECT 1"))
    except (HoldfastError, TimeoutError):
        return False
    return True
