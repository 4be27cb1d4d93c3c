"""The HTTP API as one table: the routes are made from it, and so is the OpenAPI document."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from holdfast import tracing
from holdfast.context import about
from holdfast.domain.errors import Forbidden
from holdfast.domain.users import User

if TYPE_CHECKING:
    from holdfast.api.app import Services

Handler = Callable[["Call"], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request."""

    request: Request
    user: User
    services: "Services"

    def path(self, name: str) -> str:
        """A parameter of the path."""
        return str(self.request.path_params[name])


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path. `answers` are the statuses of success, with what their body is."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[msgspec.Struct] | None = None
    body_optional: bool = False
    query: dict[str, str] = field(default_factory=dict[str, str])
    answers: dict[int, str] = field(default_factory=lambda: {200: "object"})
    admin: bool = False

    def route(self, services: "Services") -> Route:
        """The route that Starlette serves."""

        @functools.wraps(self.handler)
        async def endpoint(request: Request) -> Response:
            user = await services.authenticator.identify(request)
            if self.admin and not user.is_admin:
                raise Forbidden("Only an admin may do this")
            with about(user=user.id), tracing.span(f"{self.method} {self.path}", user=user.id):
                return await self.handler(Call(request, user, services))

        return Route(self.path, endpoint, methods=[self.method])


def etag(session: dict[str, Any]) -> dict[str, str]:
    """The ETag of a session's version."""
    return {"ETag": f'"{session["version"]}"'}
