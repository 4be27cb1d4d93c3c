"""A turn as the messages of a model: history with its actions, what was cut short, and how to go on after it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from holdfast.agents.calls import as_arguments, as_id, as_name
from holdfast.agents.turn import HistoryAction, HistoryMessage, Turn

GO_ON = (
    "Your last answer was cut off. Go on exactly where it stopped, with the very next character: "
    "no introduction, and repeat nothing of it."
)

_CUT = {
    "cancelled": "Your last answer is incomplete: the user stopped it.",
    "error": "Your last answer is incomplete: an error cut it short.",
    "interrupted": "Your last answer is incomplete: a restart of the server cut it short.",
}

_OUTCOMES = {
    "failed": (("fail", "error"), "Failed"),
    "denied": (("denied", "refused", "not allowed"), "Denied by the user"),
    "cancelled": (("cancel", "stopped"), "Cancelled on the way; it may have done a part"),
    "interrupted": (("interrupt", "not known"), "Interrupted: what it has done is not known"),
}
"""For each outcome that is no success: the words of an output that tell it, and what is said if none does."""

_HEAD_CHARS = 200
"""Where an output tells how it went, it does so at its beginning."""


def conversation(turn: Turn) -> tuple[str | None, list[ModelMessage]]:
    """The prompt to send, and the messages before it; None when these end with what tools gave back.

    An answer that was cut short is followed by a note in the next request. A turn that goes on with an
    answer (because it was cut, was handed over, or waited for approvals) asks the model to do so, unless
    the last thing in it is an action, whose result is the request; when nothing of the answer had been
    said or done, the question is asked again.
    """
    messages = list(turn.history)
    if turn.prompt:
        messages.append(HistoryMessage("user", turn.prompt))
    if turn.said or turn.done:
        messages.append(HistoryMessage("assistant", turn.said, actions=turn.done))
    messages = _joined(messages)
    if not messages:
        return GO_ON, []
    if messages[-1].role == "assistant":
        sent = _as_model_messages(messages)
        return (None if isinstance(sent[-1], ModelRequest) else GO_ON), sent
    note = _note(messages[-2]) if len(messages) > 1 else ""
    return note + messages[-1].content, _as_model_messages(messages[:-1])


def _joined(messages: Sequence[HistoryMessage]) -> list[HistoryMessage]:
    """The messages without empty ones; an answer and what went on with it are one."""
    result: list[HistoryMessage] = []
    for message in messages:
        if result and message.role == "assistant" and result[-1].role == "assistant":
            before = result.pop()
            moved = [replace(action, offset=action.offset + len(before.content)) for action in message.actions]
            content = before.content + message.content
            message = HistoryMessage("assistant", content, message.cut, (*before.actions, *moved))
        if message.content.strip() or (message.role == "assistant" and (message.content or message.actions)):
            result.append(message)
    return result


def _as_model_messages(messages: Sequence[HistoryMessage]) -> list[ModelMessage]:
    result: list[ModelMessage] = []
    ids: set[str] = set()
    before: HistoryMessage | None = None
    for message in messages:
        if message.role == "assistant":
            result.extend(_answer(message, ids))
        else:
            result.append(ModelRequest(parts=[UserPromptPart(_note(before) + message.content)]))
        before = message
    return result


def _answer(message: HistoryMessage, ids: set[str]) -> Iterator[ModelMessage]:
    """Text, call, return, text in their order; `ids` gets the ids of the calls."""
    start = 0
    for action in sorted(message.actions, key=lambda action: action.offset):
        text, start = message.content[start : max(start, action.offset)], max(start, action.offset)
        id = as_id(action.id, ids, len(ids))
        ids.add(id)
        name = as_name(action.name)
        call = ToolCallPart(name, as_arguments(action.input), id)
        yield ModelResponse(parts=[TextPart(text), call] if text.strip() else [call])
        yield ModelRequest(parts=[ToolReturnPart(name, _returned(action), id)])
    rest = message.content[start:]
    if rest.strip() or not message.actions:
        yield ModelResponse(parts=[TextPart(rest)])


def _returned(action: HistoryAction) -> str:
    """What an action gave back, with a word on how it went where that is not said."""
    if action.outcome not in _OUTCOMES:
        return action.output
    words, note = _OUTCOMES[action.outcome]
    head = action.output[:_HEAD_CHARS].lower()
    if any(word in head for word in words):
        return action.output
    return f"{note}. {action.output}".rstrip() if action.outcome != "failed" else f"{note}: {action.output}"


def _note(before: HistoryMessage | None) -> str:
    """What is said before the next message when the one before it was cut short."""
    return f"[{_CUT[before.cut]}]\n\n" if before is not None and before.cut else ""
