"""The scenarios of incremental saving, each by its usual name, through the engine on both databases."""

import asyncio
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
