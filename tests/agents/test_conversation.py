"""What is sent to a model: history, what was cut, and how to go on."""

from typing import Any

import pytest
from holdfast.agents.conversation import GO_ON, conversation
from holdfast.agents.turn import HistoryMessage, Turn, TurnUser
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart

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
