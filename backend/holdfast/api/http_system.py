"""HTTP: health, readiness, metrics."""

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from holdfast.api.problems import JsonResponse
from holdfast.domain.errors import Forbidden
from holdfast.store.gates import waiting
from holdfast.store.health import answers

_CHECK_S = 2.0


async def health(request: Request) -> Response:
    """The process and the database; 503 when the database does not answer."""
    database = await answers(request.app.state.services.database, _CHECK_S)
    body = {"status": "ok" if database else "unavailable", "database": database}
    return JsonResponse(body, 200 if database else 503)


async def ready(request: Request) -> Response:
    """Whether this node wants requests; 503 when it drains, or the database does not answer."""
    services = request.app.state.services
    reason = None
    if services.draining:
        reason = "draining"
    elif not await answers(services.database, _CHECK_S):
        reason = "database"
    body = {"status": "ready" if reason is None else "not ready", "reason": reason}
    return JsonResponse(body, 200 if reason is None else 503)


async def metrics(request: Request) -> Response:
    """Prometheus metrics; with `auth=tokens` for admins alone."""
    services = request.app.state.services
    user = await services.authenticator.identify(request)
    if not user.is_admin:
        raise Forbidden("Only an admin may do this")
    async with services.database.read() as conn:
        services.metrics.waiting = await waiting(conn)
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)
