"""Tools of real models, over a real HTTP server that speaks a provider's protocol."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from holdfast.agents.faults import Retries
from holdfast.agents.models import MAX_REQUESTS, model_agent
from holdfast.agents.providers import build_model
from holdfast.agents.tools import ApprovalNeeded, ToolCall, tool
from holdfast.agents.turn import (
    AgentEvent,
    AgentFault,
    CancelToken,
    HistoryAction,
    HistoryMessage,
    Reasoning,
    Text,
    Turn,
    TurnUser,
    Usage,
)
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import ModelRetry, RunContext
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ToolReturn

from tests.support.actions import Recorded
from tests.support.provider import Provider, Script


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with Provider() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        yield running


@tool
async def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@tool
async def broken() -> str:
    """Fail."""
    raise LookupError("out of order")


@tool
async def facts() -> dict[str, int]:
    """Tell facts."""
    return {"height": 3}


class Told:
    """What came of a turn."""

    def __init__(self, tools: Recorded, prompt: str = "go", **more: Any) -> None:
        self.tools = tools
        self.turn = Turn("s", "r", TurnUser("u", "u"), prompt, tools=tools, **more)
        self.events: list[AgentEvent] = []
        self.fault: AgentFault | None = None
        self.needed: ApprovalNeeded | None = None

    async def by(self, agent: Any) -> "Told":
        try:
            async for event in agent(self.turn):
                self.events.append(event)
        except AgentFault as fault:
            self.fault = fault
        except ApprovalNeeded as needed:
            self.needed = needed
        return self

    @property
    def text(self) -> str:
        return "".join(event.delta for event in self.events if isinstance(event, Text))

    @property
    def usage(self) -> list[Usage]:
        return [event for event in self.events if isinstance(event, Usage)]

    @property
    def done(self) -> list[tuple[str, dict[str, Any], bool]]:
        return [(each.name, each.args, bool(each.result and each.result.failed)) for each in self.tools.actions]


async def no_pause(cancelled: CancelToken, seconds: float) -> None:
    await asyncio.sleep(0)


def asked(own: "PydanticAgent[Any, str] | None" = None) -> Any:
    return model_agent(own or build_model("openai", "test-model"), retries=Retries(sleep=no_pause))


async def go(provider: Provider, *scripts: Script, tools: Recorded, own: Any = None, **more: Any) -> Told:
    provider.queue.extend(scripts)
    return await asyncio.wait_for(Told(tools, **more).by(asked(own)), 60)


def calling(*calls: dict[str, Any], **more: Any) -> Script:
    return Script(calls=list(calls), **more)


def sent(provider: Provider, request: int = -1) -> list[tuple[str, Any]]:
    """The messages of a request: the role, and the text or the calls."""
    messages = provider.requests[request]["messages"]
    return [
        (
            each["role"],
            [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in each["tool_calls"]]
            if each.get("tool_calls")
            else each["content"],
        )
        for each in messages
    ]


ADD = {"name": "add", "args": {"a": 2, "b": 3}, "id": "one"}


async def test_the_model_is_given_the_tools_of_the_turn(provider: Provider) -> None:
    await go(provider, Script(say=["hi"]), tools=Recorded.of(add))
    (given,) = provider.requests[0]["tools"]
    assert given["function"]["name"] == "add"
    assert given["function"]["description"] == "Add two numbers."
    assert set(given["function"]["parameters"]["properties"]) == {"a", "b"}


async def test_a_call_is_an_action_and_its_output_goes_back(provider: Provider) -> None:
    told = await go(provider, calling(ADD, say=["Let me see. "]), Script(say=["It is 5."]), tools=Recorded.of(add))
    assert told.done == [("add", {"a": 2, "b": 3}, False)]
    assert told.tools.actions[0].id == "one"
    assert told.text == "Let me see. It is 5."
    assert sent(provider)[-2:] == [("assistant", [("add", {"a": 2, "b": 3})]), ("tool", "5")]
    assert told.fault is None


async def test_usage_is_that_of_all_requests(provider: Provider) -> None:
    told = await go(provider, calling(ADD), calling(ADD), Script(say=["5"]), tools=Recorded.of(add))
    assert told.usage == [Usage(21, 33, "test-model")]
    assert told.events[-1] == told.usage[-1]


async def test_an_output_of_facts_goes_back_as_json(provider: Provider) -> None:
    await go(provider, calling({"name": "facts"}), Script(say=["ok"]), tools=Recorded.of(facts))
    assert json.loads(sent(provider)[-1][1]) == {"height": 3}


async def test_text_is_told_before_the_tool_begins(provider: Provider) -> None:
    said: list[str] = []

    @tool
    async def look() -> str:
        """Look."""
        return f"after {''.join(said)!r}"

    told = Told(Recorded.of(look))
    provider.queue.extend([calling({"name": "look"}, say=["one ", "two "]), Script(say=["three"])])
    async for event in asked()(told.turn):
        if isinstance(event, Text):
            said.append(event.delta)
    assert sent(provider)[-1] == ("tool", "after 'one two '")
    assert "".join(said) == "one two three"


async def test_reasoning_between_tools_is_told(provider: Provider) -> None:
    told = await go(provider, calling(ADD, think=["hm"]), Script(think=["so"], say=["5"]), tools=Recorded.of(add))
    assert [event.delta for event in told.events if isinstance(event, Reasoning)] == ["hm", "so"]


@pytest.mark.parametrize(
    ("call", "name", "args", "words"),
    [
        ({"name": "subtract", "args": {"a": 1}}, "subtract", {"a": 1}, "the tools are: add"),
        ({"name": "functions.add now", "args": {}}, "functions_add_now", {}, "the tools are: add"),
        ({"name": "add", "args": '{"a": 2, "b"'}, "add", {"arguments": '{"a": 2, "b"'}, "do not fit"),
        ({"name": "add", "args": "[2, 3]"}, "add", {"arguments": "[2, 3]"}, "do not fit"),
        ({"name": "add", "args": {"a": 2}}, "add", {"a": 2}, "do not fit"),
        ({"name": "add", "args": {"a": "x", "b": 1}}, "add", {"a": "x", "b": 1}, "do not fit"),
        ({"name": "nothing", "args": "nonsense"}, "nothing", {"arguments": "nonsense"}, "the tools are: add"),
        ({"name": "broken", "args": {}}, "broken", {}, "out of order"),
    ],
)
async def test_what_goes_wrong_is_an_action_and_told_to_the_model(
    provider: Provider, call: dict[str, Any], name: str, args: dict[str, Any], words: str
) -> None:
    tools = Recorded.of(add, broken) if name == "broken" else Recorded.of(add)
    told = await go(provider, *[calling(call)] * 4, Script(say=["well"]), tools=tools)
    assert told.done == [(name, args, True)] * 4
    assert (told.text, told.fault) == ("well", None)
    assert words in sent(provider)[-1][1]
    assert sent(provider)[-2] == ("assistant", [(name, args)])


@pytest.mark.parametrize("written", ["", "{}", "null"])
async def test_a_call_without_arguments(provider: Provider, written: str) -> None:
    told = await go(provider, calling({"name": "facts", "args": written}), Script(say=["ok"]), tools=Recorded.of(facts))
    assert told.done == [("facts", {}, False)]


async def test_a_turn_without_tools_answers_a_call_too(provider: Provider) -> None:
    provider.queue.extend([calling(ADD), Script(say=["well"])])
    told = [event async for event in asked()(Turn("s", "r", TurnUser("u", "u"), "go"))]
    assert told[0] == Text("well")
    assert "There is no tool 'add'" in sent(provider)[-1][1]


async def test_calls_with_one_id_are_told_apart(provider: Provider) -> None:
    calls = [{**ADD, "args": {"a": n, "b": 0}} for n in range(3)]
    told = await go(provider, calling(*calls), Script(say=["ok"]), tools=Recorded.of(add))
    assert len({action.id for action in told.tools.actions}) == 3
    assert [text for role, text in sent(provider) if role == "tool"] == ["0", "1", "2"]


async def test_calls_of_one_answer_run_at_once(provider: Provider) -> None:
    meeting = asyncio.Barrier(3)

    @tool
    async def meet() -> str:
        """Wait for the others."""
        await meeting.wait()
        return "met"

    calls = [{"name": "meet", "id": f"c{n}"} for n in range(3)]
    told = await go(provider, calling(*calls), Script(say=["ok"]), tools=Recorded.of(meet))
    assert [action.result and action.result.output for action in told.tools.actions] == ["met"] * 3


async def test_a_loop_of_tools_has_an_end(provider: Provider) -> None:
    told = await go(provider, *[calling(ADD)] * (MAX_REQUESTS + 5), tools=Recorded.of(add))
    assert told.fault is not None
    assert told.fault.code == "agent_error"
    assert "100 times" in told.fault.message
    assert len(provider.requests) == MAX_REQUESTS
    assert told.usage == [Usage(700, 1100, "test-model")]


async def test_an_empty_answer_after_tools_is_an_end(provider: Provider) -> None:
    told = await go(provider, calling(ADD, say=["5, I guess."]), Script(), tools=Recorded.of(add))
    assert (told.text, told.fault) == ("5, I guess.", None)
    assert told.usage == [Usage(14, 22, "test-model")]


async def test_an_empty_answer_before_tools_is_a_fault(provider: Provider) -> None:
    told = await go(provider, Script(), tools=Recorded.of(add))
    assert told.fault is not None
    assert "no answer" in told.fault.message


async def test_a_call_that_was_cut_off_is_not_done(provider: Provider) -> None:
    told = await go(provider, calling(ADD, finish="length"), tools=Recorded.of(add))
    assert told.done == []
    assert told.fault is not None
    assert "longer" in told.fault.message


class TestApproval:
    """Calls that wait for a person."""

    async def test_those_of_one_answer_are_asked_together_after_the_others(self, provider: Provider) -> None:
        tools = Recorded.of(add, facts, broken, asking=["facts", "broken"])
        calls = [{"name": "facts", "id": "f"}, ADD, {"name": "broken", "args": {"x": 1}, "id": "b"}]
        told = await go(provider, calling(*calls, say=["Wait. "]), tools=tools)
        assert told.done == [("add", {"a": 2, "b": 3}, False)]
        assert told.needed is not None
        assert told.needed.calls == (ToolCall("facts", {}, "f"), ToolCall("broken", {"x": 1}, "b"))
        assert tools.asked == [told.needed.calls]
        assert told.usage == [Usage(7, 11, "test-model")]
        assert len(provider.requests) == 1

    async def test_what_is_raised_is_what_the_tools_raised(self, provider: Provider) -> None:
        raised: list[ApprovalNeeded] = []

        class Keeping(Recorded):
            async def ask(self, calls: Any) -> Any:
                raised.append(ApprovalNeeded(calls))
                raise raised[0]

        told = await go(provider, calling(ADD), tools=Keeping(Recorded.of(add).toolbox, {"add"}))
        assert told.needed is raised[0]

    async def test_a_call_that_turns_out_to_need_it_is_asked_too(self, provider: Provider) -> None:
        class Late(Recorded):
            def needs_approval(self, name: str) -> bool:
                return False

            async def call(self, name: str, args: Any, *, id: str | None = None, ask: bool = False) -> Any:
                return await super().call(name, args, id=id, ask=name == "facts")

        tools = Late(Recorded.of(add, facts).toolbox)
        told = await go(provider, calling({"name": "facts", "id": "f"}, ADD), tools=tools)
        assert told.needed is not None
        assert told.needed.calls == (ToolCall("facts", {}, "f"),)
        assert told.done == [("add", {"a": 2, "b": 3}, False)]

    async def test_the_next_turn_goes_on_from_the_results(self, provider: Provider) -> None:
        done = HistoryAction("f", "facts", {}, '{"height": 3}', "success", 6)
        history = (HistoryMessage("user", "how high?"), HistoryMessage("assistant", "Wait. ", actions=(done,)))
        told = await go(provider, Script(say=["3 m"]), tools=Recorded.of(facts), prompt="", history=history)
        assert told.text == "3 m"
        assert sent(provider) == [
            ("user", "how high?"),
            ("assistant", [("facts", {})]),
            ("tool", '{"height": 3}'),
        ]
        assert provider.requests[0]["messages"][1]["content"] == "Wait. "

    async def test_an_invented_tool_is_not_asked_about(self, provider: Provider) -> None:
        told = await go(provider, calling({"name": "x"}), Script(say=["ok"]), tools=Recorded.of(add, asking=["x"]))
        assert (told.needed, told.done, told.text) == (None, [("x", {}, True)], "ok")


class TestCancel:
    """The user stops it."""

    async def test_in_a_tool_it_ends_the_tool_and_the_turn(self, provider: Provider) -> None:
        begun = asyncio.Event()

        @tool
        async def sleep() -> str:
            """Sleep."""
            begun.set()
            await asyncio.Event().wait()
            return "never"

        told = Told(Recorded.of(sleep))
        provider.queue.append(calling({"name": "sleep"}, say=["Good night. "]))
        task = asyncio.create_task(told.by(asked()))
        await asyncio.wait_for(begun.wait(), 10)
        told.turn.cancelled.set("user")
        await asyncio.wait_for(task, 2)
        assert isinstance(told.tools.actions[0].ended_by, asyncio.CancelledError)
        assert (told.fault, told.text) == (None, "Good night. ")
        assert told.usage == [Usage(7, 11, "test-model")]
        assert len(provider.requests) == 1

    async def test_in_the_stream_of_a_call_it_closes_the_stream(self, provider: Provider) -> None:
        told = Told(Recorded.of(add))
        provider.queue.extend([calling(ADD), calling(ADD, hang="stream")])
        task = asyncio.create_task(told.by(asked()))
        assert await asyncio.to_thread(provider.hanging.wait, 10)
        told.turn.cancelled.set("user")
        await asyncio.wait_for(task, 2)
        assert await asyncio.to_thread(provider.closed.wait, 2)
        assert told.fault is None
        assert len(told.done) == 1

    async def test_closing_the_agent_ends_the_tool(self, provider: Provider) -> None:
        ended = asyncio.Event()

        @tool
        async def sleep() -> str:
            """Sleep."""
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return "never"

        tools = Recorded.of(sleep)
        provider.queue.append(calling({"name": "sleep"}, say=["one"]))
        events = asked()(Told(tools).turn)
        assert await anext(events) == Text("one")
        going = asyncio.create_task(anext(events))
        while not tools.actions:
            await asyncio.sleep(0.01)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        await events.aclose()
        assert ended.is_set()


class TestFaults:
    """The provider fails between tools."""

    @pytest.mark.parametrize("script", [Script(status=503), Script(reset="headers"), Script(reset="stream")])
    async def test_a_passing_fault_after_tools_is_tried_again_without_the_tools(
        self, provider: Provider, script: Script
    ) -> None:
        told = await go(provider, calling(ADD), script, Script(say=["5"]), tools=Recorded.of(add))
        assert (told.text, told.fault) == ("5", None)
        assert len(told.done) == 1
        assert sent(provider, 1) == sent(provider, 2)

    async def test_a_lasting_fault_after_tools_keeps_what_came(self, provider: Provider) -> None:
        told = await go(provider, calling(ADD, say=["See: "]), Script(status=400), tools=Recorded.of(add))
        assert told.fault is not None
        assert told.fault.code == "provider_error"
        assert "what came is kept" in told.fault.message
        assert told.usage == [Usage(7, 11, "test-model")]
        assert (len(told.done), len(provider.requests)) == (1, 2)

    async def test_tries_are_counted_for_each_request(self, provider: Provider) -> None:
        faults = [Script(status=500)] * 3
        told = await go(provider, *faults, calling(ADD), *faults, Script(say=["5"]), tools=Recorded.of(add))
        assert (told.text, told.fault, len(provider.requests)) == ("5", None, 8)


class TestOwnTools:
    """An agent of pydantic-ai with tools of its own."""

    @staticmethod
    def agent(*tools: Any, **more: Any) -> "PydanticAgent[Any, str]":
        return PydanticAgent(build_model("openai", "test-model"), tools=tools, **more)

    async def test_they_are_actions_and_what_they_give_is_theirs(self, provider: Provider) -> None:
        async def double(n: int) -> ToolReturn[dict[str, int]]:
            """Double it."""
            return ToolReturn({"double": 2 * n}, content="more for the model")

        told = await go(
            provider,
            calling({"name": "double", "args": {"n": 4}, "id": "d"}, ADD),
            Script(say=["ok"]),
            tools=Recorded.of(add),
            own=self.agent(double),
        )
        assert sorted(told.done) == [("add", {"a": 2, "b": 3}, False), ("double", {"n": 4}, False)]
        (own,) = [action for action in told.tools.actions if action.performed]
        assert own.id == "d"
        assert own.result is not None
        assert json.loads(str(own.result.output)) == {"double": 8}
        assert ("user", "more for the model") in sent(provider)
        assert {each["function"]["name"] for each in provider.requests[0]["tools"]} == {"add", "double"}

    async def test_its_tool_wins_over_one_of_the_same_name(self, provider: Provider) -> None:
        async def add(a: int, b: int) -> str:
            return "mine"

        told = await go(
            provider, calling(ADD), Script(say=["ok"]), tools=Recorded.of(globals()["add"]), own=self.agent(add)
        )
        assert told.tools.actions[0].performed
        assert sent(provider)[-1] == ("tool", "mine")

    async def test_arguments_that_do_not_fit_are_an_action_and_its_retries_do_not_end_the_run(
        self, provider: Provider
    ) -> None:
        async def double(n: int) -> int:
            raise AssertionError("is not called")

        bad = [calling({"name": "double", "args": {"n": "many"}})] * 3 + [calling({"name": "double", "args": "{n"})]
        told = await go(provider, *bad, Script(say=["ok"]), tools=Recorded.of(), own=self.agent(double))
        assert told.done == [("double", {"n": "many"}, True)] * 3 + [("double", {"arguments": "{n"}, True)]
        assert (told.text, told.fault) == ("ok", None)

    async def test_a_retry_is_told_to_the_model_and_counted(self, provider: Provider) -> None:
        seen: list[int] = []

        async def pick(context: RunContext[None], n: int) -> str:
            seen.append(context.retry)
            raise ModelRetry("pick another")

        own = self.agent(pick, retries=2)
        told = await go(
            provider,
            *[calling({"name": "pick", "args": {"n": 1}})] * 4,
            Script(say=["ok"]),
            tools=Recorded.of(),
            own=own,
        )
        assert seen == [0, 1, 2, 0]
        assert told.done == [("pick", {"n": 1}, True)] * 4
        assert "pick another" in sent(provider)[-1][1]
        assert (told.text, told.fault) == ("ok", None)

    async def test_a_failure_that_it_tells_is_a_failed_action(self, provider: Provider) -> None:
        async def reach() -> str:
            raise ToolFailed("nobody is there")

        told = await go(
            provider, calling({"name": "reach"}), Script(say=["ok"]), tools=Recorded.of(), own=self.agent(reach)
        )
        assert told.done == [("reach", {}, True)]
        assert "nobody is there" in sent(provider)[-1][1]

    async def test_an_exception_is_a_failed_action_and_ends_the_run_as_it_is(self, provider: Provider) -> None:
        async def reach() -> str:
            raise LookupError("a bug")

        tools = Recorded.of()
        with pytest.raises(LookupError, match="a bug"):
            await go(provider, calling({"name": "reach"}), tools=tools, own=self.agent(reach))
        assert tools.actions[0].result is not None
        assert tools.actions[0].result.failed

    async def test_one_that_asks_first_is_denied_since_nobody_could_carry_it_out_later(
        self, provider: Provider
    ) -> None:
        own = PydanticAgent(build_model("openai", "test-model"))
        ran: list[str] = []

        @own.tool_plain(requires_approval=True)
        def launch(where: str) -> str:
            ran.append(where)
            return "up"

        @own.tool_plain
        def land(where: str) -> str:
            ran.append(where)
            return "down"

        calls = [
            {"name": "launch", "args": {"where": "a"}, "id": "l"},
            {"name": "land", "args": {"where": "b"}, "id": "m"},
        ]
        told = await go(provider, calling(*calls), Script(say=["Well."]), tools=Recorded.of(), own=own)
        assert (told.needed, told.text, ran) == (None, "Well.", ["b"])
        assert told.done == [("land", {"where": "b"}, False), ("launch", {"where": "a"}, True)]
        assert [words for role, words in sent(provider) if role == "tool" and "Denied" in words]


async def test_tools_are_those_of_each_turn(provider: Provider) -> None:
    agent = asked()

    async def ask(n: int) -> list[str]:
        @tool(name=f"tool_{n}")
        async def one() -> str:
            """One."""
            return str(n)

        script = {"calls": [{"name": f"tool_{n}"}], "then": [{"say": [f"done {n}"]}]}
        told = await Told(Recorded.of(one), prompt=json.dumps(script)).by(agent)
        return [action.name for action in told.tools.actions] + [told.text]

    assert await asyncio.gather(*map(ask, range(10))) == [[f"tool_{n}", f"done {n}"] for n in range(10)]
