"""Frames: what is wrong is named, and nothing that a client sends is a surprise."""

import json

import pytest
from holdfast.domain import frames
from holdfast.domain.cursors import Cursor, snapshot_reason
from holdfast.domain.errors import ERRORS, HoldfastError, InvalidFrame, UnknownType
from holdfast.domain.events import Recorded
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"id":"1"}', "type"),
        ('{"type":7,"id":"1"}', "type"),
        ('{"type":"send","id":"1"}', "session"),
        ('{"type":"send","id":"1","session":"s","content":5}', "content"),
        ('{"type":"send","id":"1","session":"s","content":""}', "content"),
        ('{"type":"send","id":"1","session":"s","content":"c","colour":1}', "colour"),
        ('{"type":"send","id":"1","session":"s","content":"c","ifBusy":"explode"}', "ifBusy"),
        ('{"type":"send","session":"s","content":"c"}', "id"),
        ('{"type":"subscribe","id":"1","session":"s","cursor":{"epoch":"e","seq":"x"}}', "cursor.seq"),
        ('{"type":"queue","id":"1","session":"s","op":"move","task":"t","version":1}', "position"),
        ('{"type":"queue","id":"1","session":"s","op":"swap","task":"t","version":1}', "with"),
        ('{"type":"queue","id":"1","session":"s","op":"move","task":"t","version":-1,"position":1}', "version"),
    ],
)
def test_an_invalid_frame_names_its_field(text: str, field: str) -> None:
    with pytest.raises(InvalidFrame) as caught:
        frames.decode(text)
    assert caught.value.field == field


def test_an_unknown_type_is_told_so() -> None:
    with pytest.raises(UnknownType):
        frames.decode('{"type":"dance","id":"1"}')


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "1", "null", '"x"', "[" * 100_000, "\ud800"])
def test_what_is_no_object_is_a_bad_frame(text: str) -> None:
    with pytest.raises(frames.BadFrame):
        frames.decode(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
names = st.sampled_from(["type", "id", "session", "content", "cursor", "op", "task", "version", "decisions", "run"])
types = st.sampled_from(["hello", "subscribe", "send", "cancel", "approve", "queue", "ping"])


@given(st.dictionaries(names, json_values | types))
def test_any_object_is_a_frame_or_a_clear_error(value: dict[str, object]) -> None:
    text = json.dumps(value)
    try:
        frame = frames.decode(text)
    except HoldfastError as error:
        assert error.code in ("invalid_frame", "unknown_type")
        assert error.message
    else:
        assert frame.id == value["id"]


def test_an_item_carries_the_very_bytes_of_the_journal() -> None:
    data = '{"type":"CUSTOM","name":"x","value":{"a": 1.0}}'
    text = frames.events(
        "s", "e", [frames.item(Recorded(7, None, "t", data)), frames.item(Recorded(8, "r", "t", data))]
    )
    assert data in text
    assert [item["seq"] for item in json.loads(text)["events"]] == [7, 8]


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (None, "initial"),
        (Cursor("other", 5), "epoch_changed"),
        (Cursor("e", 11), "cursor_ahead"),
        (Cursor("e", 2), "cursor_expired"),
        (Cursor("e", 3), None),
        (Cursor("e", 10), None),
    ],
)
def test_a_cursor_is_followed_or_replaced_by_a_snapshot(cursor: Cursor | None, reason: str | None) -> None:
    assert snapshot_reason(cursor, epoch="e", oldest=4, head=10) == reason


def test_error_codes_are_unique() -> None:
    assert len({error.code for error in ERRORS}) == len(ERRORS)
