"""The browser UI, as built into the package, and the headers that keep it safe."""

from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.api.auth import Authenticator
from holdfast.api.problems import problem
from holdfast.domain.errors import HoldfastError

UI = Path(__file__).parent.parent / "ui"

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_YEAR = "public, max-age=31536000, immutable"


async def index(request: Request) -> Response:
    """The page; every address of the UI is the same page."""
    path = UI / "index.html"
    if not path.is_file():
        return PlainTextResponse("The UI is not built. Run `make run`, or use the API under /docs.\n", 503)
    return FileResponse(path, headers={"Cache-Control": "no-cache"})


async def asset(request: Request) -> Response:
    """A file of the built UI; its name carries its hash."""
    path = (UI / "assets" / request.path_params["path"]).resolve()
    if not path.is_relative_to(UI.resolve() / "assets") or not path.is_file():
        return PlainTextResponse("Not found\n", 404)
    return FileResponse(path, headers={"Cache-Control": _YEAR})


class Guard:
    """Checks the Host of every request and puts the safety headers on every answer."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI middleware."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._authenticator.check_host(Headers(scope=scope))
        except HoldfastError as error:
            await problem(error)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)
