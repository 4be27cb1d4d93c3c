"""Who calls: credentials, and the Host and Origin that a request may name.

With `auth=local` every request from this machine with an allowed Host and Origin is the user `local`,
an admin. With `auth=tokens` a bearer token, the login cookie, or for sockets a ticket says who it is.
"""

import base64
import binascii
import ipaddress
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from holdfast.clock import new_id
from holdfast.config import Settings
from holdfast.domain.errors import Forbidden, Unauthenticated
from holdfast.domain.frames import SUBPROTOCOL
from holdfast.domain.users import User
from holdfast.store import users
from holdfast.store.database import Database

COOKIE = "holdfast_token"
TICKET_LIFETIME_S = 30.0
LOCAL_USER = "local"
_TICKET = "ticket."
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def new_token() -> str:
    """A new secret: `hf_` and 48 letters and digits."""
    return "hf_" + "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(48))


class Authenticator:
    """Tells who calls, or that they may not."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._local: User | None = None
        self._hosts = self._allowed_hosts()
        self._origins = {origin.rstrip("/") for origin in _split(settings.allowed_origins)}
        if settings.public_url:
            parts = urlsplit(settings.public_url)
            self._origins.add(f"{parts.scheme}://{parts.netloc}")

    async def identify(self, connection: HTTPConnection) -> User:
        """The user of a request or of a socket's handshake.

        Raises:
            Unauthenticated: no valid credentials.
            Forbidden: the Host or the Origin is not allowed.
        """
        self.check_host(connection.headers)
        header = connection.headers.get("authorization")
        if header is None:
            self.check_origin(connection.headers)
        if self._settings.auth == "local":
            return await self._local_user()
        if (secret := _bearer(header)) is not None:
            return await self._user_of_token(secret)
        if connection.scope["type"] == "websocket" and (ticket := _ticket(connection)) is not None:
            return await self._user_of_ticket(ticket)
        if (cookie := _cookie(connection.headers)) is not None:
            if connection.scope["type"] == "websocket" and "origin" not in connection.headers:
                raise Forbidden("A socket with a cookie needs an Origin")
            return await self._user_of_token(cookie)
        raise Unauthenticated

    def check_host(self, headers: Headers) -> None:
        """Refuse a Host that is not ours: the page of another site may have pointed its name at us."""
        if self._hosts is None:
            return
        name = _host_name(headers.get("host", ""))
        if name not in self._hosts:
            raise Forbidden("The Host is not allowed")

    def check_origin(self, headers: Headers) -> None:
        """Refuse an Origin that is neither our own nor allowed."""
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return
        parts = urlsplit(origin)
        if parts.scheme in ("http", "https") and parts.netloc == headers.get("host"):
            return
        raise Forbidden("The Origin is not allowed")

    async def login(self, secret: str) -> User:
        """Whose token this is.

        Raises:
            Unauthenticated: nobody's.
        """
        return await self._user_of_token(secret)

    async def ticket(self, user: User) -> str:
        """A new ticket, good for one socket within 30 s."""
        secret = secrets.token_bytes(32)
        text = base64.urlsafe_b64encode(secret).decode().rstrip("=")
        await self._database.transact(lambda tx: users.create_ticket(tx, user.id, text, TICKET_LIFETIME_S))
        return text

    async def _local_user(self) -> User:
        if self._local is None:
            self._local = await self._database.transact(lambda tx: users.ensure_user(tx, LOCAL_USER, "admin", new_id()))
        return self._local

    async def _user_of_token(self, secret: str) -> User:
        async with self._database.read() as conn:
            user = await users.user_of_token(conn, secret, await self._database.now(conn))
        if user is None:
            raise Unauthenticated
        return user

    async def _user_of_ticket(self, secret: str) -> User:
        user = await self._database.transact(lambda tx: users.take_ticket(tx, secret))
        if user is None:
            raise Unauthenticated
        return user

    def _allowed_hosts(self) -> set[str] | None:
        """The names a Host header may have; None: any, since credentials decide alone."""
        settings = self._settings
        named = set(_split(settings.allowed_hosts))
        if settings.public_url:
            named.add(urlsplit(settings.public_url).hostname or "")
        if settings.host not in _LOOPBACK and not named:
            return None
        own = set() if _is_wildcard(settings.host) else {settings.host}
        return {name.lower() for name in named | own | _LOOPBACK}


def offered(connection: HTTPConnection) -> str | None:
    """The subprotocol to answer with, None when the client offers only others.

    A client that offers nothing at all gets `holdfast.v1` without an echo (the empty string).
    """
    protocols: list[str] = connection.scope.get("subprotocols", [])
    if not protocols:
        return ""
    return SUBPROTOCOL if SUBPROTOCOL in protocols else None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _bearer(header: str | None) -> str | None:
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found is not None else None


def _ticket(connection: HTTPConnection) -> str | None:
    for protocol in connection.scope.get("subprotocols", []):
        if protocol.startswith(_TICKET):
            text = protocol[len(_TICKET) :]
            try:
                base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except (ValueError, binascii.Error):
                raise Unauthenticated from None
            return text
    return None
