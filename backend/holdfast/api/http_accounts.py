"""HTTP: who am I, tickets, login, users and tokens."""

from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response

from holdfast.api import bodies
from holdfast.api.auth import COOKIE, new_token
from holdfast.api.endpoints import Call, Endpoint
from holdfast.api.problems import JsonResponse, invalid
from holdfast.clock import is_id, new_id
from holdfast.domain.errors import NotFound
from holdfast.store import users

_SMALL = 64 * 1024


async def me(call: Call) -> Response:
    """The caller."""
    return JsonResponse(call.user)


async def create_ticket(call: Call) -> Response:
    """A single-use ticket for a WebSocket."""
    await bodies.raw(call.request, _SMALL)
    return JsonResponse({"ticket": await call.services.authenticator.ticket(call.user), "expires_in_s": 30}, 201)


async def list_users(call: Call) -> Response:
    """All users."""
    limit, after = _page(call)
    async with call.services.database.read() as conn:
        items = await users.list_users(conn, after, limit + 1)
    return JsonResponse(_listed(items, limit))


async def create_user(call: Call) -> Response:
    """A new user."""
    body = await bodies.read(call.request, bodies.NewUser, limit=_SMALL)
    user = await call.services.database.transact(lambda tx: users.create_user(tx, body.name, body.role, new_id()))
    return JsonResponse(user, 201)


async def edit_user(call: Call) -> Response:
    """Lock a user out, or let them in again."""
    user_id = _id(call)
    body = await bodies.read(call.request, bodies.UserEdit, limit=_SMALL)
    return JsonResponse(
        await call.services.database.transact(lambda tx: users.set_disabled(tx, user_id, disabled=body.disabled))
    )


async def list_tokens(call: Call) -> Response:
    """All tokens, without their secrets."""
    limit, after = _page(call)
    async with call.services.database.read() as conn:
        items = await users.list_tokens(conn, after, limit + 1)
    return JsonResponse(_listed(items, limit))


async def create_token(call: Call) -> Response:
    """A new token; its secret is told this once."""
    body = await bodies.read(call.request, bodies.NewToken, limit=_SMALL)
    secret = new_token()
    expires = timedelta(seconds=body.expires_s) if body.expires_s else None
    async with call.services.database.read() as conn:
        known = {user["id"] for user in await users.list_users(conn, None, 1_000_000)}
    if body.user not in known:
        raise invalid("/user", "no such user")
    token = await call.services.database.transact(
        lambda tx: users.create_token(tx, body.user, body.name, secret, new_id(), expires)
    )
    return JsonResponse({**token, "token": secret}, 201)


async def revoke_token(call: Call) -> Response:
    """End a token."""
    token_id = _id(call)
    await call.services.database.transact(lambda tx: users.revoke_token(tx, token_id))
    return Response(status_code=204)


async def login(request: Request) -> Response:
    """A cookie for a browser, from a token."""
    services = request.app.state.services
    services.authenticator.check_host(request.headers)
    services.authenticator.check_origin(request.headers)
    body = await bodies.read(request, bodies.Login, limit=_SMALL)
    await services.authenticator.login(body.token)
    response = Response(status_code=204)
    secure = services.settings.public_url.startswith("https:") or request.url.scheme == "https"
    response.set_cookie(COOKIE, body.token, httponly=True, samesite="strict", secure=secure, path="/")
    return response


async def logout(request: Request) -> Response:
    """Forget the cookie."""
    request.app.state.services.authenticator.check_origin(request.headers)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


ENDPOINTS = [
    Endpoint("GET", "/api/me", me, "Who am I", answers={200: "User"}),
    Endpoint("POST", "/api/tickets", create_ticket, "A ticket for a WebSocket", answers={201: "Ticket"}),
    Endpoint("GET", "/api/users", list_users, "List users", admin=True),
    Endpoint("POST", "/api/users", create_user, "Create a user", bodies.NewUser, answers={201: "User"}, admin=True),
    Endpoint("PATCH", "/api/users/{id}", edit_user, "Disable or enable a user", bodies.UserEdit, admin=True),
    Endpoint("GET", "/api/tokens", list_tokens, "List tokens", admin=True),
    Endpoint(
        "POST", "/api/tokens", create_token, "Create a token", bodies.NewToken, answers={201: "object"}, admin=True
    ),
    Endpoint("DELETE", "/api/tokens/{id}", revoke_token, "Revoke a token", answers={204: ""}, admin=True),
]


def _page(call: Call) -> tuple[int, str | None]:
    after = bodies.page_cursor(call.request, 1)
    if after is not None and not is_id(after[0]):
        raise invalid("/cursor", "is not a cursor that this list gave")
    return bodies.page_limit(call.request), after[0] if after else None


def _listed(items: list[dict[str, object]], limit: int) -> dict[str, object]:
    following = bodies.make_cursor(items[limit - 1]["id"]) if len(items) > limit else None
    return {"items": items[:limit], "next": following}


def _id(call: Call) -> str:
    found = call.path("id")
    if not is_id(found):
        raise invalid("/id", "is not a UUID") if not is_id(found.lower()) else NotFound()
    return found
