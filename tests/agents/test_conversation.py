"""What is sent to a model: history, what was cut, and how to go on."""

from typing import Any

import pytest
from holdfast.agents.conversation import GO_ON, conversation
from holdfast.agents.turn import HistoryAction, HistoryMessage, Turn, TurnUser
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

ASK = HistoryMessage("user", "one")


def turn_of(prompt: str, *history: HistoryMessage, **more: Any) -> Turn:
    return Turn(session="s", run="r", user=TurnUser("u", "u"), prompt=prompt, history=history, **more)


def plain(messages: list[ModelMessage]) -> list[tuple[str, str]]:
    result: list[tuple[str, str]] = []
    for message in messages:
        (part,) = message.parts
        assert isinstance(part, TextPart | UserPromptPart)
        role = "user" if isinstance(message, ModelRequest) else "assistant"
        assert isinstance(message, ModelRequest | ModelResponse)
        result.append((role, str(part.content)))
    return result


@pytest.mark.parametrize(("cut", "word"), [("cancelled", "stopped"), ("error", "error"), ("interrupted", "restart")])
def test_a_cut_answer_is_noted_in_the_next_request(cut: Any, word: str) -> None:
    prompt, messages = conversation(turn_of("two", ASK, HistoryMessage("assistant", "half", cut)))
    assert plain(messages) == [("user", "one"), ("assistant", "half")]
    assert prompt is not None
    assert prompt.startswith("[Your last answer is incomplete")
    assert word in prompt
    assert prompt.endswith("\n\ntwo")


def test_a_cut_answer_further_back_is_noted_where_it_was() -> None:
    history = [ASK, HistoryMessage("assistant", "half", "cancelled"), ASK, HistoryMessage("assistant", "all")]
    prompt, messages = conversation(turn_of("three", *history))
    assert prompt == "three"
    assert plain(messages)[2][1].startswith("[Your last answer is incomplete")
    assert plain(messages)[3] == ("assistant", "all")


def test_a_whole_answer_is_not_noted() -> None:
    prompt, _ = conversation(turn_of("two", ASK, HistoryMessage("assistant", "all")))
    assert prompt == "two"


def test_continuing_asks_to_go_on() -> None:
    prompt, messages = conversation(turn_of("", ASK, HistoryMessage("assistant", "half", "error")))
    assert prompt == GO_ON
    assert plain(messages) == [("user", "one"), ("assistant", "half")]


def test_an_answer_that_was_continued_is_one_answer() -> None:
    parts = (HistoryMessage("assistant", "ha", "error"), HistoryMessage("assistant", "lf"))
    prompt, messages = conversation(turn_of("two", ASK, *parts))
    assert prompt == "two"
    assert plain(messages) == [("user", "one"), ("assistant", "half")]


def test_a_turn_that_was_handed_over_goes_on() -> None:
    prompt, messages = conversation(turn_of("two", said="beg"))
    assert prompt == GO_ON
    assert plain(messages) == [("user", "two"), ("assistant", "beg")]


def test_a_continuing_turn_that_was_handed_over_goes_on() -> None:
    prompt, messages = conversation(turn_of("", ASK, HistoryMessage("assistant", "ha", "error"), said="l"))
    assert prompt == GO_ON
    assert plain(messages) == [("user", "one"), ("assistant", "hal")]


def test_continuing_an_answer_that_said_nothing_asks_again() -> None:
    prompt, messages = conversation(turn_of("", ASK, HistoryMessage("assistant", "", "error")))
    assert (prompt, messages) == ("one", [])


def test_whitespace_at_a_cut_is_kept() -> None:
    parts = (HistoryMessage("assistant", "a", "error"), HistoryMessage("assistant", " "), ASK)
    _, messages = conversation(turn_of("two", ASK, *parts))
    assert plain(messages)[1] == ("assistant", "a ")


def action(offset: int = 0, output: str = "done", outcome: Any = "success", **more: Any) -> HistoryAction:
    given: dict[str, Any] = {"id": f"id{offset}", "name": "shell", "input": {"command": "x"}, **more}
    return HistoryAction(**given, output=output, outcome=outcome, offset=offset)


def parts(messages: list[ModelMessage]) -> list[tuple[str, ...]]:
    """The parts of all messages in order: the kind, and the text or the id."""
    result: list[tuple[str, ...]] = []
    for message in messages:
        for part in message.parts:
            match part:
                case TextPart(content=text):
                    result.append(("text", text))
                case UserPromptPart(content=text):
                    result.append(("user", str(text)))
                case ToolCallPart(tool_name=name, tool_call_id=id):
                    result.append(("call", name, id))
                case ToolReturnPart(content=text, tool_call_id=id):
                    result.append(("return", str(text), id))
                case _:
                    raise AssertionError(part)
    return result


def test_actions_stand_where_they_were_in_the_text() -> None:
    answer = HistoryMessage("assistant", "one two three", actions=(action(4), action(8), action(8, id="other")))
    prompt, messages = conversation(turn_of("next", ASK, answer))
    assert prompt == "next"
    assert parts(messages) == [
        ("user", "one"),
        ("text", "one "),
        ("call", "shell", "id4"),
        ("return", "done", "id4"),
        ("text", "two "),
        ("call", "shell", "id8"),
        ("return", "done", "id8"),
        ("call", "shell", "other"),
        ("return", "done", "other"),
        ("text", "three"),
    ]


@pytest.mark.parametrize(
    ("outcome", "output", "told"),
    [
        ("success", "", ""),
        ("failed", "exit code 1", "Failed: exit code 1"),
        ("failed", "There was an error", "There was an error"),
        ("denied", "", "Denied by the user."),
        ("denied", "too risky", "Denied by the user. too risky"),
        ("denied", "Denied by the user: too risky", "Denied by the user: too risky"),
        ("cancelled", "", "Cancelled on the way; it may have done a part."),
        ("interrupted", "", "Interrupted: what it has done is not known."),
        ("interrupted", "Interrupted by a restart", "Interrupted by a restart"),
    ],
)
def test_how_an_action_went_is_told_once(outcome: str, output: str, told: str) -> None:
    answer = HistoryMessage("assistant", "", actions=(action(output=output, outcome=outcome),))
    _, messages = conversation(turn_of("next", ASK, answer))
    assert parts(messages)[2] == ("return", told, "id0")


def test_an_answer_that_ends_with_an_action_goes_on_without_a_prompt() -> None:
    prompt, messages = conversation(turn_of("", ASK, HistoryMessage("assistant", "one", actions=(action(3),))))
    assert prompt is None
    assert parts(messages)[-1] == ("return", "done", "id3")


def test_space_after_the_last_action_is_no_text() -> None:
    prompt, _ = conversation(turn_of("", ASK, HistoryMessage("assistant", "one\n", actions=(action(3),))))
    assert prompt is None


def test_text_after_the_last_action_is_gone_on_with() -> None:
    answer = HistoryMessage("assistant", "one two", "interrupted", (action(3),))
    prompt, messages = conversation(turn_of("", ASK, answer))
    assert (prompt, parts(messages)[-1]) == (GO_ON, ("text", " two"))


def test_a_turn_that_was_handed_over_goes_on_after_what_it_did() -> None:
    prompt, messages = conversation(turn_of("two", said="beg", done=(action(3),)))
    assert prompt is None
    assert [part[0] for part in parts(messages)] == ["user", "text", "call", "return"]


def test_a_turn_that_did_something_and_said_nothing_goes_on_too() -> None:
    prompt, messages = conversation(turn_of("two", done=(action(),)))
    assert prompt is None
    assert [part[0] for part in parts(messages)] == ["user", "call", "return"]


def test_actions_of_an_answer_and_of_what_went_on_with_it_are_in_order() -> None:
    cut = HistoryMessage("assistant", "one ", "error", (action(4, id="a"),))
    prompt, messages = conversation(turn_of("", ASK, cut, said="two", done=(action(3, id="b"),)))
    assert prompt is None
    assert [part[-1] for part in parts(messages)] == ["one", "one ", "a", "a", "two", "b", "b"]


def test_a_cut_answer_that_ends_with_an_action_is_noted() -> None:
    prompt, messages = conversation(turn_of("next", ASK, HistoryMessage("assistant", "", "cancelled", (action(),))))
    assert prompt is not None
    assert prompt.startswith("[Your last answer is incomplete: the user stopped it.]")
    assert parts(messages)[-1][0] == "return"


def test_what_no_provider_takes_is_made_good() -> None:
    actions = (
        action(id="x" * 60, name="a tool.of old", input={"n": float("nan")}),
        action(id="", name=""),
        action(id="same"),
        action(id="same"),
    )
    _, messages = conversation(turn_of("next", ASK, HistoryMessage("assistant", "", actions=actions)))
    calls = [part for message in messages for part in message.parts if isinstance(part, ToolCallPart)]
    assert [call.tool_name for call in calls] == ["a_tool_of_old", "_", "shell", "shell"]
    assert calls[0].args == {"n": None}
    assert len({call.tool_call_id for call in calls}) == 4
    assert all(0 < len(call.tool_call_id) <= 40 for call in calls)


@given(st.text("ab \n", max_size=20), st.lists(st.integers(0, 25), max_size=4))
def test_no_word_is_lost_and_each_call_is_answered(content: str, offsets: list[int]) -> None:
    actions = tuple(action(offset, id=f"i{n}") for n, offset in enumerate(offsets))
    _, messages = conversation(turn_of("next", ASK, HistoryMessage("assistant", content, actions=actions)))
    told = parts(messages)
    said = "".join(part[1] for part in told if part[0] == "text")
    assert "".join(said.split()) == "".join(content.split())
    calls = [number for number, part in enumerate(told) if part[0] == "call"]
    assert len(calls) == len(offsets)
    assert all(told[number + 1][::2] == ("return", told[number][2]) for number in calls)
