"""The frames of the native WebSocket, both ways.

What a client sends is decoded into one of the structs below, told apart by `type`; unknown fields,
types and values are errors that name the field. What the server sends is built here as JSON text.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from holdfast.domain.cursors import Cursor
from holdfast.domain.errors import HoldfastError, InvalidFrame, UnknownType
from holdfast.domain.events import Recorded

PROTOCOL = "1.0"
SUBPROTOCOL = "holdfast.v1"

FrameId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
SessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Reason = Annotated[str, msgspec.Meta(max_length=500)]
Version = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
IfBusy = Literal["queue", "reject", "interrupt"]


class _Frame(msgspec.Struct, frozen=True, tag_field="type", rename="camel", forbid_unknown_fields=True):
    """What all client frames share: the tag `type` and an `id`, unique in the connection."""

    id: FrameId


class ClientInfo(msgspec.Struct, frozen=True):
    """What a client calls itself."""

    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    version: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Hello(_Frame, frozen=True, tag="hello"):
    """The first frame."""

    protocol: str
    client: ClientInfo | None = None


class Subscribe(_Frame, frozen=True, tag="subscribe"):
    """Follow a session from a cursor, or from a snapshot."""

    session: SessionId
    cursor: Cursor | None = None


class Unsubscribe(_Frame, frozen=True, tag="unsubscribe"):
    """Stop following a session."""

    session: SessionId


class Send(_Frame, frozen=True, tag="send"):
    """A user's message."""

    session: SessionId
    content: Annotated[str, msgspec.Meta(min_length=1)]
    key: Key | None = None
    if_busy: IfBusy = "queue"


class Cancel(_Frame, frozen=True, tag="cancel"):
    """Stop a run, or all that is active or queued in the session."""

    session: SessionId
    run: str | None = None
    reason: Reason | None = None


class Decision(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The answer to one interrupt; `always` asks no more for this tool in this session."""

    interrupt_id: str
    approved: bool
    edited_args: dict[str, Any] | None = None
    reason: Reason | None = None
    always: bool = False


class Approve(_Frame, frozen=True, tag="approve"):
    """Answers to the interrupts of a run."""

    session: SessionId
    run: str
    decisions: Annotated[list[Decision], msgspec.Meta(min_length=1, max_length=100)]
    key: Key | None = None


class Queue(_Frame, frozen=True, tag="queue"):
    """A change of the session's queue, based on `version` of the item `task`."""

    session: SessionId
    op: Literal["move", "edit", "remove", "swap"]
    task: str
    version: Version
    position: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    content: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    other: str | None = msgspec.field(default=None, name="with")
    with_version: Version | None = None


class Ping(_Frame, frozen=True, tag="ping"):
    """Are you there? Answered by `pong`."""


ClientFrame = Hello | Subscribe | Unsubscribe | Send | Cancel | Approve | Queue | Ping
CLIENT_FRAMES: tuple[type[_Frame], ...] = ClientFrame.__args__  # pyright: ignore[reportAttributeAccessIssue]
_TYPES = frozenset(str(frame.__struct_config__.tag) for frame in CLIENT_FRAMES)

_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_encoder = msgspec.json.Encoder()
_NEEDS = {"move": ("position",), "edit": ("content",), "remove": (), "swap": ("other", "with_version")}
_WIRE_NAMES = {"other": "with", "with_version": "withVersion"}


class BadFrame(Exception):
    """Not a JSON object at all: the peer does not speak the protocol (close 4400)."""


def frame_id(text: str) -> str | None:
    """The `id` of a frame that may be wrong otherwise, so that the error can name it.

    Raises:
        BadFrame: when `text` is no JSON object.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadFrame("not JSON") from error
    if not isinstance(value, dict):
        raise BadFrame("not a JSON object")
    found: Any = value.get("id")
    return found if isinstance(found, str) and 1 <= len(found) <= 128 else None


def decode(text: str) -> ClientFrame:
    """The frame that `text` holds.

    Raises:
        BadFrame: no JSON object.
        UnknownType: a `type` that is not known.
        InvalidFrame: a field is missing, unknown or wrong; `field` names it.
    """
    try:
        frame = _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise _explain(text, error) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadFrame("not JSON") from error
    if isinstance(frame, Queue):
        for name in _NEEDS[frame.op]:
            if getattr(frame, name) is None:
                field = _WIRE_NAMES.get(name, name)
                raise InvalidFrame(f"Field `{field}` is required for op `{frame.op}`", field=field)
    return frame


def _explain(text: str, error: msgspec.ValidationError) -> HoldfastError:
    frame_id(text)
    value = msgspec.json.decode(text)
    kind: Any = value.get("type")
    if isinstance(kind, str) and kind not in _TYPES:
        return UnknownType(f"Unknown frame type `{kind[:64]}`", field="type")
    message, field = explain_validation(error)
    if kind is None:
        field = "type"
    return InvalidFrame(message, field=field)


def explain_validation(error: msgspec.ValidationError) -> tuple[str, str | None]:
    """Msgspec's message in our words, and the path of the field, dotted (`cursor.seq`)."""
    text = str(error)
    message, _, path = text.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".") or None
    if "field `" in message:
        name = message.split("field `", 1)[1].split("`", 1)[0]
        field = f"{field}.{name}" if field else name
    return message, field


def _text(value: Any) -> str:
    return _encoder.encode(value).decode()


def item(record: Recorded) -> str:
    """One element of an `events` frame; `record.data` goes in as it is."""
    run = f'"{record.run}"' if record.run else "null"
    return f'{{"seq":{record.seq},"run":{run},"ts":"{record.ts}","event":{record.data}}}'


def events(session: str, epoch: str, items: Iterable[str]) -> str:
    """An `events` frame from the `item`s in order."""
    return f'{{"type":"events","session":"{session}","epoch":"{epoch}","events":[{",".join(items)}]}}'


def caught_up(session: str, epoch: str, seq: int) -> str:
    """Tells a subscriber that what follows is live."""
    return f'{{"type":"caught_up","session":"{session}","epoch":"{epoch}","seq":{seq}}}'


def snapshot(session: str, epoch: str, seq: int, reason: str, state: dict[str, Any]) -> str:
    """A `snapshot` frame from `Transcript.snapshot()`."""
    head = {"type": "snapshot", "session": session, "epoch": epoch, "seq": seq, "reason": reason}
    return _text({**head, **state})


def welcome(re: str, connection: str, heartbeat_ms: int, limits: dict[str, int]) -> str:
    """The answer to `hello`."""
    return _text(
        {
            "type": "welcome",
            "re": re,
            "protocol": PROTOCOL,
            "connection": connection,
            "heartbeatMs": heartbeat_ms,
            "limits": limits,
            "agui": "1.0",
        }
    )


def ack(re: str, result: Any, *, dup: bool = False, at: Cursor | None = None) -> str:
    """The effect of frame `re` is committed."""
    return _text({"type": "ack", "re": re, "dup": dup, "result": result, "at": at})


def pong(re: str) -> str:
    """The answer to `ping`."""
    return _text({"type": "pong", "re": re})


def goaway(reason: str, reconnect_after_ms: int) -> str:
    """The server is about to close; come back after the given time."""
    return _text({"type": "goaway", "reason": reason, "reconnectAfterMs": reconnect_after_ms})


def error(re: str | None, fault: HoldfastError) -> str:
    """What went wrong with frame `re`, or with the connection."""
    frame: dict[str, Any] = {
        "type": "error",
        "re": re,
        "code": fault.code,
        "message": fault.message,
        "retryable": fault.retryable,
    }
    if fault.field is not None:
        frame["field"] = fault.field
    if fault.retry_after_s is not None:
        frame["retryAfterMs"] = round(fault.retry_after_s * 1000)
    if fault.current is not None:
        frame["current"] = fault.current
    return _text(frame)
