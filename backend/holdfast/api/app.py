"""Puts the parts together: the one place that knows them all."""

import contextlib
from collections.abc import AsyncGenerator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from holdfast.agents.builtin import BUILTIN
from holdfast.agents.resolve import ResolvedAgent
from holdfast.agents.sandbox import Sandbox
from holdfast.agents.tools import Toolbox
from holdfast.api import documents, http_accounts, http_actions, http_jobs, http_sessions, http_system, pages, problems
from holdfast.api.auth import Authenticator
from holdfast.api.socket import Sockets
from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.engine.engine import Engine
from holdfast.store.database import Database
from holdfast.telemetry import Metrics

ENDPOINTS = [*http_sessions.ENDPOINTS, *http_actions.ENDPOINTS, *http_jobs.ENDPOINTS, *http_accounts.ENDPOINTS]


class Services:
    """What one process serves with, and its life: start, drain, stop."""

    def __init__(
        self, settings: Settings, database: Database, agent: ResolvedAgent, toolbox: Toolbox, sandbox: Sandbox | None
    ) -> None:
        self.settings = settings
        self.database = database
        self.engine = Engine(settings, database, agent, toolbox=toolbox, sandbox=sandbox)
        self._connections = contextlib.AsyncExitStack()
        self.authenticator = Authenticator(settings, database)
        self.sockets = Sockets(self.engine, self.authenticator, settings)
        self.metrics = Metrics(self.engine)
        self.metrics.count_sockets = lambda: self.sockets.count
        self.draining = False

    async def connect(self) -> None:
        """Connect the MCP servers, whose tools the engine is to have when it starts.

        Raises:
            McpUnavailable: one cannot be had.
        """
        if not self.settings.mcp:
            return
        from holdfast.agents.mcp import connected  # noqa: PLC0415 - only what is in use is loaded

        workshop = self.engine.workshop
        workshop.toolbox = await self._connections.enter_async_context(connected(self.settings.mcp, workshop.toolbox))

    async def start(self) -> None:
        """Start the engine; the schema must be there."""
        await self.database.load_epoch()
        await self.engine.start()

    async def drain(self) -> None:
        """Stop claiming, send the clients away, let the runs end or hand them back."""
        self.draining = True
        self.engine.stop_claiming()
        await self.sockets.drain()
        await self.engine.stop(self.settings.drain_s)

    async def stop(self) -> None:
        """Stop what drain has not stopped, and close the database."""
        await self.engine.stop()
        await self._connections.aclose()
        await self.database.close()


def create_app(
    settings: Settings,
    database: Database,
    agent: ResolvedAgent,
    toolbox: Toolbox = BUILTIN,
    sandbox: Sandbox | None = None,
) -> Starlette:
    """The ASGI application of one process."""
    services = Services(settings, database, agent, toolbox, sandbox)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        await services.start()
        try:
            yield
        finally:
            await services.stop()

    app = Starlette(
        routes=_routes(services),
        lifespan=lifespan,
        middleware=[Middleware(pages.Guard, authenticator=services.authenticator)],
        exception_handlers={
            HoldfastError: problems.on_holdfast_error,
            HTTPException: problems.on_http_exception,
            Exception: problems.on_fault,
        },
    )
    app.state.services = services
    return app


def _routes(services: Services) -> list[BaseRoute]:
    openapi, asyncapi = documents.openapi(ENDPOINTS), documents.asyncapi()

    async def docs(request: Request) -> Response:
        return HTMLResponse(documents.page(ENDPOINTS))

    async def openapi_json(request: Request) -> Response:
        return problems.JsonResponse(openapi)

    async def asyncapi_json(request: Request) -> Response:
        return problems.JsonResponse(asyncapi)

    return [
        WebSocketRoute("/ws", services.sockets),
        *(endpoint.route(services) for endpoint in ENDPOINTS),
        Route("/api/login", http_accounts.login, methods=["POST"]),
        Route("/api/logout", http_accounts.logout, methods=["POST"]),
        Route("/health", http_system.health),
        Route("/ready", http_system.ready),
        Route("/metrics", http_system.metrics),
        Route("/docs", docs),
        Route("/docs/openapi.json", openapi_json),
        Route("/docs/asyncapi.json", asyncapi_json),
        Route("/assets/{path:path}", pages.asset),
        Route("/", pages.index),
        Route("/s/{path:path}", pages.index),
        Route("/jobs", pages.index),
        Route("/jobs/{path:path}", pages.index),
    ]
