"""Real models, against a real HTTP server that speaks a provider's protocol and has its faults."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from holdfast.agents.faults import Retries
from holdfast.agents.models import model_agent
from holdfast.agents.providers import build_model
from holdfast.agents.turn import (
    Agent,
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
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tests.support.provider import SECRET_WORDS, Provider, Script

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with Provider() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running


class Sleeps:
    """Remembers the pauses instead of waiting them; `uniform` always gives the most."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def __call__(self, cancelled: CancelToken, seconds: float) -> None:
        self.pauses.append(seconds)

    def retries(self, **more: Any) -> Retries:
        return Retries(sleep=self, uniform=lambda _, most: most, **more)


class Conversation:
    """What an agent said, and how it ended."""

    def __init__(self, prompt: str = "hello", *, silence_s: float = 30.0, retries: Retries | None = None, **more: Any):
        self.turn = Turn(session="s", run="r", user=TurnUser("u", "u"), prompt=prompt, **more)
        self.sleeps = Sleeps()
        policy = retries or self.sleeps.retries()
        self._agent: Agent = model_agent(build_model("openai", "test-model"), retries=policy, silence_s=silence_s)
        self.events: list[AgentEvent] = []
        self.fault: AgentFault | None = None
        self.spoke = asyncio.Event()

    async def hold(self) -> "Conversation":
        try:
            async for event in self._agent(self.turn):
                self.events.append(event)
                self.spoke.set()
        except AgentFault as fault:
            self.fault = fault
        return self

    @property
    def text(self) -> str:
        return "".join(event.delta for event in self.events if isinstance(event, Text))

    @property
    def reasoning(self) -> str:
        return "".join(event.delta for event in self.events if isinstance(event, Reasoning))

    @property
    def usage(self) -> list[Usage]:
        return [event for event in self.events if isinstance(event, Usage)]


async def converse(*scripts: Script, provider: Provider, **more: Any) -> Conversation:
    provider.queue.extend(scripts)
    return await asyncio.wait_for(Conversation(**more).hold(), 60)


async def test_text_reasoning_and_usage_are_told(provider: Provider) -> None:
    said = await converse(Script(think=["hm ", "so"], say=["Hello ", "world"]), provider=provider)
    assert (said.reasoning, said.text, said.fault) == ("hm so", "Hello world", None)
    assert said.usage == [Usage(7, 11, "test-model")]
    assert isinstance(said.events[-1], Usage)


async def test_each_delta_is_told_by_itself(provider: Provider) -> None:
    said = await converse(Script(say=["a", "b", "c"]), provider=provider)
    assert said.events[:3] == [Text("a"), Text("b"), Text("c")]


async def test_many_chunks_all_come(provider: Provider) -> None:
    said = await converse(Script(count=20_000), provider=provider)
    assert said.text == "".join(f"w{n} " for n in range(20_000))


async def test_the_message_may_be_the_script(provider: Provider) -> None:
    said = await converse(provider=provider, prompt=json.dumps({"say": ["by ", "text"]}))
    assert said.text == "by text"


async def test_a_provider_that_tells_no_usage(provider: Provider) -> None:
    said = await converse(Script(say=["x"], usage=None), provider=provider)
    assert said.usage == [Usage(0, 0, "test-model")]


async def test_the_same_agent_serves_one_turn_after_another_and_at_once(provider: Provider) -> None:
    agent = model_agent(build_model("openai", "test-model"))

    async def ask(n: int) -> str:
        turn = Turn("s", f"r{n}", TurnUser("u", "u"), json.dumps({"say": [f"answer {n}"]}))
        return "".join([event.delta async for event in agent(turn) if isinstance(event, Text)])

    assert await asyncio.gather(*map(ask, range(20))) == [f"answer {n}" for n in range(20)]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429},
        {"status": 500},
        {"status": 503},
        {"status": 529},
        {"reset": "headers"},
    ],
)
async def test_a_passing_fault_is_tried_again(provider: Provider, fault: dict[str, Any]) -> None:
    prompt = json.dumps({**fault, "times": 2, "say": ["ok"]})
    said = await converse(provider=provider, prompt=prompt)
    assert (said.text, said.fault) == ("ok", None)
    assert said.sleeps.pauses == [1.0, 2.0]
    assert len(provider.requests) == 3


async def test_tries_are_bounded_and_pauses_grow_to_a_limit(provider: Provider) -> None:
    provider.queue.extend([Script(status=503)] * 20)
    sleeps = Sleeps()
    said = await converse(provider=provider, retries=sleeps.retries(tries=7, longest_s=10.0))
    assert said.fault is not None
    assert said.fault.code == "provider_error"
    assert sleeps.pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert len(provider.requests) == 7


async def test_four_tries_by_default_and_none_by_the_providers_package(provider: Provider) -> None:
    said = await converse(*[Script(status=500)] * 9, provider=provider)
    assert said.fault is not None
    assert len(provider.requests) == 4


async def test_retry_after_in_seconds_is_respected(provider: Provider) -> None:
    said = await converse(Script(status=429, retry_after=7), provider=provider)
    assert said.sleeps.pauses == [8.0]
    assert said.text.startswith("I heard")


async def test_retry_after_as_a_date_is_respected(provider: Provider) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    said = await converse(Script(status=429, retry_after=date), provider=provider)
    assert said.sleeps.pauses == [pytest.approx(20.0, abs=4)]


@pytest.mark.parametrize("nonsense", ["soon", "-5", ""])
async def test_a_retry_after_without_sense_is_as_none(provider: Provider, nonsense: str) -> None:
    said = await converse(Script(status=429, retry_after=nonsense), provider=provider)
    assert said.sleeps.pauses == [1.0]


async def test_a_retry_after_that_is_too_long_is_told_at_once(provider: Provider) -> None:
    said = await converse(Script(status=429, retry_after=3600), provider=provider)
    assert said.fault is not None
    assert "over its limits" in said.fault.message
    assert (len(provider.requests), said.sleeps.pauses) == (1, [])


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(status=401), "credentials"),
        (Script(status=403), "credentials"),
        (Script(status=400), "refused the request"),
        (Script(status=418), "refused the request"),
        (Script(status=404), "does not know this model"),
        (Script(status=400, error_code="context_length_exceeded"), "too long"),
        (Script(status=429, error_code="insufficient_quota"), "quota"),
        (Script(not_sse=True), "model provider"),
    ],
)
async def test_a_lasting_fault_is_told_at_once_in_our_words(provider: Provider, script: Script, words: str) -> None:
    said = await converse(script, provider=provider)
    assert said.fault is not None
    assert said.fault.code == "provider_error"
    assert words in said.fault.message
    assert SECRET_WORDS not in said.fault.message
    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    "script",
    [
        Script(say=["one ", "two "], reset="stream"),
        Script(say=["one ", "two "], truncate=True),
        Script(say=["one ", "two "], garbage=True),
        Script(say=["one ", "two "], error_event=True),
        Script(say=["one ", "two "], error_event=True, error_code="rate_limit_exceeded"),
    ],
)
async def test_a_fault_in_mid_stream_keeps_what_came_and_is_not_retried(provider: Provider, script: Script) -> None:
    said = await converse(script, provider=provider)
    assert said.fault is not None
    assert said.fault.code == "provider_error"
    assert "what came is kept" in said.fault.message
    assert said.text == "one two "
    assert (len(provider.requests), said.sleeps.pauses) == (1, [])


async def test_a_fault_after_reasoning_alone_is_not_retried(provider: Provider) -> None:
    said = await converse(Script(think=["hm "], reset="stream"), provider=provider)
    assert said.fault is not None
    assert (said.reasoning, len(provider.requests)) == ("hm ", 1)


@pytest.mark.parametrize("where", ["headers", "stream"])
async def test_silence_ends_with_a_timeout_and_closes_the_stream(provider: Provider, where: Any) -> None:
    say = ["one "] if where == "stream" else []
    said = await converse(Script(say=say, hang=where), provider=provider, silence_s=0.3)
    assert said.fault is not None
    assert said.fault.code == "timeout"
    assert "silen" in said.fault.message
    assert said.text == "".join(say)
    assert await asyncio.to_thread(provider.closed.wait, 5)
    assert len(provider.requests) == 1


async def test_a_slow_stream_is_no_silence(provider: Provider) -> None:
    said = await converse(Script(say=["a"] * 8, pause_s=0.2), provider=provider, silence_s=0.9)
    assert (said.text, said.fault) == ("a" * 8, None)


async def test_an_empty_answer_is_told_as_a_fault(provider: Provider) -> None:
    said = await converse(Script(), provider=provider)
    assert said.fault is not None
    assert "no answer" in said.fault.message


@pytest.mark.parametrize("where", ["headers", "stream"])
async def test_cancel_closes_the_stream_at_once_while_the_provider_is_silent(provider: Provider, where: Any) -> None:
    provider.queue.append(Script(say=["one "] if where == "stream" else [], hang=where))
    said = Conversation(silence_s=60)
    task = asyncio.create_task(said.hold())
    assert await asyncio.to_thread(provider.hanging.wait, 10)
    cancelled_at = time.monotonic()
    said.turn.cancelled.set("user")
    await asyncio.wait_for(task, 1)
    assert await asyncio.to_thread(provider.closed.wait, 10)
    assert provider.closed_at is not None
    assert provider.closed_at - cancelled_at < 10, "long before the silence would have ended it"
    assert said.fault is None
    assert not task.cancelling()
    assert len(provider.requests) == 1


async def test_cancel_in_a_fast_stream_ends_it(provider: Provider) -> None:
    provider.queue.append(Script(count=1_000_000))
    said = Conversation()
    task = asyncio.create_task(said.hold())
    await asyncio.wait_for(said.spoke.wait(), 10)
    said.turn.cancelled.set()
    await asyncio.wait_for(task, 2)
    assert await asyncio.to_thread(provider.closed.wait, 2)
    assert said.fault is None


async def test_cancel_before_the_start_asks_nothing(provider: Provider) -> None:
    said = Conversation()
    said.turn.cancelled.set()
    await said.hold()
    assert (said.events, provider.requests) == ([], [])


async def test_cancel_ends_a_pause_between_tries(provider: Provider) -> None:
    provider.queue.append(Script(status=429, retry_after=25))
    pausing = asyncio.Event()

    class Pausing(Sleeps):
        async def __call__(self, cancelled: CancelToken, seconds: float) -> None:
            pausing.set()
            await Retries().sleep(cancelled, seconds)

    said = Conversation(retries=Pausing().retries())
    task = asyncio.create_task(said.hold())
    await asyncio.wait_for(pausing.wait(), 10)
    said.turn.cancelled.set()
    await asyncio.wait_for(task, 1)
    assert (said.events, said.fault, len(provider.requests)) == ([], None, 1)


async def test_closing_the_agent_in_mid_stream_closes_the_stream(provider: Provider) -> None:
    provider.queue.append(Script(say=["one "], hang="stream"))
    agent = model_agent(build_model("openai", "test-model"))
    said = agent(Turn("s", "r", TurnUser("u", "u"), "x"))
    assert await anext(said) == Text("one ")
    await said.aclose()
    assert await asyncio.to_thread(provider.closed.wait, 2)


async def test_a_cancelled_task_stays_cancelled_and_closes_the_stream(provider: Provider) -> None:
    provider.queue.append(Script(say=["one "], hang="stream"))
    task = asyncio.create_task(Conversation().hold())
    assert await asyncio.to_thread(provider.hanging.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(provider.closed.wait, 2)


@pytest.mark.parametrize(
    "script",
    [
        Script(status=401, message=f"Incorrect API key provided: {KEY}"),
        Script(status=400, message="Authorization: Bearer abcdefghijklmnop is wrong"),
        Script(say=["a"], error_event=True, message=f"key {KEY} and sk-abcdefghijklmnopqrstuvwxyz are bad"),
    ],
)
async def test_no_key_is_logged_or_told(provider: Provider, script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = await converse(script, provider=provider)
    assert said.fault is not None
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    ours = [record for record in caplog.records if record.name == "holdfast.agents"]
    assert "provider failed" in ours[0].getMessage()
    for secret in (KEY, "abcdefghijklmnop"):
        assert secret not in said.fault.message
        assert secret not in "".join(record.getMessage() for record in ours)
        assert secret not in logged


async def test_a_provider_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    said = await Conversation().hold()
    assert said.fault is not None
    assert said.fault.message == "The model provider cannot be reached."
    assert len(said.sleeps.pauses) == 3


async def test_the_history_is_sent(provider: Provider) -> None:
    history = (HistoryMessage("user", "one"), HistoryMessage("assistant", "first"))
    await converse(provider=provider, prompt="two", history=history)
    sent = [(part["role"], part["content"]) for part in provider.requests[0]["messages"]]
    assert sent == [("user", "one"), ("assistant", "first"), ("user", "two")]


@pytest.mark.parametrize(
    ("finish", "words"), [("length", "longer"), ("content_filter", "filter"), (None, "before the answer was whole")]
)
async def test_an_answer_that_just_ends_is_not_taken_for_a_whole_one(
    provider: Provider, finish: Any, words: str
) -> None:
    said = await converse(Script(say=["one "], finish=finish), provider=provider)
    assert said.fault is not None
    assert words in said.fault.message
    assert (said.text, said.usage, len(provider.requests)) == ("one ", [Usage(7, 11, "test-model")], 1)


async def test_a_reason_that_nobody_knows_is_a_reason(provider: Provider) -> None:
    said = await converse(Script(say=["one "], finish="eos"), provider=provider)
    assert (said.text, said.fault) == ("one ", None)


@pytest.mark.parametrize("script", [Script(reset="stream"), Script(truncate=True), Script(error_event=True)])
async def test_a_stream_that_fails_before_its_first_token_is_tried_again(provider: Provider, script: Script) -> None:
    said = await converse(script, Script(say=["ok"]), provider=provider)
    assert (said.text, said.fault, len(provider.requests)) == ("ok", None, 2)


async def test_a_fault_that_is_not_the_providers_is_left_as_it_is() -> None:
    async def broken(messages: object, about: AgentInfo) -> AsyncIterator[str]:
        yield "one "
        raise LookupError("a bug")

    agent = model_agent(FunctionModel(stream_function=broken))
    with pytest.raises(LookupError):
        await anext_all(agent(Turn("s", "r", TurnUser("u", "u"), "x")))


async def test_an_agent_of_pydantic_ai_may_be_used_as_it_is() -> None:
    async def parrot(messages: object, about: AgentInfo) -> AsyncIterator[str]:
        yield about.instructions or ""

    asked = PydanticAgent(FunctionModel(stream_function=parrot), instructions="Be kind.")
    agent = model_agent(asked, instructions="Be brief.")
    said = [event async for event in agent(Turn("s", "r", TurnUser("u", "u"), "x"))]
    text = "".join(event.delta for event in said if isinstance(event, Text))
    assert "Be kind." in text
    assert "Be brief." in text


async def anext_all(events: AsyncIterator[AgentEvent]) -> None:
    async for _ in events:
        pass
