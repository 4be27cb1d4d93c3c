"""Reading requests: bodies, queries and headers, with all faults of a body told at once."""

import base64
import binascii
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec
from starlette.requests import Request

from holdfast.api.problems import invalid
from holdfast.domain.errors import FieldError, InvalidRequest, TooLarge
from holdfast.domain.frames import IfBusy, Key, Reason, Version, explain_validation

T = TypeVar("T", bound=msgspec.Struct)

_DEEPEST = 64

Text = Annotated[str, msgspec.Meta(max_length=500)]
Notes = Annotated[str, msgspec.Meta(max_length=100_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Uuid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all bodies share: unknown fields are refused."""


class NewSession(Body, frozen=True):
    """`POST /api/sessions`."""

    title: Text = ""
    notes: Notes | None = None
    repository: Text | None = None
    branch: Text | None = None
    target_branch: Text | None = None
    sandbox: dict[str, Any] | None = None
    assignee: Uuid | None = None


class SessionEdit(Body, frozen=True):
    """`PATCH /api/sessions/{id}`; what is not named stays as it is."""

    title: Text | msgspec.UnsetType = msgspec.UNSET
    notes: Notes | msgspec.UnsetType | None = msgspec.UNSET
    repository: Text | msgspec.UnsetType | None = msgspec.UNSET
    branch: Text | msgspec.UnsetType | None = msgspec.UNSET
    target_branch: Text | msgspec.UnsetType | None = msgspec.UNSET
    sandbox: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    assignee: Uuid | msgspec.UnsetType | None = msgspec.UNSET
    ui_status: Literal["Idle", "NeedsReview", "Archived", "InProgress"] | msgspec.UnsetType = msgspec.UNSET
    version: Version | msgspec.UnsetType = msgspec.UNSET


class NewMessage(Body, frozen=True):
    """`POST /api/sessions/{id}/messages`."""

    content: Annotated[str, msgspec.Meta(min_length=1)]
    key: Key | None = None
    ifBusy: IfBusy = "queue"  # noqa: N815


class CancelBody(Body, frozen=True):
    """`POST /api/sessions/{id}/cancel` and `/api/runs/{id}/cancel`."""

    reason: Reason | None = None


class ContinueBody(Body, frozen=True):
    """`POST /api/runs/{id}/continue`."""

    key: Key | None = None


class Answered(Body, frozen=True):
    """The answer to one question, as in the `approve` frame."""

    interruptId: Uuid  # noqa: N815
    approved: bool
    editedArgs: dict[str, Any] | None = None  # noqa: N815
    reason: Reason | None = None
    always: bool = False


class ApproveBody(Body, frozen=True):
    """`POST /api/runs/{id}/approve`."""

    decisions: Annotated[list[Answered], msgspec.Meta(min_length=1, max_length=100)]
    key: Key | None = None


class QueueBody(Body, frozen=True):
    """`POST /api/sessions/{id}/queue`: the `queue` frame's fields."""

    op: Literal["move", "edit", "remove", "swap"]
    task: Uuid
    version: Version
    position: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    content: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    other: Uuid | None = msgspec.field(default=None, name="with")
    withVersion: Version | None = None  # noqa: N815


class QueueSwap(Body, frozen=True):
    """`POST /api/queue/swap`."""

    a: Uuid
    b: Uuid
    version_a: Version
    version_b: Version


class NewUser(Body, frozen=True):
    """`POST /api/users`."""

    name: Name
    role: Literal["admin", "user"] = "user"


class UserEdit(Body, frozen=True):
    """`PATCH /api/users/{id}`."""

    disabled: bool


class NewToken(Body, frozen=True):
    """`POST /api/tokens`."""

    name: Name
    user: Uuid
    expires_s: Annotated[int, msgspec.Meta(ge=1, le=10 * 365 * 86400)] | None = None


class Login(Body, frozen=True):
    """`POST /api/login`."""

    token: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


async def raw(request: Request, limit: int) -> bytes:
    """The body's bytes.

    Raises:
        TooLarge: more than `limit`.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"The body may have at most {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def read(request: Request, kind: type[T], *, limit: int, optional: bool = False) -> T:
    """The body as `kind`.

    Raises:
        TooLarge: more than `limit` bytes.
        InvalidRequest: not JSON, or with faults; all of them are named.
    """
    data = await raw(request, limit)
    if optional and not data.strip():
        return kind()
    return parse(data, kind)


def parse(data: bytes, kind: type[T]) -> T:
    """`data` as `kind`; see `read`."""
    try:
        result = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as first:
        raise _all_faults(data, kind, first) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidRequest("The body is not JSON", errors=[FieldError("", "not JSON")]) from None
    if fault := unstorable(result):
        raise InvalidRequest("The body has text that cannot be stored", errors=[fault])
    return result


def unstorable(value: Any, pointer: str = "", depth: int = 0) -> FieldError | None:
    """The first part of `value` that no database keeps: U+0000, half a surrogate pair, or nesting without an end."""
    if depth > _DEEPEST:
        return FieldError(pointer[:200], f"must not be nested deeper than {_DEEPEST}")
    if isinstance(value, str):
        if "\x00" in value:
            return FieldError(pointer, "U+0000 is not allowed")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            return FieldError(pointer, "half a surrogate pair is not allowed")
        return None
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        items: Any = value.items()
        pairs = [(key, part) for key, part in items if part is not msgspec.UNSET]
        faults = (unstorable(key, pointer) or unstorable(part, f"{pointer}/{key}", depth + 1) for key, part in pairs)
        return next((fault for fault in faults if fault), None)
    if isinstance(value, list):
        parts: list[Any] = value
        faults = (unstorable(part, f"{pointer}/{place}", depth + 1) for place, part in enumerate(parts))
        return next((fault for fault in faults if fault), None)
    return None


def _all_faults(data: bytes, kind: type[msgspec.Struct], first: msgspec.ValidationError) -> InvalidRequest:
    """Msgspec stops at the first fault; look at each field by itself."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return InvalidRequest("The body is not JSON", errors=[FieldError("", "not JSON")])
    if not isinstance(value, dict):
        message, _ = explain_validation(first)
        return InvalidRequest("The body is not valid", errors=[FieldError("", message)])
    given: dict[str, Any] = value
    faults: list[FieldError] = []
    hints = get_type_hints(kind, include_extras=True)
    known = {info.encode_name: info for info in msgspec.structs.fields(kind)}
    for name in given:
        if name not in known:
            faults.append(FieldError(f"/{name}", "unknown field"))
    for name, info in known.items():
        if name not in given:
            if info.required:
                faults.append(FieldError(f"/{name}", "required"))
            continue
        try:
            msgspec.convert(given[name], hints[info.name])
        except msgspec.ValidationError as error:
            message, path = explain_validation(error)
            faults.append(FieldError(_pointer(f"{name}.{path}" if path else name), message))
    if not faults:
        message, path = explain_validation(first)
        faults = [FieldError(_pointer(path or ""), message)]
    return InvalidRequest("The body is not valid", errors=faults)


def _pointer(path: str) -> str:
    """The JSON pointer (RFC 6901) of a path as msgspec writes it, such as `decisions[0].approved`."""
    path = path.replace("[...]", "")  # So it writes a key of an object; which one it does not say.
    return "/" + path.rstrip(".").replace("]", "").replace("[", ".").replace("..", ".").replace(".", "/")


def page_limit(request: Request) -> int:
    """`?limit=`: 50 unless told, 100 at most."""
    text = request.query_params.get("limit")
    if text is None:
        return 50
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise invalid("/limit", "must be a whole number from 1 to 100")
    return min(int(text), 100)


def page_cursor(request: Request, parts: int) -> list[str] | None:
    """`?cursor=`: what `next` of the page before said, taken apart."""
    text = request.query_params.get("cursor")
    if text is None:
        return None
    try:
        found = base64.urlsafe_b64decode(text.encode("ascii") + b"==").decode().split("|")
    except (ValueError, binascii.Error):
        found = []
    if len(found) != parts:
        raise invalid("/cursor", "is not a cursor that this list gave")
    return found


def make_cursor(*parts: object) -> str:
    """An opaque cursor for the next page."""
    return base64.urlsafe_b64encode("|".join(map(str, parts)).encode()).decode().rstrip("=")


def if_match(request: Request) -> int | None:
    """The version that `If-Match` names; None when there is none, or it is `*`."""
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return None
    inner = text.strip().removeprefix("W/").strip('"')
    if inner.isascii() and inner.isdigit() and len(inner) <= 18:
        return int(inner)
    raise invalid("/If-Match", 'must be an ETag such as "3"')
