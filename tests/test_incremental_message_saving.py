"""The scenarios of incremental saving, each by its usual name, through the engine on both databases."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from holdfast.agents.turn import Text, Turn
from holdfast.clock import new_id
from holdfast.domain.users import User
from holdfast.engine.engine import Engine
from holdfast.store import sessions, transcripts

from tests.conftest import MakeEngine
from tests.support.agents import Puppet
from tests.support.following import Follower, assert_whole, stored


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def engine(make_engine: MakeEngine, puppet: Puppet) -> Engine:
    return await make_engine(puppet)


async def reply_of(engine: Engine, session: str) -> Any:
    found = await transcripts.page(engine.database, session, None, 100)
    return [message for _, message in found if message.role == "assistant"][-1]


async def test_assistant_message_created_at_start_simple_response(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    await puppet.started.wait()
    assert (await reply_of(engine, session)).metadata["streaming"] is True
    puppet.say("Hello")
    puppet.end()
    await Follower(engine, session).until_end(sent.run)
    assert (await reply_of(engine, session)).metadata["streaming"] is False


async def test_message_content_updated_incrementally(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    for word, content in (("First ", "First "), ("second ", "First second "), ("third", "First second third")):
        puppet.say(word)
        await follower.until_said(word)
        assert (await reply_of(engine, session)).content == content
    puppet.end()


async def test_websocket_disconnect_doesnt_stop_execution(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.say("one ")
    await follower.until_said("one ")
    follower.close()
    puppet.say("two ", "three")
    puppet.end()
    await Follower(engine, session).until_end(sent.run)
    assert (await reply_of(engine, session)).content == "one two three"


async def test_streaming_metadata_flag(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.say("x")
    await follower.until_said("x")
    flags = (await reply_of(engine, session)).metadata
    assert flags == {"streaming": True, "cancelled": False, "has_error": False, "interrupted": False}
    puppet.end()
    await follower.until_end(sent.run)
    flags = (await reply_of(engine, session)).metadata
    assert not any(flags[name] for name in ("streaming", "cancelled", "has_error", "interrupted"))


async def test_partial_content_preserved_on_error(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    puppet.say("one ", "two ")
    puppet.fail(RuntimeError("the model failed"))
    await Follower(engine, session).until_end(sent.run)
    reply = await reply_of(engine, session)
    assert (reply.content, reply.metadata["has_error"]) == ("one two ", True)


async def test_websocket_reconnection_and_streaming_resume(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    seen: list[dict[str, Any]] = []
    for number in range(20):
        puppet.say(f"{number} ")
        follower = Follower(engine, session, after=len(seen))
        await follower.until_said(f"{number} ")
        seen += follower.records
        follower.close()
    puppet.end()
    last = Follower(engine, session, after=len(seen))
    await last.until_end(sent.run)
    assert [record["seq"] for record in seen + last.records] == list(range(1, len(seen + last.records) + 1))


async def test_multiple_concurrent_sessions(make_engine: MakeEngine, user: User) -> None:
    async def echo(turn: Turn) -> Any:
        for word in range(50):
            yield Text(f"{turn.prompt}-{word} ")
            await asyncio.sleep(0)

    engine = await make_engine(echo)
    made: list[tuple[str, str]] = []
    for number in range(25):
        row = await engine.database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
        made.append((row["id"], (await engine.send(user, row["id"], str(number)))[0].run))
    for number, (session, run) in enumerate(made):
        await Follower(engine, session).until_end(run)
        content = (await reply_of(engine, session)).content
        assert content == "".join(f"{number}-{word} " for word in range(50))
        assert_whole(await stored(engine, session))


async def test_database_transaction_rollback_scenarios(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.say("one ")
    await follower.until_said("one ")

    async def fails(tx: Any) -> None:
        await sessions.edit(tx, user, session, {"title": "never"}, None)
        raise RuntimeError("rolled back")

    with pytest.raises(RuntimeError):
        await engine.database.transact(fails)
    puppet.say("two")
    puppet.end()
    await follower.until_end(sent.run)
    async with engine.database.read() as conn:
        assert (await sessions.row_of(conn, session))["title"] == "hello"
    assert (await reply_of(engine, session)).content == "one two"
    assert_whole(await stored(engine, session))


async def test_rapid_chunk_generation(make_engine: MakeEngine, user: User, session: str) -> None:
    async def rapid(turn: Turn) -> Any:
        for number in range(30_000):
            yield Text(f"{number} ")

    engine = await make_engine(rapid)
    sent, _, _ = await engine.send(user, session, "go")
    follower = Follower(engine, session)
    await follower.until_end(sent.run, 60)
    assert follower.text() == "".join(f"{number} " for number in range(30_000))
    assert (await reply_of(engine, session)).content == follower.text()


async def action_of(engine: Engine, session: str, position: int = 0) -> Any:
    return (await reply_of(engine, session)).actions[position]


async def test_agent_actions_saved_immediately(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    """Pending when it begins, and its result when that comes, long before the run ends."""
    await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.bash("echo begun; while [ ! -e go ]; do sleep 0.01; done; echo done", id="b")
    await follower.until(lambda r: r["event"].get("name") == "action.output")
    action = await action_of(engine, session)
    assert (action.type, action.status, action.output, action.ended_at) == ("bash", "pending", None, None)
    assert action.started_at is not None
    (engine.workshop.folder(session).root / "go").touch()
    await follower.until(lambda r: r["event"]["type"] == "TOOL_CALL_RESULT")
    action = await action_of(engine, session)
    assert (action.status, action.output.split()) == ("success", ["begun", "done"])
    assert action.ended_at >= action.started_at
    failed = puppet.bash("exit 7")
    await follower.until(lambda r: r["event"]["type"] == "TOOL_CALL_RESULT" and r["event"]["toolCallId"] != "b")
    assert (await action_of(engine, session, 1)).status == "error"
    assert (await failed).failed
    assert (await reply_of(engine, session)).metadata["streaming"] is True
    puppet.end()


async def test_multiple_actions_saved_in_sequence(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    puppet.bash("echo hello")
    puppet.call("file_write", path="a.txt", content="text\n")
    puppet.end()
    await Follower(engine, session).until_end(sent.run)
    first, second = (await reply_of(engine, session)).actions
    assert (first.type, first.input, first.status) == ("bash", {"command": "echo hello"}, "success")
    assert first.output.startswith("hello")
    assert (second.type, second.input) == ("file_write", {"path": "a.txt", "content": "text\n"})
    assert second.status == "success"
    assert first.started_at <= first.ended_at <= second.started_at <= second.ended_at
    assert (first.position, second.position) == (0, 1)


async def test_websocket_disconnect_during_an_action_doesnt_stop_it(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.bash("echo begun; sleep 0.3; echo done")
    await follower.until(lambda r: r["event"].get("name") == "action.output")
    follower.close()
    puppet.end()
    await Follower(engine, session, after=follower.records[-1]["seq"]).until_end(sent.run)
    assert (await action_of(engine, session)).output.split() == ["begun", "done"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("kill -9 $$", "137"),
        ("kill -9 -1", "No such process"),
        ("exec no-such-program", "not found"),
        ("ulimit -v 1000; ls", ""),
        ('rm -rf "$PWD"/* /; ls', ""),
    ],
)
async def test_container_failures_during_action_execution(
    engine: Engine, user: User, session: str, puppet: Puppet, command: str, words: str
) -> None:
    """What dies in the sandbox, or of it, is a result; the run goes on, and so does the next command."""
    sent, _, _ = await engine.send(user, session, "hello")
    broken = puppet.bash(command)
    after = puppet.bash("echo still here")
    puppet.end()
    end = await Follower(engine, session).until_end(sent.run)
    assert end["event"]["type"] == "RUN_FINISHED"
    assert words in str((await broken).output)
    assert str((await after).output).startswith("still here")


async def test_a_sandbox_that_does_not_start_is_a_failed_action(
    engine: Engine, user: User, session: str, puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.workshop.find()
    wrap = engine.workshop.sandbox.wrap
    broken = lambda argv, folder, **more: replace(wrap(argv, folder, **more), argv=["/no/such/bwrap"])  # noqa: E731
    monkeypatch.setattr(type(engine.workshop.sandbox), "wrap", staticmethod(broken))
    sent, _, _ = await engine.send(user, session, "hello")
    result = puppet.bash("echo hello")
    puppet.end()
    end = await Follower(engine, session).until_end(sent.run)
    assert end["event"]["type"] == "RUN_FINISHED"
    assert (await result).failed
    assert (await action_of(engine, session)).outcome == "failed"
