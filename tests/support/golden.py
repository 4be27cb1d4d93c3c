"""Journals to test the fold with, in Python and in TypeScript, and the files that hold them."""

import json
from pathlib import Path
from typing import Any

import msgspec
from holdfast.domain import events as ev
from holdfast.domain.transcript import Transcript, fresh_metadata

FOLDER = Path(__file__).resolve().parents[1] / "golden"
SESSION = "01900000-0000-7000-8000-000000000000"


class Story:
    """Writes a journal event by event."""

    def __init__(self) -> None:
        self.records: list[ev.Recorded] = []

    def tell(self, run: str | None, *events: ev.Event) -> "Story":
        for event in events:
            seq = len(self.records) + 1
            ts = f"2026-01-01T00:00:{seq // 60:02d}.{seq % 60:06d}Z"
            self.records.append(ev.Recorded(seq, run, ts, ev.encode(event)))
        return self

    def queued(self, task: str, content: str, order: list[str]) -> "Story":
        item = {"task": task, "version": 1, "content": content, "by": "u", "created_at": "2026-01-01T00:00:00.000000Z"}
        value = {"items": [item], "order": [{"task": one, "version": 1} for one in order]}
        return self.tell(None, ev.Custom(name="queue.changed", value=value))

    def start(self, run: str, content: str | None) -> "Story":
        said = (ev.UserMessage(f"{run}-user", content),) if content is not None else ()
        started = ev.RunStarted(
            thread_id=SESSION,
            run_id=run,
            input=ev.RunInput(SESSION, run, said),
            metadata={"message": f"{run}-reply", "attempt": 1, "agent": "demo"},
        )
        metadata = fresh_metadata(streaming=True)
        opened = ev.TextMessageStart(message_id=f"{run}-reply", role="assistant", metadata=metadata)
        return self.tell(run, started, opened)

    def say(self, run: str, *deltas: str) -> "Story":
        return self.tell(run, *(ev.TextMessageContent(message_id=f"{run}-reply", delta=one) for one in deltas))

    def reason(self, run: str, span: int, *deltas: str, close: bool = True) -> "Story":
        name = f"{run}-reply:r{span}"
        self.tell(run, ev.ReasoningStart(message_id=name), ev.ReasoningMessageStart(message_id=name))
        self.tell(run, *(ev.ReasoningMessageContent(message_id=name, delta=one) for one in deltas))
        if close:
            self.tell(run, ev.ReasoningMessageEnd(message_id=name), ev.ReasoningEnd(message_id=name))
        return self

    def act(self, run: str, action: str, result: str | None, status: str = "success") -> "Story":
        self.tell(
            run,
            ev.ToolCallStart(tool_call_id=action, tool_call_name="bash", parent_message_id=f"{run}-reply"),
            ev.ToolCallArgs(tool_call_id=action, delta='{"comm'),
            ev.ToolCallArgs(tool_call_id=action, delta='and":"ls"}'),
            ev.ToolCallEnd(tool_call_id=action),
        )
        if result is not None:
            told = {"action": {"status": status, "outcome": "success" if status == "success" else "failed"}}
            self.tell(
                run,
                ev.ToolCallResult(message_id=f"{action}-result", tool_call_id=action, content=result, metadata=told),
            )
        return self

    def hear(self, run: str, action: str, *texts: str) -> "Story":
        values = [{"toolCallId": action, "stream": "stdout", "text": text} for text in texts]
        return self.tell(run, *(ev.Custom(name="action.output", value=value) for value in values))

    def begin(self, run: str, action: str, tool: str, args: str, offset: int = 0) -> "Story":
        metadata = {"action": {"status": "pending"}, "offset": offset}
        return self.tell(
            run,
            ev.ToolCallStart(
                tool_call_id=action, tool_call_name=tool, parent_message_id=f"{run}-reply", metadata=metadata
            ),
            ev.ToolCallArgs(tool_call_id=action, delta=args),
            ev.ToolCallEnd(tool_call_id=action),
        )

    def result(self, run: str, action: str, content: str, **told: Any) -> "Story":
        metadata = {"action": {"status": "success", "outcome": "success", **told}}
        return self.tell(
            run,
            ev.ToolCallResult(message_id=f"{action}-result", tool_call_id=action, content=content, metadata=metadata),
        )

    def wait(self, run: str, *asked: tuple[str, str, str]) -> "Story":
        """The run waits for (interrupt, action, command)."""
        self.tell(run, ev.TextMessageEnd(message_id=f"{run}-reply", metadata=fresh_metadata()))
        interrupts = tuple(
            {
                "id": name,
                "reason": "tool_approval",
                "message": "bash asks first",
                "toolCallId": action,
                "metadata": {"tool": "bash", "args": {"command": command}},
            }
            for name, action, command in asked
        )
        interrupts[0]["expiresAt"] = "2026-01-02T00:00:00.000000Z"
        outcome = ev.Outcome("interrupt", interrupts)
        return self.tell(run, ev.RunFinished(thread_id=SESSION, run_id=run, outcome=outcome))

    def decide(self, interrupt: str, *, approved: bool) -> "Story":
        value = {"id": interrupt, "approved": approved, "by": "u"}
        return self.tell(None, ev.Custom(name="interrupt.resolved", value=value))

    def go_on(self, run: str, parent: str) -> "Story":
        """A run that goes on from one that waited."""
        metadata = {"message": f"{run}-reply", "attempt": 1, "agent": "demo"}
        input_ = ev.RunInput(SESSION, run)
        started = ev.RunStarted(thread_id=SESSION, run_id=run, input=input_, parent_run_id=parent, metadata=metadata)
        opened = fresh_metadata(streaming=True)
        return self.tell(
            run, started, ev.TextMessageStart(message_id=f"{run}-reply", role="assistant", metadata=opened)
        )

    def end(self, run: str, outcome: str = "success", **metadata: Any) -> "Story":
        flags = fresh_metadata() | metadata
        flags |= {"cancelled": outcome == "cancelled", "has_error": outcome == "failed"}
        self.tell(run, ev.TextMessageEnd(message_id=f"{run}-reply", metadata=flags))
        if outcome == "failed":
            return self.tell(run, ev.RunError(message="The agent failed", code="agent_error"))
        told = {"cancel": {"by": "u", "took_ms": 5, "processes": []}} if outcome == "cancelled" else msgspec.UNSET
        kind = ev.Outcome("cancelled" if outcome == "cancelled" else "success")
        return self.tell(run, ev.RunFinished(thread_id=SESSION, run_id=run, outcome=kind, metadata=told))


def stories() -> dict[str, list[ev.Recorded]]:
    """All journals by name."""
    plain = Story().queued("a", "hello", ["a"]).start("a", "hello").say("a", "First ", "second ", "third").end("a")
    thinking = Story().start("a", "why?").reason("a", 1, "let ", "me ", "think").say("a", "Because ")
    thinking.reason("a", 2, "no, ", "wait").say("a", "so.").end("a", reasoning="let me think\n\nno, wait", model="m")
    queue = Story().start("a", "one").queued("b", "two", ["b"]).queued("c", "three", ["b", "c"])
    value = {"order": [{"task": "c", "version": 2}, {"task": "b", "version": 1}]}
    queue.tell(None, ev.Custom(name="queue.changed", value=value)).say("a", "x")
    value = {"removed": ["b"], "order": [{"task": "c", "version": 2}]}
    queue.tell(None, ev.Custom(name="queue.changed", value=value))
    queue.tell("a", ev.Custom(name="run.cancel_requested", value={"by": "u"})).end("a", "cancelled")
    queue.start("c", "three").say("c", "done").end("c")
    failed = Story().start("a", "x").say("a", "half ").end("a", "failed", error={"code": "agent_error", "id": "e"})
    failed.start("b", None).say("b", "and the rest").end("b")
    handed = Story().start("a", "x").say("a", "one ")
    handed.tell("a", ev.Custom(name="run.requeued", value={"reason": "drain"}))
    handed.tell("a", ev.Custom(name="run.resumed", value={"attempt": 2})).say("a", "two").end("a")
    actions = Story().start("a", "x").say("a", "I look. ").act("a", "c1", "file").act("a", "c2", "boom", "error")
    actions.say("a", "Done.").act("a", "c3", None)
    live = Story().start("a", "x").say("a", "Look: ").begin("a", "c1", "bash", '{"command":"ls"}', 6)
    live.hear("a", "c1", "one\n", "😀\u0301", "two\n").hear("a", "c9", "nobody's")
    live.result("a", "c1", "one", status="error", outcome="failed", exit_code=3, link="/api/x").say("a", "so.")
    live.begin("a", "c2", "file_write", '{"path":"a"}', 9).result("a", "c2", "done", diff="--- a", bytes=3).end("a")
    asked = Story().start("a", "x").begin("a", "c1", "bash", '{"command":"ls"}')
    asked.begin("a", "c2", "bash", '{"command":"rm"}').wait("a", ("i1", "c1", "ls"), ("i2", "c2", "rm"))
    asked.queued("z", "later", ["z"]).decide("i2", approved=False).decide("i9", approved=True)
    asked.decide("i1", approved=True).go_on("b", "a")
    asked.result("b", "c1", "file", input={"command": "ls -l"})
    asked.result("b", "c2", "Denied", status="error", outcome="denied").say("b", "Well.").end("b")
    asked.start("z", "later").begin("z", "c3", "bash", '{"command":"ls"}').wait("z", ("i3", "c3", "ls"))
    asked.go_on("y", "z").result("y", "c3", "", status="cancelled", outcome="cancelled").end("y", "cancelled")
    strange = (
        Story()
        .tell(None, ev.Custom(name="not.known", value={"a": 1}))
        .start("a", 'q"\\\n\u2028é😀')
        .say("a", "😀", "\u2028", "<b>", "\\", '"')
    )
    strange.tell(None, ev.Custom(name="session.updated", value={"title": "T", "version": 2})).end("a")
    all_ = {"plain": plain, "thinking": thinking, "queue": queue, "failed": failed}
    all_ |= {"handed_over": handed, "actions": actions, "live": live, "asked": asked, "strange": strange}
    return {name: story.records for name, story in all_.items()}


def state_of(transcript: Transcript) -> dict[str, Any]:
    """A transcript's snapshot as plain JSON."""
    return msgspec.json.decode(msgspec.json.encode(transcript.snapshot()))


def golden(name: str, records: list[ev.Recorded]) -> str:
    """The golden file of one journal: its events, and the state after each."""
    transcript = Transcript(SESSION)
    states = [{"after": 0, **state_of(transcript)}]
    for record in records:
        transcript.apply(record)
        states.append({"after": record.seq, **state_of(transcript)})
    events = [{"seq": r.seq, "run": r.run, "ts": r.ts, "event": json.loads(r.data)} for r in records]
    body = {"name": name, "session": SESSION, "events": events, "states": states}
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def write() -> None:
    """Write all golden files: `python -m tests.support.golden`."""
    FOLDER.mkdir(exist_ok=True)
    for name, records in stories().items():
        (FOLDER / f"{name}.json").write_text(golden(name, records))


if __name__ == "__main__":
    write()
