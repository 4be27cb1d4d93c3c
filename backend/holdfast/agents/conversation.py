"""A turn as the messages of a model: history, what was cut short, and how to go on after it."""

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart

from holdfast.agents.turn import HistoryMessage, Turn

GO_ON = (
    "Your last answer was cut off. Go on exactly where it stopped, with the very next character: "
    "no introduction, and repeat nothing of it."
)

_CUT = {
    "cancelled": "Your last answer is incomplete: the user stopped it.",
    "error": "Your last answer is incomplete: an error cut it short.",
    "interrupted": "Your last answer is incomplete: a restart of the server cut it short.",
}


def conversation(turn: Turn) -> tuple[str, list[ModelMessage]]:
    """The prompt to send, and the messages before it.

    An answer that was cut short is followed by a note in the next request. A turn that goes on with an
    answer (because it was cut, or was handed over) asks the model to do so; when nothing of the answer
    had been said, the question is asked again.
    """
    messages = list(turn.history)
    if turn.prompt:
        messages.append(HistoryMessage("user", turn.prompt))
    if turn.said:
        messages.append(HistoryMessage("assistant", turn.said))
    messages = _joined(messages)
    if messages and messages[-1].role == "assistant":
        return GO_ON, _as_model_messages(messages)
    if not messages:
        return GO_ON, []
    note = _note(messages[-2]) if len(messages) > 1 else ""
    return note + messages[-1].content, _as_model_messages(messages[:-1])


def _joined(messages: list[HistoryMessage]) -> list[HistoryMessage]:
    """The messages without empty ones; an answer and what went on with it are one."""
    result: list[HistoryMessage] = []
    for message in messages:
        if result and message.role == "assistant" and result[-1].role == "assistant":
            before = result.pop()
            message = HistoryMessage("assistant", before.content + message.content, message.cut)
        if message.content.strip() or (message.role == "assistant" and message.content):
            result.append(message)
    return result


def _as_model_messages(messages: list[HistoryMessage]) -> list[ModelMessage]:
    result: list[ModelMessage] = []
    before: HistoryMessage | None = None
    for message in messages:
        if message.role == "assistant":
            result.append(ModelResponse(parts=[TextPart(message.content)]))
        else:
            result.append(ModelRequest(parts=[UserPromptPart(_note(before) + message.content)]))
        before = message
    return result


def _note(before: HistoryMessage | None) -> str:
    """What is said before the next message when the one before it was cut short."""
    return f"[{_CUT[before.cut]}]\n\n" if before is not None and before.cut else ""
