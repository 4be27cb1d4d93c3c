"""Events are AG-UI 1.0: each of ours is accepted by the official models and survives them unchanged."""

import json
from typing import Any

import pytest
from ag_ui.core import events as agui
from holdfast.domain import events as ev
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

FLAGS = {"streaming": False, "cancelled": False, "has_error": False, "interrupted": False}
EXAMPLES: list[ev.Event] = [
    ev.RunStarted(
        thread_id="t",
        run_id="r",
        input=ev.RunInput("t", "r", (ev.UserMessage("m", "hello"),)),
        parent_run_id="p",
        metadata={"message": "a", "attempt": 1, "agent": "demo"},
    ),
    ev.TextMessageStart(message_id="m", role="assistant", metadata=FLAGS),
    ev.TextMessageContent(message_id="m", delta="hi"),
    ev.TextMessageEnd(message_id="m", metadata=FLAGS),
    ev.ReasoningStart(message_id="m:r1"),
    ev.ReasoningMessageStart(message_id="m:r1"),
    ev.ReasoningMessageContent(message_id="m:r1", delta="hm"),
    ev.ReasoningMessageEnd(message_id="m:r1"),
    ev.ReasoningEnd(message_id="m:r1"),
    ev.ToolCallStart(tool_call_id="c", tool_call_name="bash", parent_message_id="m"),
    ev.ToolCallArgs(tool_call_id="c", delta='{"command": "ls"}'),
    ev.ToolCallEnd(tool_call_id="c"),
    ev.ToolCallResult(message_id="x", tool_call_id="c", content="out", metadata={"action": {"status": "success"}}),
    ev.RunFinished(thread_id="t", run_id="r", outcome=ev.Outcome("success"), usage=(ev.TokenUsage(1, 2, "m"),)),
    ev.RunFinished(thread_id="t", run_id="r", outcome=ev.Outcome("cancelled"), metadata={"cancel": {"took_ms": 3}}),
    ev.RunError(message="The agent failed", code="agent_error", metadata={"error": {"code": "agent_error"}}),
    ev.Custom(name="queue.changed", value={"order": []}),
]


@pytest.mark.parametrize("event", EXAMPLES, ids=ev.event_type)
def test_event_is_an_official_agui_event(event: ev.Event) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(agui.Event)
    official = adapter.validate_json(ev.encode(event), strict=False)
    assert official.model_extra in ({}, None)
    written = json.loads(official.model_dump_json(by_alias=True))
    assert written == json.loads(ev.encode(event))


def test_every_kind_of_event_has_an_example() -> None:
    assert {type(event) for event in EXAMPLES} == set(ev.EVENT_TYPES)


@pytest.mark.parametrize("event", EXAMPLES, ids=ev.event_type)
def test_encoding_is_reversible_and_has_no_null(event: ev.Event) -> None:
    text = ev.encode(event)
    assert ev.decode(text) == event
    assert "null" not in text


@given(st.text())
def test_a_chunk_encodes_as_any_other_event(delta: str) -> None:
    delta = ev.clean_text(delta)
    fast = ev.encode_chunk(ev.chunk_prefix("m"), delta)
    assert fast == ev.encode(ev.TextMessageContent(message_id="m", delta=delta))


@given(st.text(alphabet=st.characters(codec=None)))
def test_cleaned_text_can_be_stored_anywhere(text: str) -> None:
    cleaned = ev.clean_text(text)
    cleaned.encode()
    assert "\x00" not in cleaned
    assert len(cleaned) == len(text) or any("\ud800" <= char <= "\udfff" for char in text)
    assert ev.clean_text(cleaned) == cleaned


def test_an_emoji_is_left_alone() -> None:
    assert ev.clean_text("😀é") == "😀é"
