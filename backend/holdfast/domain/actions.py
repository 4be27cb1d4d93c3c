"""One action of a message, from its events to what a person sees of it; its twin is `core/actions.ts`."""

import json
from typing import Any

import msgspec

from holdfast.domain import events as ev

LONGEST_LIVE = 65_536
"""So much of the live output is kept, in code points; the oldest goes first."""


class Action(msgspec.Struct):
    """One tool call of a message. `output` is null until its result came.

    `offset` is how many characters of the message's text stand before it; `live` is what it has told
    while it ran; `link`, `diff` and `exit_code` are what its result says of itself.
    """

    id: str
    type: str
    position: int
    input: dict[str, Any]
    output: Any = None
    status: str = "pending"
    outcome: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    offset: int | None = None
    live: str = ""
    link: str | None = None
    diff: str | None = None
    exit_code: int | None = None


class Interrupt(msgspec.Struct):
    """A question that a run waits for: whether `action` may call `tool` with `args`."""

    id: str
    run: str
    action: str
    tool: str
    args: dict[str, Any]
    reason: str
    expires_at: str | None


def begun(event: ev.ToolCallStart, position: int, ts: str) -> Action:
    """The action that a TOOL_CALL_START begins, at its `position` among those of its message."""
    told = event.metadata if event.metadata is not msgspec.UNSET else {}
    offset = told.get("offset")
    return Action(event.tool_call_id, event.tool_call_name, position, {}, started_at=ts, offset=offset)


def end(action: Action, event: ev.ToolCallResult, ts: str) -> None:
    """Give an action its result."""
    metadata = event.metadata if event.metadata is not msgspec.UNSET else {}
    told: dict[str, Any] = metadata.get("action", {})
    action.output, action.ended_at = event.content, ts
    action.input = told.get("input", action.input)
    action.status, action.outcome = told.get("status", "success"), told.get("outcome", "success")
    action.link, action.diff, action.exit_code = told.get("link"), told.get("diff"), told.get("exit_code")


def newest(text: str) -> str:
    """What is kept of live output."""
    return text[-LONGEST_LIVE:]


def parsed(text: str) -> dict[str, Any]:
    """The arguments of a tool call, as written by the model."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {"arguments": text}
    return value if isinstance(value, dict) else {"arguments": value}


def interrupts_of(event: ev.RunFinished) -> list[Interrupt]:
    """What a run that has finished so waits for."""
    return [
        Interrupt(
            asked["id"],
            event.run_id,
            asked.get("toolCallId", ""),
            asked.get("metadata", {}).get("tool", ""),
            asked.get("metadata", {}).get("args", {}),
            asked.get("message", ""),
            asked.get("expiresAt"),
        )
        for asked in event.outcome.interrupts
    ]
