"""The events of a journal: AG-UI 1.0, as frozen structs told apart by `type`.

Held to the models of the `ag-ui-protocol` package by a test. Only what Holdfast says is here; what a
model's extra fields may carry travels in `metadata`. No field is ever written as null.
"""

from typing import Any, Literal

import msgspec

_encoder = msgspec.json.Encoder()


class _Event(
    msgspec.Struct,
    frozen=True,
    tag_field="type",
    rename="camel",
    omit_defaults=True,
    kw_only=True,
):
    """What all events share: the tag `type`, camelCase names, no nulls."""


class UserMessage(msgspec.Struct, frozen=True, rename="camel"):
    """A user's message inside `RUN_STARTED.input`."""

    id: str
    content: str
    role: Literal["user"] = "user"


class RunInput(msgspec.Struct, frozen=True, rename="camel"):
    """What a run was started with (AG-UI `RunAgentInput`)."""

    thread_id: str
    run_id: str
    messages: tuple[UserMessage, ...] = ()


class RunStarted(_Event, frozen=True, tag="RUN_STARTED"):
    """The first event of a run; `metadata` is `{message, attempt, agent}`."""

    thread_id: str
    run_id: str
    input: RunInput
    parent_run_id: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class TextMessageStart(_Event, frozen=True, tag="TEXT_MESSAGE_START"):
    """The assistant's message exists; `metadata` is the message's metadata."""

    message_id: str
    role: str
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class TextMessageContent(_Event, frozen=True, tag="TEXT_MESSAGE_CONTENT"):
    """One chunk of the answer."""

    message_id: str
    delta: str


class TextMessageEnd(_Event, frozen=True, tag="TEXT_MESSAGE_END"):
    """The message is complete, or cut; `metadata` is its final metadata."""

    message_id: str
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ReasoningStart(_Event, frozen=True, tag="REASONING_START"):
    """A reasoning span opens."""

    message_id: str


class ReasoningMessageStart(_Event, frozen=True, tag="REASONING_MESSAGE_START"):
    """The text of a reasoning span opens."""

    message_id: str
    role: str = msgspec.field(default_factory=lambda: "reasoning")


class ReasoningMessageContent(_Event, frozen=True, tag="REASONING_MESSAGE_CONTENT"):
    """One chunk of reasoning."""

    message_id: str
    delta: str


class ReasoningMessageEnd(_Event, frozen=True, tag="REASONING_MESSAGE_END"):
    """The text of a reasoning span is closed."""

    message_id: str


class ReasoningEnd(_Event, frozen=True, tag="REASONING_END"):
    """The reasoning span is closed."""

    message_id: str


class ToolCallStart(_Event, frozen=True, tag="TOOL_CALL_START"):
    """An action begins; `metadata.action` is `{status: "pending"}`."""

    tool_call_id: str
    tool_call_name: str
    parent_message_id: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ToolCallArgs(_Event, frozen=True, tag="TOOL_CALL_ARGS"):
    """A piece of the action's arguments, as JSON text."""

    tool_call_id: str
    delta: str


class ToolCallEnd(_Event, frozen=True, tag="TOOL_CALL_END"):
    """The action's arguments are complete."""

    tool_call_id: str


class ToolCallResult(_Event, frozen=True, tag="TOOL_CALL_RESULT"):
    """The one result of an action; `metadata.action` is `{status, outcome}`."""

    message_id: str
    tool_call_id: str
    content: str
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Outcome(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """How a run finished: `success`, `cancelled`, or `interrupt` with what it waits for."""

    type: Literal["success", "cancelled", "interrupt"]
    interrupts: tuple[dict[str, Any], ...] = ()


class TokenUsage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Tokens of one model."""

    input_tokens: int
    output_tokens: int
    model: str | msgspec.UnsetType = msgspec.UNSET


class RunFinished(_Event, frozen=True, tag="RUN_FINISHED"):
    """The run's end; a cancelled one carries `metadata.cancel`."""

    thread_id: str
    run_id: str
    outcome: Outcome
    usage: tuple[TokenUsage, ...] = ()
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class RunError(_Event, frozen=True, tag="RUN_ERROR"):
    """The run's end when it failed; `message` is safe to show."""

    message: str
    code: str
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Custom(_Event, frozen=True, tag="CUSTOM"):
    """An event of Holdfast's own."""

    name: str
    value: dict[str, Any]


Event = (
    RunStarted
    | TextMessageStart
    | TextMessageContent
    | TextMessageEnd
    | ReasoningStart
    | ReasoningMessageStart
    | ReasoningMessageContent
    | ReasoningMessageEnd
    | ReasoningEnd
    | ToolCallStart
    | ToolCallArgs
    | ToolCallEnd
    | ToolCallResult
    | RunFinished
    | RunError
    | Custom
)

EVENT_TYPES: tuple[type[_Event], ...] = Event.__args__  # pyright: ignore[reportAttributeAccessIssue]

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class Recorded(msgspec.Struct, frozen=True):
    """An event at its place in a session's journal.

    `data` is the event as JSON: the very bytes that are stored, published and sent. `ts` is the time
    of the commit, RFC 3339 UTC.
    """

    seq: int
    run: str | None
    ts: str
    data: str


def encode(event: Event) -> str:
    """The event as JSON text, encoded once for store and wire."""
    return _encoder.encode(event).decode()


def decode(data: str | bytes) -> Event:
    """The event that `data` holds.

    Raises:
        msgspec.ValidationError: when it is none of ours.
    """
    return _decoder.decode(data)


def event_type(event: Event) -> str:
    """The AG-UI type of an event, such as `RUN_STARTED`."""
    return event.__struct_config__.tag  # pyright: ignore[reportReturnType]


def chunk_prefix(message_id: str) -> str:
    """What all `TEXT_MESSAGE_CONTENT` events of a message begin with, up to the delta's JSON string."""
    return encode(TextMessageContent(message_id=message_id, delta=""))[:-3]


def encode_chunk(prefix: str, delta: str) -> str:
    """A `TEXT_MESSAGE_CONTENT` event from its `chunk_prefix`: equal to `encode`, at half its cost."""
    return prefix + _encoder.encode(delta).decode() + "}"


def clean_text(text: str) -> str:
    """`text` as every store and client can hold it.

    U+0000 and lone surrogates have no place in PostgreSQL text or in UTF-8; they become U+FFFD.
    """
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
