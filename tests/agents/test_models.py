"""Real models, against a real HTTP server that speaks a provider's protocol and has its faults."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.agents.models import model_agent, to_messages
from holdfast.agents.turn import (
    AgentEvent,
    AgentFault,
    CancelToken,
    HistoryMessage,
    Reasoning,
    Text,
    Turn,
    TurnUser,
    Usage,
)
from tests.support.provider import Provider

KEY = "sk-this-is-a-secret"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with Provider() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running


class Sleeps:
    """Remembers the pauses instead of waiting them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def __call__(self, cancelled: CancelToken, seconds: float) -> None:
        self.pauses.append(seconds)


def turn_of(script: dict[str, Any] | str, **more: Any) -> Turn:
    prompt = script if isinstance(script, str) else json.dumps(script)
    return Turn(session="s", run="r", user=TurnUser("u", "u"), prompt=prompt, **more)


async def said(turn: Turn, sleep: Sleeps | None = None) -> list[AgentEvent]:
    agent = model_agent("openai", "test-model", sleep=sleep or Sleeps())
    return [event async for event in agent(turn)]


def text_of(events: list[AgentEvent]) -> str:
    return "".join(event.delta for event in events if isinstance(event, Text))


async def test_text_reasoning_and_usage_are_told(provider: Provider) -> None:
    events = await said(turn_of({"think": ["hm ", "so"], "say": ["Hello ", "world"]}))
    assert "".join(e.delta for e in events if isinstance(e, Reasoning)) == "hm so"
    assert text_of(events) == "Hello world"
    assert [e for e in events if isinstance(e, Usage)][-1] == Usage(7, 11, "test-model")


async def test_history_goes_to_the_model_and_says_what_was_cut(provider: Provider) -> None:
    history = (HistoryMessage("user", "one"), HistoryMessage("assistant", "half an ans", "cancelled"))
    await said(turn_of("two", history=history))
    sent = provider.requests[0]["messages"]
    assert [part["role"] for part in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"].startswith("half an ans")
    assert "stopped" in sent[1]["content"]


async def test_continue_asks_the_model_to_go_on(provider: Provider) -> None:
    history = (HistoryMessage("user", "one"), HistoryMessage("assistant", "half", "interrupted"))
    await said(turn_of("", history=history))
    assert "Go on exactly where it stopped" in provider.requests[0]["messages"][-1]["content"]


async def test_resume_after_a_hand_over_tells_the_model_what_was_said(provider: Provider) -> None:
    await said(turn_of("question", said="the beginning"))
    contents = [part["content"] for part in provider.requests[0]["messages"]]
    assert contents[:2] == ["question", "the beginning"]


def test_empty_cut_answer_is_still_told() -> None:
    assert len(to_messages((HistoryMessage("assistant", "", "error"),))) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_fault_before_the_first_token_is_tried_again(provider: Provider, status: int) -> None:
    sleeps = Sleeps()
    events = await said(turn_of({"status": status, "times": 2, "say": ["ok"]}), sleeps)
    assert text_of(events) == "ok"
    assert len(sleeps.pauses) == 2
    assert len(provider.requests) == 3


async def test_retry_after_is_respected(provider: Provider) -> None:
    sleeps = Sleeps()
    await said(turn_of({"status": 429, "times": 1, "retry_after": 7, "say": ["ok"]}), sleeps)
    assert sleeps.pauses == [pytest.approx(7.0, abs=0.5)]


@pytest.mark.parametrize(("status", "word"), [(401, "credentials"), (400, "refused"), (404, "model")])
async def test_a_lasting_fault_is_told_at_once_in_our_words(provider: Provider, status: int, word: str) -> None:
    with pytest.raises(AgentFault, match=word) as caught:
        await said(turn_of({"status": status}))
    assert caught.value.code == "provider_error"
    assert "secret words" not in caught.value.message
    assert len(provider.requests) == 1


async def test_retries_end(provider: Provider) -> None:
    with pytest.raises(AgentFault, match="fault"):
        await said(turn_of({"status": 503}))
    assert len(provider.requests) == 4


@pytest.mark.parametrize("fault", ["reset", "garbage"])
async def test_a_fault_in_mid_stream_keeps_what_came_and_is_not_retried(provider: Provider, fault: str) -> None:
    got: list[AgentEvent] = []
    agent = model_agent("openai", "test-model", sleep=Sleeps())
    with pytest.raises(AgentFault, match="middle"):
        async for event in agent(turn_of({"say": ["one ", "two "], fault: True})):
            got.append(event)
    assert text_of(got) == "one two "
    assert len(provider.requests) == 1


async def test_cancel_closes_the_providers_stream_at_once(provider: Provider) -> None:
    turn = turn_of({"say": ["one "], "hang": True})
    agent = model_agent("openai", "test-model")
    got: list[AgentEvent] = []

    async def consume() -> None:
        async for event in agent(turn):
            got.append(event)

    task = asyncio.create_task(consume())
    assert await asyncio.to_thread(provider.hanging.wait, 10)
    turn.cancelled.set()
    await asyncio.wait_for(task, 2)
    assert await asyncio.to_thread(provider.closed.wait, 2)
    assert text_of(got) in ("", "one ")


async def test_cancel_ends_a_pause_between_tries(provider: Provider) -> None:
    turn = turn_of({"status": 429, "retry_after": 25})
    agent = model_agent("openai", "test-model")

    async def consume() -> list[AgentEvent]:
        return [event async for event in agent(turn)]

    task = asyncio.create_task(consume())
    while not provider.requests:
        await asyncio.sleep(0)
    turn.cancelled.set()
    assert await asyncio.wait_for(task, 5) == []


async def test_no_secret_is_logged(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(AgentFault):
        await said(turn_of({"status": 401}))
    assert KEY not in caplog.text


async def test_a_provider_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(AgentFault, match="reached"):
        await said(turn_of("hello"))
