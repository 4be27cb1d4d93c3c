"""Approvals: a run that waits holds nothing, is answered once, and goes on from exactly there."""

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import hypothesis.strategies as st
import pytest
from holdfast.agents.builtin import BUILTIN
from holdfast.agents.resolve import ResolvedAgent
from holdfast.agents.tools import ToolCall, tool
from holdfast.agents.turn import AgentEvent, Text, Turn
from holdfast.clock import new_id
from holdfast.config import Settings
from holdfast.domain.errors import (
    AlreadyResolved,
    IdempotencyConflict,
    InterruptsPending,
    NoOpenInterrupt,
    RunNotFound,
    SessionNotFound,
)
from holdfast.domain.users import User
from holdfast.engine.engine import Engine
from holdfast.engine.registry import AgentTaskRegistry
from holdfast.store import schema, sessions, transcripts, users
from holdfast.store.approvals import Decision
from holdfast.store.database import Database
from holdfast.store.tables import interrupts, tasks
from hypothesis import HealthCheck, given, settings
from sqlalchemy import func, select

from tests.conftest import MakeEngine
from tests.support.agents import Puppet
from tests.support.following import Follower, Record, assert_whole, same_as_fold, state_of, stored

CALLS: list[int] = []


@tool(approval="ask")
async def launch(n: int) -> str:
    """Launch, after somebody has said so."""
    CALLS.append(n)
    return f"launched {n}"


@tool(approval="ask")
async def hold(n: int) -> str:
    """Launch, slowly."""
    CALLS.append(n)
    await asyncio.sleep(60)
    return "never"


TOOLS = BUILTIN.with_([launch, hold])


@pytest.fixture(autouse=True)
def calls() -> list[int]:
    CALLS.clear()
    return CALLS


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def engine(make_engine: MakeEngine, puppet: Puppet) -> Engine:
    return await make_engine(puppet, toolbox=TOOLS, cancel_grace_s=0.3)


class Talk:
    """A session with its approvals."""

    def __init__(self, engine: Engine, user: User, session: str, puppet: Puppet) -> None:
        self.engine, self.user, self.session, self.puppet = engine, user, session, puppet
        self.follower = Follower(engine, session)
        self.run = ""

    async def begin(self, content: str = "go", **more: Any) -> str:
        sent, _, _ = await self.engine.send(self.user, self.session, content, **more)
        self.run = sent.run
        return sent.run

    async def asked(self, run: str | None = None) -> list[dict[str, Any]]:
        """The questions that a run ends with."""
        end = (await self.follower.until_end(run or self.run))["event"]
        await same_as_fold(self.engine, self.session)
        assert end["outcome"]["type"] == "interrupt", end
        return list(end["outcome"]["interrupts"])

    async def ask_one(self, **args: Any) -> str:
        """Have one launch asked about; the interrupt."""
        if not self.run:
            await self.begin()
        self.puppet.call("launch", **(args or {"n": 1}))
        return str((await self.asked())[0]["id"])

    async def decide(self, *decisions: Decision, run: str | None = None, **more: Any) -> str | None:
        """Answer; the run that goes on."""
        going_on, _, _ = await self.engine.decide(self.user, self.session, run or self.run, decisions, **more)
        await same_as_fold(self.engine, self.session)
        return going_on

    async def over(self, run: str | None) -> Record:
        assert run is not None
        end = await self.follower.until_end(run)
        await same_as_fold(self.engine, self.session)
        assert_whole(await stored(self.engine, self.session))
        return end

    async def actions(self) -> list[Any]:
        rows = [message for _, message in await transcripts.page(self.engine.database, self.session, None, 100)]
        return [action for message in rows for action in message.actions]


@pytest.fixture
async def talk(engine: Engine, user: User, session: str, puppet: Puppet) -> Talk:
    return Talk(engine, user, session, puppet)


def yes(interrupt: str, **more: Any) -> Decision:
    return Decision(interrupt, True, **more)


def no(interrupt: str, reason: str | None = None) -> Decision:
    return Decision(interrupt, False, reason=reason)


async def test_a_run_that_asks_ends_and_holds_nothing(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    await talk.begin()
    puppet.say("May I? ")
    outcome = puppet.call("launch", id="l", n=1)
    asked = await talk.asked()
    assert (asked[0]["reason"], asked[0]["toolCallId"]) == ("tool_approval", "l")
    assert asked[0]["metadata"] == {"tool": "launch", "args": {"n": 1}}
    assert asked[0]["message"]
    assert outcome.done()
    assert calls == []
    assert await state_of(talk.engine, talk.run) == "Paused"
    assert talk.engine.registry.running() == []
    action = (await talk.actions())[0]
    assert (action.status, action.output, action.input) == ("pending", None, {"n": 1})
    waiting = (await transcripts.load(talk.engine.database, talk.session, 1)).transcript
    assert waiting.active_run is not None
    assert waiting.active_run.status == "waiting"
    assert [each.id for each in waiting.interrupts] == [asked[0]["id"]]


async def test_approve_carries_the_call_out_once_and_the_agent_goes_on(
    talk: Talk, puppet: Puppet, calls: list[int]
) -> None:
    run_a = await talk.begin()
    puppet.say("May I? ")
    puppet.call("launch", id="l", n=1)
    question = (await talk.asked())[0]["id"]
    run_b = await talk.decide(yes(question))
    puppet.say("Thanks.")
    puppet.end()
    await talk.over(run_b)
    assert calls == [1]
    started = next(r for r in talk.follower.records if r["run"] == run_b and r["event"]["type"] == "RUN_STARTED")
    assert started["event"]["parentRunId"] == run_a
    action = (await talk.actions())[0]
    assert (action.status, action.outcome, action.output) == ("success", "success", "launched 1")
    turn = puppet.turns[-1]
    assert (turn.prompt, turn.said) == ("", "")
    assert turn.history[-1].content == "May I? "
    assert [(each.id, each.output, each.outcome) for each in turn.history[-1].actions] == [
        ("l", "launched 1", "success")
    ]
    assert await state_of(talk.engine, run_a) == "Success"


async def test_deny_tells_the_agent_and_the_reason(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    question = await talk.ask_one()
    run_b = await talk.decide(no(question, "too early"))
    puppet.end()
    await talk.over(run_b)
    assert calls == []
    action = (await talk.actions())[0]
    assert (action.status, action.outcome, action.output) == ("error", "denied", "Denied by the user: too early")
    assert puppet.turns[-1].history[-1].actions[0].outcome == "denied"


async def test_edited_arguments_are_those_that_are_used_and_told(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    question = await talk.ask_one(n=1)
    run_b = await talk.decide(yes(question, edited_args={"n": 7}))
    puppet.end()
    await talk.over(run_b)
    assert calls == [7]
    action = (await talk.actions())[0]
    assert (action.input, action.output) == ({"n": 7}, "launched 7")
    told = next(r for r in talk.follower.records if r["event"].get("name") == "interrupt.resolved")
    assert told["event"]["value"]["editedArgs"] == {"n": 7}


async def test_edited_arguments_that_do_not_fit_are_an_error_result(
    talk: Talk, puppet: Puppet, calls: list[int]
) -> None:
    question = await talk.ask_one(n=1)
    run_b = await talk.decide(yes(question, edited_args={"n": "seven"}))
    puppet.end()
    await talk.over(run_b)
    assert calls == []
    action = (await talk.actions())[0]
    assert action.outcome == "failed"
    assert "Invalid arguments" in action.output


async def test_always_asks_no_more_in_this_session_and_in_no_other(
    talk: Talk, puppet: Puppet, user: User, calls: list[int]
) -> None:
    question = await talk.ask_one(n=1)
    run_b = await talk.decide(yes(question, always=True))
    puppet.call("launch", n=2)
    puppet.end()
    await talk.over(run_b)
    await talk.begin("again")
    puppet.call("launch", n=3)
    puppet.end()
    await talk.over(talk.run)
    assert calls == [1, 2, 3]
    row = await talk.engine.database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
    other = Talk(talk.engine, user, str(row["id"]), puppet)
    await other.ask_one(n=4)
    assert calls == [1, 2, 3]
    await other.engine.cancel(user, other.session)


async def test_two_questions_are_answered_one_by_one_and_carried_out_together(
    talk: Talk, puppet: Puppet, calls: list[int]
) -> None:
    await talk.begin()
    puppet.do(lambda turn: turn.tools.ask([ToolCall("launch", {"n": n}, f"l{n}") for n in (1, 2, 3)]))
    asked = [each["id"] for each in await talk.asked()]
    assert await talk.decide(yes(asked[2])) is None
    assert await talk.decide(no(asked[1])) is None
    assert calls == []
    run_b = await talk.decide(yes(asked[0]))
    puppet.end()
    await talk.over(run_b)
    assert calls == [1, 3]
    assert [each.outcome for each in await talk.actions()] == ["success", "denied", "success"]


async def test_all_at_once_in_one_answer(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    await talk.begin()
    puppet.do(lambda turn: turn.tools.ask([ToolCall("launch", {"n": n}) for n in (1, 2)]))
    asked = [each["id"] for each in await talk.asked()]
    run_b = await talk.decide(yes(asked[0]), yes(asked[1]))
    puppet.end()
    await talk.over(run_b)
    assert calls == [1, 2]


async def test_one_answer_of_several_that_is_wrong_changes_nothing(talk: Talk, puppet: Puppet) -> None:
    question = await talk.ask_one()
    with pytest.raises(NoOpenInterrupt):
        await talk.decide(yes(question), yes(new_id()))
    async with talk.engine.database.read() as conn:
        assert await conn.scalar(select(func.count()).where(interrupts.c.resolved_at.is_not(None))) == 0
    run_b = await talk.decide(yes(question))
    puppet.end()
    await talk.over(run_b)


async def test_the_same_answer_twice_is_the_same_as_once(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    question = await talk.ask_one()
    first = await talk.decide(yes(question), key="k")
    assert await talk.decide(yes(question), key="k") == first
    assert await talk.decide(yes(question)) == first
    puppet.end()
    await talk.over(first)
    assert await talk.decide(yes(question)) == first
    assert calls == [1]
    with pytest.raises(IdempotencyConflict):
        await talk.decide(no(question), key="k")


async def test_another_answer_afterwards_is_refused_with_what_was_answered(talk: Talk, puppet: Puppet) -> None:
    question = await talk.ask_one()
    run_b = await talk.decide(yes(question))
    with pytest.raises(AlreadyResolved) as caught:
        await talk.decide(no(question))
    assert caught.value.current == {"id": question, "approved": True, "by": talk.user.id, "reason": None}
    with pytest.raises(AlreadyResolved):
        await talk.decide(yes(question, edited_args={"n": 2}))
    puppet.end()
    await talk.over(run_b)


async def test_of_many_answers_at_once_one_counts(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    question = await talk.ask_one()
    tries = [talk.engine.decide(talk.user, talk.session, talk.run, [d(question)]) for d in (yes, no) * 8]
    results = await asyncio.gather(*tries, return_exceptions=True)
    won = {result[0] for result in results if isinstance(result, tuple)}
    assert len(won) == 1
    assert all(isinstance(each, tuple | AlreadyResolved) for each in results)
    puppet.end()
    await talk.over(won.pop())
    assert len(calls) <= 1


async def test_what_was_never_asked_cannot_be_answered(talk: Talk, puppet: Puppet) -> None:
    question = await talk.ask_one()
    with pytest.raises(RunNotFound):
        await talk.decide(yes(question), run=new_id())
    with pytest.raises(RunNotFound):
        await talk.decide(yes(question), run="no id")
    with pytest.raises(NoOpenInterrupt):
        await talk.decide(yes("\x00"))
    other = await talk.engine.database.transact(lambda tx: users.ensure_user(tx, "eve", "user", new_id()))
    with pytest.raises(SessionNotFound):
        await talk.engine.decide(other, talk.session, talk.run, [yes(question)])
    await talk.engine.cancel(talk.user, talk.session)


async def test_cancel_while_waiting_closes_the_action_and_nothing_goes_on(
    talk: Talk, puppet: Puppet, calls: list[int]
) -> None:
    question = await talk.ask_one()
    await talk.engine.cancel(talk.user, talk.session, reason="no more")
    await same_as_fold(talk.engine, talk.session)
    assert_whole(await stored(talk.engine, talk.session))
    assert await state_of(talk.engine, talk.run) == "Canceled"
    action = (await talk.actions())[0]
    assert (action.status, action.outcome) == ("cancelled", "cancelled")
    with pytest.raises(AlreadyResolved):
        await talk.decide(yes(question))
    assert calls == []
    state = (await transcripts.load(talk.engine.database, talk.session, 1)).transcript
    assert (state.active_run, state.interrupts) == (None, [])
    await talk.begin("next")
    puppet.end()
    await talk.over(talk.run)


async def test_cancel_while_it_is_carried_out(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    await talk.begin()
    puppet.call("hold", n=1)
    question = (await talk.asked())[0]["id"]
    run_b = await talk.decide(yes(question))
    await talk.follower.until(lambda r: r["run"] == run_b and r["event"]["type"] == "RUN_STARTED")
    async with asyncio.timeout(10):
        while not calls:
            await asyncio.sleep(0.01)
    await talk.engine.cancel(talk.user, talk.session)
    end = await talk.over(run_b)
    assert end["event"]["outcome"]["type"] == "cancelled" or end["event"]["type"] == "RUN_FINISHED"
    assert (await talk.actions())[0].outcome == "cancelled"
    assert calls == [1]


async def test_nobody_answers_in_time_is_a_denial(
    make_engine: MakeEngine, user: User, session: str, puppet: Puppet, calls: list[int]
) -> None:
    engine = await make_engine(puppet, toolbox=TOOLS, approval_timeout_s=0.3)
    talk = Talk(engine, user, session, puppet)
    await talk.begin()
    puppet.call("launch", n=1)
    asked = await talk.asked()
    assert asked[0]["expiresAt"]
    puppet.end()
    started = await talk.follower.until(lambda r: r["event"].get("parentRunId") == talk.run)
    await talk.over(started["run"])
    assert calls == []
    action = (await talk.actions())[0]
    assert (action.outcome, action.output) == ("denied", "Denied: Nobody has answered in time")
    with pytest.raises(AlreadyResolved):
        await talk.decide(yes(asked[0]["id"]))


async def test_a_message_while_it_waits_is_queued_and_comes_after(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    question = await talk.ask_one()
    sent, _, _ = await talk.engine.send(talk.user, talk.session, "and then?")
    await asyncio.sleep(0.2)
    await same_as_fold(talk.engine, talk.session)
    assert await state_of(talk.engine, sent.run) == "Pending"
    run_b = await talk.decide(yes(question))
    puppet.end()
    await talk.follower.until_end(str(run_b))
    puppet.end()
    await talk.over(sent.run)
    assert [turn.prompt for turn in puppet.turns] == ["go", "", "and then?"]
    assert calls == [1]


async def test_a_message_that_interrupts_cancels_what_waits(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    await talk.ask_one()
    sent, _, _ = await talk.engine.send(talk.user, talk.session, "forget it", if_busy="interrupt")
    puppet.end()
    await talk.over(sent.run)
    assert (await talk.actions())[0].outcome == "cancelled"
    assert calls == []


async def test_a_message_that_wants_an_idle_session_is_refused(talk: Talk, puppet: Puppet) -> None:
    await talk.ask_one()
    with pytest.raises(InterruptsPending):
        await talk.engine.send(talk.user, talk.session, "now", if_busy="reject")
    await same_as_fold(talk.engine, talk.session)
    await talk.engine.cancel(talk.user, talk.session)


async def test_it_survives_any_restart_and_is_carried_out_by_another_node(
    make_engine: MakeEngine, user: User, session: str, puppet: Puppet, calls: list[int]
) -> None:
    first = await make_engine(puppet, toolbox=TOOLS, own_database=True)
    talk = Talk(first, user, session, puppet)
    question = await talk.ask_one()
    await first.stop()
    second = await make_engine(puppet, toolbox=TOOLS)
    talk.engine, talk.follower = second, Follower(second, session)
    await same_as_fold(second, session)
    run_b = await talk.decide(yes(question))
    puppet.end()
    await talk.over(run_b)
    assert calls == [1]


async def test_it_is_not_carried_out_twice_when_the_run_is_handed_over_in_it(
    make_engine: MakeEngine, user: User, session: str, puppet: Puppet, calls: list[int]
) -> None:
    first = await make_engine(puppet, toolbox=TOOLS, own_database=True, cancel_grace_s=0.2)
    talk = Talk(first, user, session, puppet)
    await talk.begin()
    puppet.call("hold", n=1)
    question = (await talk.asked())[0]["id"]
    run_b = await talk.decide(yes(question))
    async with asyncio.timeout(10):
        while not calls:
            await asyncio.sleep(0.01)
    await first.stop(drain_s=0.0)
    second = await make_engine(puppet, toolbox=TOOLS)
    talk.engine, talk.follower = second, Follower(second, session)
    puppet.end()
    await talk.over(run_b)
    assert calls == [1]
    action = (await talk.actions())[0]
    assert action.outcome == "interrupted"
    assert "restart" in action.output


async def test_a_command_without_a_sandbox_asks_each_time(
    make_engine: MakeEngine, user: User, session: str, puppet: Puppet
) -> None:
    engine = await make_engine(puppet, sandbox="off")
    talk = Talk(engine, user, session, puppet)
    await talk.begin()
    puppet.bash("echo $((20 + 3))")
    asked = (await talk.asked())[0]
    assert "sandbox" in asked["message"]
    run_b = await talk.decide(yes(asked["id"], always=True))
    puppet.bash("echo again")
    again = await talk.asked(run_b)
    assert (await talk.actions())[0].output.startswith("23")
    await engine.cancel(user, session)
    assert again


async def test_an_agent_may_ask_where_no_rule_does(talk: Talk, puppet: Puppet) -> None:
    await talk.begin()
    puppet.bash("echo asked", ask=True)
    question = (await talk.asked())[0]["id"]
    run_b = await talk.decide(yes(question))
    puppet.end()
    await talk.over(run_b)
    assert (await talk.actions())[0].output.startswith("asked")


async def test_a_tool_that_is_gone_by_then_is_an_error_result(
    make_engine: MakeEngine, user: User, session: str, puppet: Puppet
) -> None:
    first = await make_engine(puppet, toolbox=TOOLS, own_database=True)
    talk = Talk(first, user, session, puppet)
    question = await talk.ask_one()
    await first.stop()
    talk.engine = await make_engine(puppet)
    talk.follower = Follower(talk.engine, session)
    run_b = await talk.decide(yes(question))
    puppet.end()
    await talk.over(run_b)
    assert "There is no tool 'launch'" in (await talk.actions())[0].output


async def test_a_denied_call_may_be_asked_again(talk: Talk, puppet: Puppet, calls: list[int]) -> None:
    question = await talk.ask_one(n=1)
    run_b = await talk.decide(no(question))
    assert run_b is not None
    puppet.call("launch", n=2)
    second = (await talk.asked(run_b))[0]["id"]
    run_c = await talk.decide(yes(second), run=run_b)
    puppet.end()
    await talk.over(run_c)
    assert calls == [2]
    assert [each.outcome for each in await talk.actions()] == ["denied", "success"]


class Interleaving:
    """A session in which people, tabs and restarts get in each other's way."""

    def __init__(self, user: User, session: str) -> None:
        self.engines: list[Engine] = []
        self.user, self.session = user, session
        self.numbers = itertools.count(1)

    @property
    def engine(self) -> Engine:
        return self.engines[-1]

    async def agent(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        """Asks as often as its prompt says."""
        if turn.prompt.startswith("ask "):
            await turn.tools.ask([ToolCall("launch", {"n": next(self.numbers)}) for _ in range(int(turn.prompt[4:]))])
        yield Text("said")

    async def ask(self, count: int) -> None:
        await self.engine.send(self.user, self.session, f"ask {count}")

    async def send(self, _: int) -> None:
        await self.engine.send(self.user, self.session, "hello")

    async def interrupt(self, _: int) -> None:
        await self.engine.send(self.user, self.session, "hello", if_busy="interrupt")

    async def approve(self, which: int) -> None:
        await self._decide(which, yes)

    async def edit(self, which: int) -> None:
        await self._decide(which, lambda name: yes(name, edited_args={"n": 1000 + next(self.numbers)}))

    async def deny(self, which: int) -> None:
        await self._decide(which, no)

    async def cancel(self, _: int) -> None:
        await self.engine.cancel(self.user, self.session)

    async def settle(self, _: int) -> None:
        """Wait until nothing runs; what waits for a person, waits."""
        async with asyncio.timeout(20):
            while await self.active():
                await asyncio.sleep(0.005)

    async def restart(self, _: int) -> None:
        before = self.engines.pop()
        await before.stop(drain_s=0.0)
        engine = Engine(before.settings, before.database, before.agent, registry=AgentTaskRegistry(), toolbox=TOOLS)
        await engine.start()
        self.engines.append(engine)

    async def questions(self) -> list[Any]:
        async with self.engine.database.read() as conn:
            found = await conn.execute(select(interrupts).filter_by(session_id=self.session).order_by(interrupts.c.id))
            return list(found.mappings().all())

    async def active(self) -> bool:
        states = ("Pending", "Running", "Scheduled")
        async with self.engine.database.read() as conn:
            waits = await conn.scalar(
                select(func.count()).where(tasks.c.session_id == self.session, tasks.c.state == "Paused")
            )
            count = select(func.count()).where(tasks.c.session_id == self.session, tasks.c.state.in_(states))
            running = count.where(tasks.c.node_id.is_not(None)) if waits else count
            return bool(await conn.scalar(running))

    async def _decide(self, which: int, decision: Any) -> None:
        asked = await self.questions()
        if asked:
            row = asked[which % len(asked)]
            with contextlib.suppress(AlreadyResolved):
                await self.engine.decide(self.user, self.session, row["task_id"], [decision(row["id"])])

    async def check(self) -> None:
        """What was approved was done once and what was not was not, whatever came between."""
        await self.settle(0)
        await self.engine.cancel(self.user, self.session)
        await self.settle(0)
        await same_as_fold(self.engine, self.session)
        assert_whole(await stored(self.engine, self.session))
        rows = [message for _, message in await transcripts.page(self.engine.database, self.session, None, 1000)]
        found = {action.id: action for message in rows for action in message.actions}
        for row in await self.questions():
            action = found[row["action_id"]]
            times = CALLS.count((row["edited_args"] or row["args"])["n"])
            assert row["resolved_at"] is not None
            assert times <= 1, "carried out once"
            if row["edited_args"] is not None:
                assert CALLS.count(row["args"]["n"]) == 0
            match action.outcome:
                case "success":
                    assert (row["approved"], times) == (1, 1)
                case "denied":
                    assert (row["approved"], times) == (0, 0)
                case _:
                    assert action.outcome in ("cancelled", "interrupted")
                    assert row["approved"] or times == 0


OFTEN = ["ask"] * 2 + ["approve"] * 4 + ["edit", "deny"] * 2 + ["settle"] * 4
OPS = [*OFTEN, "cancel", "send", "interrupt", "restart"]
STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 5)), min_size=1, max_size=3), min_size=2, max_size=10
)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_any_interleaving_of_answers_cancels_and_restarts(kind: str, request: pytest.FixtureRequest) -> None:
    url = ""
    if kind == "postgresql":
        url = asyncio.run(request.getfixturevalue("postgres").create_database())

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS)
    def run(steps: list[list[tuple[str, int]]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(interleave(url or f"sqlite:///{folder}/m.db", folder, steps))

    run()


async def interleave(url: str, folder: str, steps: list[list[tuple[str, int]]]) -> None:
    CALLS.clear()
    database = Database(url)
    await schema.upgrade(database)
    await database.load_epoch()
    user = await database.transact(lambda tx: users.ensure_user(tx, new_id(), "user", new_id()))
    row = await database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
    place = Interleaving(user, str(row["id"]))
    engine = Engine(
        Settings(data_dir=folder, cancel_grace_s=0.2),
        database,
        ResolvedAgent("demo", place.agent),
        registry=AgentTaskRegistry(),
        toolbox=TOOLS,
    )
    place.engines.append(engine)
    await engine.start()
    await place.ask(2)
    await place.settle(0)
    try:
        for step in steps:
            restarts = [one for one in step if one[0] == "restart"]
            others = [one for one in step if one[0] != "restart"]
            await asyncio.gather(*(getattr(place, name)(max(1, n) if name == "ask" else n) for name, n in others))
            if restarts:
                await place.restart(0)
        await place.check()
    finally:
        await place.engine.stop()
        await database.close()
