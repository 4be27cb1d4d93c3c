"""The fold: from the events of a journal to what a person sees.

One set of rules for the store, the API, the snapshot and the tests; the TypeScript client has its
twin in `frontend/src/core/transcript.ts`, and the golden files in `tests/golden/` hold the two
together. Applying the events up to n, or starting from the snapshot at k and applying k+1 to n,
gives the same transcript.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from holdfast.domain import actions
from holdfast.domain import events as ev
from holdfast.domain.actions import Action, Interrupt
from holdfast.domain.tasks import RunStatus


def fresh_metadata(*, streaming: bool = False) -> dict[str, Any]:
    """The four flags that every message carries."""
    return {"streaming": streaming, "cancelled": False, "has_error": False, "interrupted": False}


class Message(msgspec.Struct):
    """One message of a session; `run` is the run that it belongs to."""

    id: str
    session: str
    role: str
    content: str
    metadata: dict[str, Any]
    created_at: str
    run: str | None = None
    actions: list[Action] = []


class ActiveRun(msgspec.Struct, rename="camel"):
    """The run that goes on in a session."""

    run: str
    status: RunStatus
    message: str
    cancel_requested: bool = False


class QueueItem(msgspec.Struct):
    """A message that waits its turn; `position` counts from 1."""

    task: str
    version: int
    content: str
    by: str
    created_at: str
    position: int = 0


class Transcript(msgspec.Struct):
    """A session's state through event `seq`."""

    session: str
    seq: int = 0
    messages: list[Message] = []
    active_run: ActiveRun | None = None
    queue: list[QueueItem] = []
    interrupts: list[Interrupt] = []
    arguments: dict[str, str] = {}
    """The argument text of tool calls that are still being written."""
    tails: dict[str, list[str]] = {}
    """Deltas by message that are not joined to its content yet, so that a chunk costs no copy."""
    thoughts: dict[str, list[str]] = {}
    """The same for reasoning, by run."""

    def apply(self, record: ev.Recorded) -> None:
        """Apply the next event. Events that are not known change nothing but `seq`."""
        self.seq = record.seq
        try:
            event = ev.decode(record.data)
        except msgspec.ValidationError:
            return
        self.apply_event(event, run=record.run, ts=record.ts)

    def apply_all(self, records: Iterable[ev.Recorded]) -> None:
        """Apply events in order."""
        for record in records:
            self.apply(record)

    def apply_event(self, event: ev.Event, *, run: str | None, ts: str) -> None:
        """Apply one event of `run`, committed at `ts`."""
        match event:
            case ev.TextMessageContent(message_id=message_id, delta=delta):
                self.tails.setdefault(message_id, []).append(delta)
            case ev.ReasoningMessageStart():
                if run and self._has_reasoning(run):
                    self.thoughts.setdefault(run, []).append("\n\n")
            case ev.ReasoningMessageContent(delta=delta):
                if run:
                    self.thoughts.setdefault(run, []).append(delta)
            case ev.TextMessageStart() | ev.TextMessageEnd():
                self._apply_message(event, run, ts)
            case ev.RunStarted() | ev.RunFinished() | ev.RunError():
                self._apply_run(event, ts)
            case ev.ToolCallStart() | ev.ToolCallArgs() | ev.ToolCallEnd() | ev.ToolCallResult():
                self._apply_action(event, ts)
            case ev.Custom(name=name, value=value):
                self._apply_custom(name, value, run)
            case ev.ReasoningStart() | ev.ReasoningMessageEnd() | ev.ReasoningEnd():
                pass

    def settle(self) -> None:
        """Join what has come to the messages that it belongs to."""
        for message_id, deltas in self.tails.items():
            if message := self.message(message_id):
                message.content += "".join(deltas)
        for run, deltas in self.thoughts.items():
            if message := self._of_run(run):
                message.metadata["reasoning"] = message.metadata.get("reasoning", "") + "".join(deltas)
        self.tails, self.thoughts = {}, {}

    def message(self, message_id: str) -> Message | None:
        """The message with this id; the newest are looked at first."""
        return next((message for message in reversed(self.messages) if message.id == message_id), None)

    def open_messages(self) -> list[str]:
        """The ids of messages that are half streamed."""
        return [message.id for message in self.messages if message.metadata.get("streaming")]

    def open_actions(self) -> list[str]:
        """The ids of actions without a result."""
        return [action.id for message in self.messages for action in message.actions if action.status == "pending"]

    def snapshot(self) -> dict[str, Any]:
        """The state as it stands in a `snapshot` frame, without session, epoch, seq and reason."""
        self.settle()
        return {
            "messages": self.messages,
            "activeRun": self.active_run,
            "queue": self.queue,
            "interrupts": self.interrupts,
            "open": {"messages": self.open_messages(), "actions": self.open_actions()},
        }

    def _of_run(self, run: str | None) -> Message | None:
        return next((m for m in reversed(self.messages) if m.run == run and m.role == "assistant"), None)

    def _has_reasoning(self, run: str) -> bool:
        message = self._of_run(run)
        return bool(self.thoughts.get(run)) or bool(message and message.metadata.get("reasoning"))

    def _apply_message(self, event: ev.TextMessageStart | ev.TextMessageEnd, run: str | None, ts: str) -> None:
        self.settle()
        message = self.message(event.message_id)
        metadata = dict(event.metadata) if event.metadata is not msgspec.UNSET else None
        if isinstance(event, ev.TextMessageStart):
            if message is None:
                metadata = metadata or fresh_metadata(streaming=True)
                self.messages.append(Message(event.message_id, self.session, event.role, "", metadata, ts, run, []))
        elif message and metadata is not None:
            message.metadata = metadata

    def _apply_run(self, event: ev.RunStarted | ev.RunFinished | ev.RunError, ts: str) -> None:
        if not isinstance(event, ev.RunStarted):
            self._end_run(event)
            return
        for said in event.input.messages:
            if self.message(said.id) is None:
                self.messages.append(
                    Message(said.id, self.session, "user", said.content, fresh_metadata(), ts, event.run_id, [])
                )
        self.queue = [item for item in self.queue if item.task != event.run_id]
        self._number_queue()
        metadata = event.metadata if event.metadata is not msgspec.UNSET else {}
        self.active_run = ActiveRun(event.run_id, "running", metadata.get("message", ""))
        self.interrupts = []

    def _end_run(self, event: ev.RunFinished | ev.RunError) -> None:
        if isinstance(event, ev.RunFinished) and event.outcome.type == "interrupt":
            self.interrupts = actions.interrupts_of(event)
            if self.active_run:
                self.active_run.status = "waiting"
        else:
            self.active_run = None

    def _apply_action(
        self, event: ev.ToolCallStart | ev.ToolCallArgs | ev.ToolCallEnd | ev.ToolCallResult, ts: str
    ) -> None:
        if isinstance(event, ev.ToolCallStart):
            message = self.message(event.parent_message_id or "")
            if message:
                message.actions.append(actions.begun(event, len(message.actions), ts))
            return
        action = self._action(event.tool_call_id)
        if action is None:
            return
        if isinstance(event, ev.ToolCallArgs):
            self.arguments[action.id] = self.arguments.get(action.id, "") + event.delta
        elif isinstance(event, ev.ToolCallEnd):
            action.input = actions.parsed(self.arguments.pop(action.id, ""))
        else:
            actions.end(action, event, ts)

    def _action(self, action_id: str) -> Action | None:
        found = (a for m in reversed(self.messages) for a in m.actions if a.id == action_id)
        return next(found, None)

    def _apply_custom(self, name: str, value: dict[str, Any], run: str | None) -> None:
        if name == "queue.changed":
            self._apply_queue(value)
        elif name == "action.output":
            if action := self._action(value.get("toolCallId", "")):
                action.live = actions.newest(action.live + value.get("text", ""))
        elif name == "interrupt.resolved":
            self._resolve(value.get("id", ""))
        elif name == "history.shortened":
            if message := self._of_run(run):
                message.metadata = {**message.metadata, "shortened": value}
        elif self.active_run is None:
            return
        elif name == "run.cancel_requested":
            self.active_run.cancel_requested = True
        elif name == "run.requeued":
            self.active_run.status = "queued"
        elif name == "run.resumed":
            self.active_run.status = "running"

    def _resolve(self, interrupt: str) -> None:
        """A question was answered; with the last one the run that waited has ended."""
        self.interrupts = [one for one in self.interrupts if one.id != interrupt]
        if not self.interrupts and self.active_run and self.active_run.status == "waiting":
            self.active_run = None

    def _apply_queue(self, value: dict[str, Any]) -> None:
        removed = set(value.get("removed", ()))
        items = {item.task: item for item in self.queue if item.task not in removed}
        for new in value.get("items", ()):
            items[new["task"]] = msgspec.convert({**new, "position": 0}, QueueItem)
        self.queue = []
        for place in value.get("order", ()):
            if item := items.get(place["task"]):
                item.version = place["version"]
                self.queue.append(item)
        self._number_queue()

    def _number_queue(self) -> None:
        for position, item in enumerate(self.queue, start=1):
            item.position = position
