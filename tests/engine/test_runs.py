"""Runs, one node, both databases: what is said, kept, cancelled, queued, handed over, continued."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from holdfast.agents.turn import AgentEvent, AgentFault, CancelToken, Reasoning, Text, Turn, Usage
from holdfast.clock import new_id
from holdfast.domain.errors import Conflict, IdempotencyConflict, Overloaded, RunActive, SessionNotFound
from holdfast.domain.users import User
from holdfast.engine.engine import Engine
from holdfast.store import runs, sessions, transcripts, users
from holdfast.store.tables import tasks
from sqlalchemy import select, text

from tests.conftest import MakeEngine
from tests.support.agents import Puppet
from tests.support.following import Follower, assert_whole, same_as_fold, state_of, stored


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def engine(make_engine: MakeEngine, puppet: Puppet) -> Engine:
    return await make_engine(puppet)


async def messages_of(engine: Engine, session: str) -> list[Any]:
    return [message for _, message in await transcripts.page(engine.database, session, None, 1000)]


async def reply_of(engine: Engine, session: str) -> Any:
    return [message for message in await messages_of(engine, session) if message.role == "assistant"][-1]


async def test_the_users_message_and_the_empty_answer_exist_before_the_first_chunk(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    await engine.send(user, session, "hello")
    await puppet.started.wait()
    said, reply = await messages_of(engine, session)
    assert (said.role, said.content) == ("user", "hello")
    assert (reply.role, reply.content, reply.metadata["streaming"]) == ("assistant", "", True)
    puppet.end()


async def test_content_can_be_read_after_every_chunk(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    expected = ""
    for word in ("First ", "second ", "third"):
        puppet.say(word)
        await follower.until_said(word)
        expected += word
        assert (await reply_of(engine, session)).content == expected
        async with engine.database.read() as conn:
            query = "SELECT content FROM message_contents WHERE role = 'assistant'"
            assert await conn.scalar(text(query)) == expected
    puppet.end()
    await follower.until_end(sent.run)
    reply = await reply_of(engine, session)
    assert (reply.content, reply.metadata["streaming"]) == ("First second third", False)


async def test_an_error_of_the_agent_keeps_what_came(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    puppet.say("one ", "two ")
    puppet.fail(RuntimeError("secret words"))
    end = await Follower(engine, session).until_end(sent.run)
    assert end["event"]["code"] == "agent_error"
    assert "secret" not in json.dumps(end)
    reply = await reply_of(engine, session)
    assert (reply.content, reply.metadata["has_error"]) == ("one two ", True)
    assert reply.metadata["error"] == end["event"]["metadata"]["error"]
    assert_whole(await stored(engine, session))


async def test_a_fault_of_the_provider_is_told_in_its_words(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    puppet.fail(AgentFault("provider_error", "The model provider is over its limits."))
    end = await Follower(engine, session).until_end(sent.run)
    assert (end["event"]["code"], end["event"]["message"]) == (
        "provider_error",
        "The model provider is over its limits.",
    )


async def test_cancel_keeps_what_came_and_nothing_follows(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.say("kept ")
    await follower.until_said("kept ")
    effect, concerned, _ = await engine.cancel(user, session, reason="enough")
    assert (effect, concerned) == ("requested", [sent.run])
    puppet.say("too late")
    end = await follower.until_end(sent.run)
    assert end["event"]["outcome"] == {"type": "cancelled"}
    assert end["event"]["metadata"]["cancel"]["reason"] == "enough"
    await puppet.closed.wait()
    reply = await reply_of(engine, session)
    assert (reply.content, reply.metadata["cancelled"]) == ("kept ", True)
    async with engine.database.read() as conn:
        row = await sessions.row_of(conn, session)
    assert (row["cancellation_status"], row["ui_status"], row["cancelled_by"]) == ("Cancelled", "NeedsReview", user.id)
    assert_whole(await stored(engine, session))


async def test_cancel_twice_is_the_same_as_once(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    await puppet.started.wait()
    answers = await asyncio.gather(*(engine.cancel(user, session, sent.run) for _ in range(5)))
    assert {answer[0] for answer in answers} <= {"requested", "already_terminal"}
    await Follower(engine, session).until_end(sent.run)
    assert (await engine.cancel(user, session, sent.run))[0] == "already_terminal"
    assert (await engine.cancel(user, session))[0] == "nothing_to_cancel"
    kinds = [record["event"].get("name") for record in await stored(engine, session)]
    assert kinds.count("run.cancel_requested") == 1


async def test_cancel_before_the_run_starts_is_not_lost(
    make_engine: MakeEngine, user: User, session: str, puppet: Puppet
) -> None:
    engine = await make_engine(puppet, role="web")
    sent, _, _ = await engine.send(user, session, "hello")
    await engine.cancel(user, session)
    assert await engine.worker.claim() is False
    assert not puppet.started.is_set()
    assert await state_of(engine, sent.run) == "Canceled"
    said = await messages_of(engine, session)
    assert [message.content for message in said] == ["hello"]
    assert_whole(await stored(engine, session))


async def test_cancel_between_claim_and_start_is_not_lost(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    engine.registry.cancel_run(session, "the run that comes")
    token = CancelToken()
    engine.registry.register(session, "m", token, run="the run that comes")
    assert token.is_set


async def test_an_agent_that_ignores_the_token_is_interrupted(
    make_engine: MakeEngine, user: User, session: str
) -> None:
    started = asyncio.Event()
    closed = asyncio.Event()

    async def deaf(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield Text("x")
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    engine = await make_engine(deaf, cancel_grace_s=0.05)
    sent, _, _ = await engine.send(user, session, "hello")
    await started.wait()
    await engine.cancel(user, session)
    await Follower(engine, session).until_end(sent.run)
    assert closed.is_set()


async def test_a_run_needs_no_socket(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.say("one ")
    await follower.until_said("one ")
    follower.close()
    puppet.say("two ", "three")
    puppet.end()
    again = Follower(engine, session)
    await again.until_end(sent.run)
    assert again.text() == "one two three"


async def test_messages_wait_their_turn_first_in_first_out(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent = [(await engine.send(user, session, str(number)))[0] for number in range(4)]
    assert [one.state for one in sent] == ["running", "queued", "queued", "queued"]
    follower = Follower(engine, session)
    for one in sent:
        puppet.end()
        await follower.until_end(one.run)
    assert [turn.prompt for turn in puppet.turns] == ["0", "1", "2", "3"]
    assert_whole(await stored(engine, session))


async def test_reject_and_interrupt(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    first, _, _ = await engine.send(user, session, "first")
    await puppet.started.wait()
    with pytest.raises(RunActive):
        await engine.send(user, session, "no", if_busy="reject")
    waiting, _, _ = await engine.send(user, session, "waiting")
    urgent, _, _ = await engine.send(user, session, "urgent", if_busy="interrupt")
    follower = Follower(engine, session)
    assert (await follower.until_end(first.run))["event"]["outcome"]["type"] == "cancelled"
    puppet.end()
    await follower.until_end(urgent.run)
    puppet.end()
    await follower.until_end(waiting.run)
    assert [turn.prompt for turn in puppet.turns] == ["first", "urgent", "waiting"]


async def test_the_same_key_is_done_once(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    answers = await asyncio.gather(*(engine.send(user, session, "hello", key="k") for _ in range(8)))
    assert len({answer[0].run for answer in answers}) == 1
    assert sorted(answer[1] for answer in answers) == [False] + [True] * 7
    with pytest.raises(IdempotencyConflict):
        await engine.send(user, session, "other", key="k")
    puppet.end()


async def test_the_queue_is_moved_edited_removed_and_swapped_by_version(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    await engine.send(user, session, "running")
    await puppet.started.wait()
    a, b, c = [(await engine.send(user, session, name))[0].run for name in "abc"]
    items, _ = await engine.change_queue(user, session, "move", c, 1, position=1)
    assert [item.content for item in items] == ["c", "a", "b"]
    items, _ = await engine.change_queue(user, session, "edit", a, 1, content="A")
    assert [item.content for item in items] == ["c", "A", "b"]
    with pytest.raises(Conflict) as caught:
        await engine.change_queue(user, session, "edit", a, 1, content="stale")
    assert [item.content for item in caught.value.current] == ["c", "A", "b"]
    versions = {item.task: item.version for item in items}
    items, _ = await engine.change_queue(user, session, "swap", c, versions[c], other=b, other_version=versions[b])
    assert [(item.content, item.position) for item in items] == [("b", 1), ("A", 2), ("c", 3)]
    versions = {item.task: item.version for item in items}
    items, _ = await engine.change_queue(user, session, "remove", a, versions[a])
    assert [item.content for item in items] == ["b", "c"]
    await same_as_fold(engine, session)
    await engine.cancel(user, session)


async def test_a_queue_has_a_bound(
    engine: Engine, user: User, session: str, puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_QUEUED", 3)
    await engine.send(user, session, "running")
    await puppet.started.wait()
    for number in range(3):
        await engine.send(user, session, str(number))
    with pytest.raises(Overloaded):
        await engine.send(user, session, "one too many")
    await engine.cancel(user, session)


async def test_the_rows_are_the_fold_of_the_journal_at_every_moment(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    follower = Follower(engine, session)
    sent, _, _ = await engine.send(user, session, "hello 😀")
    await puppet.started.wait()
    await same_as_fold(engine, session)
    puppet.words.put_nowait(Reasoning("let me "))
    puppet.words.put_nowait(Reasoning("think"))
    await follower.until_said("think")
    await same_as_fold(engine, session)
    puppet.say("a", "b")
    puppet.words.put_nowait(Reasoning("again"))
    await follower.until_said("again")
    await same_as_fold(engine, session)
    await engine.send(user, session, "waits")
    await same_as_fold(engine, session)
    puppet.words.put_nowait(Usage(3, 4, "model"))
    puppet.say("c")
    puppet.end()
    await follower.until_end(sent.run)
    await same_as_fold(engine, session)
    reply = (await messages_of(engine, session))[1]
    assert reply.metadata["reasoning"] == "let me think\n\nagain"
    assert reply.metadata["usage"] == {"input_tokens": 3, "output_tokens": 4}
    puppet.end()


@pytest.mark.parametrize("size", [2**20, 10 * 2**20])
async def test_messages_of_a_mebibyte_and_more(
    engine: Engine, user: User, session: str, puppet: Puppet, size: int
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    piece = "0123456789abcde " * 64
    follower = Follower(engine, session)
    for number in range(size // len(piece)):
        puppet.say(piece)
        if number % 256 == 0:
            await asyncio.sleep(0)
    puppet.words.put_nowait(Reasoning("half way"))
    await follower.until_said("half way", 60)
    assert len((await reply_of(engine, session)).content) == size
    puppet.say("end")
    puppet.end()
    await follower.until_end(sent.run, 60)
    reply = await reply_of(engine, session)
    assert reply.content == piece * (size // len(piece)) + "end"
    assert follower.text() == reply.content


async def test_one_delta_may_be_very_long_and_strange(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    puppet.say("x" * 100_000, "a\x00b", "\ud800", "😀", "")
    puppet.end()
    await Follower(engine, session).until_end(sent.run)
    assert (await reply_of(engine, session)).content == "x" * 100_000 + "a\ufffdb" + "\ufffd" + "😀"


async def test_history_has_what_was_cut_and_says_so(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    first, _, _ = await engine.send(user, session, "one")
    follower = Follower(engine, session)
    puppet.say("half")
    await follower.until_said("half")
    await engine.cancel(user, session)
    await follower.until_end(first.run)
    again, _ = await engine.continue_run(user, first.run)
    puppet.say(" and the rest")
    puppet.end()
    await follower.until_end(again.run)
    turn = puppet.turns[-1]
    assert turn.prompt == ""
    assert [(m.role, m.content, m.cut) for m in turn.history] == [
        ("user", "one", None),
        ("assistant", "half", "cancelled"),
    ]
    with pytest.raises(Conflict):
        await engine.continue_run(user, again.run)
    await same_as_fold(engine, session)


async def test_a_drain_hands_the_run_over_and_another_node_goes_on(
    make_engine: MakeEngine, user: User, session: str
) -> None:
    one, two = Puppet(), Puppet()
    first = await make_engine(one)
    sent, _, _ = await first.send(user, session, "tell me")
    follower = Follower(first, session)
    one.words.put_nowait(Reasoning("hm"))
    one.say("begin ")
    await follower.until_said("begin ")
    one.words.put_nowait(Reasoning("open"))
    await follower.until_said("open")
    await first.stop(drain_s=0)
    assert await state_of(first, sent.run) == "Pending"
    second = await make_engine(two, own_database=True)
    await two.started.wait()
    assert (two.turns[0].said, two.turns[0].prompt) == ("begin ", "tell me")
    two.say("end")
    two.end()
    follower = Follower(second, session)
    await follower.until_end(sent.run)
    reply = await reply_of(second, session)
    assert (reply.content, reply.metadata["reasoning"]) == ("begin end", "hm\n\nopen")
    assert_whole(await stored(second, session))
    await same_as_fold(second, session)


async def test_users_see_only_what_is_theirs(engine: Engine, user: User, session: str) -> None:
    stranger = await engine.database.transact(lambda tx: users.ensure_user(tx, "eve", "user", new_id()))
    for work in (
        engine.send(stranger, session, "x"),
        engine.cancel(stranger, session),
        engine.change_queue(stranger, session, "remove", new_id(), 1),
    ):
        with pytest.raises(SessionNotFound):
            await work
    async with engine.database.read() as conn:
        assert await sessions.list_for(conn, stranger, sessions.Filters(), None, 10) == []


async def test_limits_of_a_user_are_kept(make_engine: MakeEngine, user: User) -> None:
    running = 0
    most = 0
    gate = asyncio.Event()

    async def counting(turn: Turn) -> AsyncIterator[AgentEvent]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        yield Text("x")
        await gate.wait()
        running -= 1

    nodes = [await make_engine(counting, own_database=True, max_runs_per_user=3) for _ in range(3)]
    for number in range(9):
        row = await nodes[0].database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
        await nodes[number % 3].send(user, row["id"], "go")
    while running < 3:
        await asyncio.sleep(0)
    for node in nodes:
        await node.worker.claim()
    gate.set()
    async with asyncio.timeout(30):
        while True:
            async with nodes[0].database.read() as conn:
                states = set(await conn.scalars(select(tasks.c.state)))
            if states == {"Success"}:
                break
            await asyncio.sleep(0.01)
    assert most == 3
