"""The ten things that always hold, each by its name, on both databases.

The harder proofs stand elsewhere: kills and zombies in `test_crash.py`, any order of events in
`engine/test_state_machine.py`, lost answers of the database in `store/test_journal.py`.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import Any

import psutil
import pytest
from holdfast.agents.turn import Text, Turn
from holdfast.clock import new_id
from holdfast.domain.errors import LeaseLost, RunNotFound, SessionNotFound
from holdfast.domain.users import User
from holdfast.engine import hub
from holdfast.engine.engine import Engine
from holdfast.store import actions, endings, journal, runs, sessions, texts, users
from holdfast.store.actions import Begun, Owner
from holdfast.store.database import Database
from holdfast.store.endings import End
from holdfast.store.tables import tasks
from sqlalchemy import select, text

from tests.conftest import MakeEngine
from tests.support.agents import Puppet
from tests.support.following import Follower, assert_whole, state_of, stored


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def engine(make_engine: MakeEngine, puppet: Puppet) -> Engine:
    return await make_engine(puppet)


async def test_1_committed_before_seen(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    checked = 0
    inner = engine.hub.publish
    looks: list[asyncio.Task[list[Any]]] = []
    told: list[int] = []

    def publish(where: str, records: list[Any]) -> None:
        told.append(records[-1].seq)
        looks.append(asyncio.create_task(stored(engine, where)))
        inner(where, records)

    engine.journal.on_commit = publish
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    for number in range(30):
        puppet.say(f"{number}")
        await follower.until_said(f"{number}")
    puppet.end()
    await follower.until_end(sent.run)
    for seq, found in zip(told, await asyncio.gather(*looks), strict=True):
        assert found[-1]["seq"] >= seq
        checked += 1
    assert checked >= 30


@asynccontextmanager
async def nothing_commits(database: Database) -> AsyncGenerator[None, None]:
    """Hold the lock that the beginning of an action needs."""
    if database.dialect == "sqlite":
        with closing(sqlite3.connect(database.sqlite_path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield
        return
    other = Database(database.url.render_as_string(hide_password=False))
    async with other.read() as conn:
        await conn.execute(text("LOCK TABLE actions IN EXCLUSIVE MODE"))
        yield
    await other.close()


async def test_1_an_action_is_committed_before_its_process_starts(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    """With every commit held up, nothing is started; what is started is known."""
    sent, _, _ = await engine.send(user, session, "hello")
    await puppet.started.wait()
    folder = engine.workshop.folder(session).root
    async with nothing_commits(engine.database):
        puppet.bash("touch started", id="b")
        puppet.end()
        await asyncio.sleep(0.3)
        assert not (folder / "started").exists()
    await Follower(engine, session).until_end(sent.run)
    assert (folder / "started").exists()


async def test_2_a_run_needs_no_socket(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    followers = [Follower(engine, session) for _ in range(20)]
    puppet.say("a")
    for follower in followers:
        await follower.until_said("a")
        follower.close()
    assert engine.hub.sessions == []
    puppet.say("b")
    puppet.end()
    async with asyncio.timeout(10):
        while await state_of(engine, sent.run) != "Success":
            await asyncio.sleep(0)


async def test_3_gapless_and_once(make_engine: MakeEngine, user: User, session: str) -> None:
    async def many(turn: Turn) -> Any:
        for number in range(2000):
            yield Text(f"{number} ")
            if number % 100 == 0:
                await asyncio.sleep(0)

    one = await make_engine(many)
    two = await make_engine(many, own_database=True, role="web")
    sent, _, _ = await one.send(user, session, "hello")
    followers = [Follower(node, session, after=after) for node in (one, two) for after in (0, 1, 4)]
    await followers[0].until_end(sent.run)
    two.hub.hint(await two.journal.heads([session]))
    for follower in followers[1:]:
        await follower.until_end(sent.run)
    for follower, after in zip(followers, (0, 1, 4) * 2, strict=True):
        seqs = [record["seq"] for record in follower.records]
        assert seqs == list(range(after + 1, after + 1 + len(seqs)))
    assert len({follower.records[-1]["seq"] for follower in followers}) == 1


async def test_4_readable_at_any_moment(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    for number in range(20):
        puppet.say(f"{number} ")
        await follower.until_said(f"{number} ")
        async with engine.database.read() as conn:
            query = "SELECT content FROM message_contents WHERE role = 'assistant'"
            assert await conn.scalar(text(query)) == follower.text()
    puppet.end()


async def test_5_exactly_one_end(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    """An end, a cancel and a recovery race for one run; one of them wins."""
    for _ in range(10):
        sent, _, _ = await engine.send(user, session, "hello")
        follower = Follower(engine, session)
        await follower.until(lambda r, run=sent.run: r["run"] == run)
        puppet.end()
        attempt = 1
        await asyncio.gather(
            engine.cancel(user, session, sent.run),
            engine.lease.end_interrupted(sent.run, attempt),
            return_exceptions=True,
        )
        await follower.until_end(sent.run)
        while engine.worker.running:
            await asyncio.sleep(0)
        while not puppet.words.empty():
            puppet.words.get_nowait()
    assert_whole(await stored(engine, session))


async def test_6_cancel_is_final(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.say("a")
    await follower.until_said("a")
    await engine.cancel(user, session)
    await follower.until_end(sent.run)
    before = await stored(engine, session)
    puppet.say("b", "c")
    await puppet.closed.wait()
    with pytest.raises(LeaseLost):
        await engine.database.transact(lambda tx: endings.end(tx, sent.run, 1, End(outcome="success")))
    assert await stored(engine, session) == before


async def test_6_cancel_is_final_for_processes(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    """When the end is told, nothing of the run lives, and nothing of it starts again."""
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    tag = f"inv-{os.getpid()}-{session[-8:]}"
    puppet.bash(f"echo begun; exec -a {tag} sleep 300")
    await follower.until(lambda r: r["event"].get("name") == "action.output")
    await engine.cancel(user, session)
    await follower.until_end(sent.run)
    assert not [p for p in psutil.process_iter(["cmdline"]) if tag in " ".join(p.info["cmdline"] or [])]
    before = await stored(engine, session)
    late = await puppet.turns[0].tools.call("bash", {"command": "touch late"})
    assert late.failed
    assert not (engine.workshop.folder(session).root / "late").exists()
    assert await stored(engine, session) == before


async def test_7_the_past_cannot_write(engine: Engine, user: User, session: str, puppet: Puppet) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    puppet.say("a")
    await follower.until_said("a")
    assert await engine.lease.end_interrupted(sent.run, 1)
    await follower.until_end(sent.run)
    before = await stored(engine, session)
    puppet.say("late")
    await puppet.closed.wait()
    while engine.worker.running:
        await asyncio.sleep(0)
    assert await stored(engine, session) == before
    for late in (
        engine.database.transact(lambda tx: endings.requeue(tx, sent.run, 1, engine.lease.node.id, "drain")),
        engine.database.transact(lambda tx: texts.checkpoint(tx, sent.run, 1, sent.message, "x", {}, 10**6)),
    ):
        with pytest.raises(LeaseLost):
            await late


async def test_7_the_past_can_neither_begin_nor_end_an_action(
    engine: Engine, user: User, session: str, puppet: Puppet
) -> None:
    """A run whose lease is gone starts nothing, and the result of what it runs is not told."""
    sent, _, _ = await engine.send(user, session, "hello")
    follower = Follower(engine, session)
    go = asyncio.Event()

    async def work() -> str:
        await go.wait()
        return "too late"

    outcome = puppet.do(lambda turn: turn.tools.perform("own", {}, work))
    await follower.until(lambda r: r["event"]["type"] == "TOOL_CALL_END")
    assert await engine.lease.end_interrupted(sent.run, 1)
    go.set()
    puppet.bash("touch late")
    await follower.until_end(sent.run)
    before = await stored(engine, session)
    await puppet.closed.wait()
    while engine.worker.running:
        await asyncio.sleep(0.01)
    assert isinstance(outcome.exception(), LeaseLost)
    assert await stored(engine, session) == before
    assert_whole(before)
    assert not (engine.workshop.folder(session).root / "late").exists()
    owner = Owner(session, sent.run, 1)
    with pytest.raises(LeaseLost):
        await engine.database.transact(lambda tx: actions.begin(tx, owner, sent.message, Begun("x", "bash", {}, 0)))


async def test_8_a_limit_is_a_limit(make_engine: MakeEngine, user: User) -> None:
    """Four claimers at once; the history says how many ran together."""
    gate = asyncio.Event()

    async def held(turn: Turn) -> Any:
        yield Text("x")
        await gate.wait()

    nodes = [await make_engine(held, own_database=True, max_runs_per_user=2, role="web") for _ in range(4)]
    for _ in range(8):
        row = await nodes[0].database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
        await nodes[0].send(user, row["id"], "go")
        await nodes[0].send(user, row["id"], "and again")
    active: list[Any] = []
    for _ in range(5):
        await asyncio.gather(*(node.worker.claim() for node in nodes))
        async with nodes[0].database.read() as conn:
            statement = select(tasks.c.session_id).where(tasks.c.node_id.is_not(None))
            active = list((await conn.execute(statement)).all())
        assert len(active) <= 2
        assert len(set(active)) == len(active)
    assert len(active) == 2
    gate.set()


async def test_9_yours_only(engine: Engine, user: User, session: str) -> None:
    sent, _, _ = await engine.send(user, session, "hello")
    eve = await engine.database.transact(lambda tx: users.ensure_user(tx, "eve", "user", new_id()))
    with pytest.raises(SessionNotFound):
        await engine.send(eve, session, "x")
    with pytest.raises(SessionNotFound):
        await engine.cancel(eve, session)
    with pytest.raises(RunNotFound):
        await engine.continue_run(eve, sent.run)
    async with engine.database.read() as conn:
        with pytest.raises(SessionNotFound):
            await sessions.visible(conn, eve, session)
        with pytest.raises(RunNotFound):
            await runs.visible(conn, eve, sent.run)


async def test_10_bounded(make_engine: MakeEngine, user: User, session: str) -> None:
    """An agent far ahead of its commits waits; a follower that does not read holds next to nothing."""
    ahead = 0

    async def eager(turn: Turn) -> Any:
        nonlocal ahead
        for _ in range(20_000):
            yield Text("x" * 50)
            ahead = max(ahead, len(writer[0].pending) if writer else 0)

    engine = await make_engine(eager)
    writer: list[journal.RunWriter] = []
    inner = engine.journal.open

    def opened(*arguments: Any) -> journal.RunWriter:
        writer.append(inner(*arguments))
        return writer[0]

    engine.journal.open = opened  # type: ignore[method-assign]
    stalled = Follower(engine, session)
    stalled.subscription.live = True
    sent, _, _ = await engine.send(user, session, "go")
    await Follower(engine, session).until_end(sent.run, 60)
    assert 0 < ahead <= journal.WINDOW_EVENTS
    channel = stalled.subscription.channel
    assert channel.bytes <= hub.WINDOW_BYTES
    assert len(channel.items) <= hub.WINDOW_EVENTS
