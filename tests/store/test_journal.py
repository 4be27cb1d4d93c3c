"""The journal: gapless, in order, fenced by position, and what the database did not say is found out."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from holdfast.clock import SystemClock, new_id
from holdfast.domain import events as ev
from holdfast.domain.errors import LeaseLost, SessionNotFound, Unavailable
from holdfast.domain.users import User
from holdfast.store import claims, endings, nodes, runs, sessions
from holdfast.store.appenders import Addition, PositionTaken, make_appender
from holdfast.store.claims import Claim
from holdfast.store.database import Database
from holdfast.store.journal import Journal
from holdfast.store.tables import events
from sqlalchemy import exc, select, text

KIND = "TEXT_MESSAGE_CONTENT"


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[Journal]:
    journal = Journal(database, SystemClock(), patience_s=0.5)
    await journal.start()
    yield journal
    await journal.stop()


@pytest.fixture
async def claim(database: Database, user: User, session: str) -> Claim:
    return await claimed(database, user, session)


async def claimed(database: Database, user: User, session: str) -> Claim:
    ids = (new_id(), new_id(), new_id())
    await database.transact(lambda tx: runs.send(tx, user, session, "hi", key=None, if_busy="queue", ids=ids))
    node = nodes.NodeIdentity(new_id(), "h", "b", 1, "1")
    await database.transact(lambda tx: nodes.register(tx, node, 30))
    found = (await database.transact(lambda tx: claims.claim(tx, node.id, "demo", limit=100, per_user=100))).runs
    return next(claim for claim in found if claim.session == session)


def chunk(claim: Claim, text: str) -> str:
    return ev.encode(ev.TextMessageContent(message_id=claim.message, delta=text))


async def seqs(journal: Journal, session: str) -> list[int]:
    return [record.seq for record in await journal.read(session, 0, 10_000)]


async def test_events_are_numbered_without_a_gap(journal: Journal, claim: Claim) -> None:
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    for number in range(1000):
        writer.put(KIND, chunk(claim, str(number)))
        if writer.full:
            await writer.room()
    await writer.flush()
    found = await seqs(journal, claim.session)
    assert found == list(range(1, len(found) + 1))
    said = [ev.decode(record.data) for record in await journal.read(claim.session, 0, 10_000)]
    assert [event.delta for event in said if isinstance(event, ev.TextMessageContent)] == [str(n) for n in range(1000)]


async def test_nothing_is_published_before_it_can_be_read(journal: Journal, claim: Claim) -> None:
    checks: list[asyncio.Task[list[int]]] = []
    published: list[list[int]] = []

    def on_commit(session: str, records: list[ev.Recorded]) -> None:
        published.append([record.seq for record in records])
        checks.append(asyncio.create_task(seqs(journal, session)))

    journal.on_commit = on_commit
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    for number in range(200):
        writer.put(KIND, chunk(claim, str(number)))
        await asyncio.sleep(0)
    await writer.flush()
    for told, stored in zip(published, await asyncio.gather(*checks), strict=True):
        assert set(told) <= set(stored)


async def test_flush_returns_when_it_is_durable(journal: Journal, claim: Claim) -> None:
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    writer.put(KIND, chunk(claim, "x"))
    await writer.flush()
    assert (await journal.read(claim.session, 0, 100))[-1].data == chunk(claim, "x")


async def test_many_sessions_share_a_commit(journal: Journal, database: Database, user: User) -> None:
    claims: list[Claim] = []
    for _ in range(20):
        row = await database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
        claims.append(await claimed(database, user, row["id"]))
    writers = [journal.open(claim.session, claim.run, claim.attempt, claim.head) for claim in claims]
    before = journal.commits
    for writer, claim in zip(writers, claims, strict=True):
        writer.put(KIND, chunk(claim, "x"))
    await asyncio.gather(*(writer.flush() for writer in writers))
    assert journal.commits - before <= 2


async def test_a_writer_goes_on_behind_what_somebody_else_wrote(
    journal: Journal, claim: Claim, database: Database
) -> None:
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    writer.put(KIND, chunk(claim, "one"))
    await writer.flush()
    elsewhere = Database(database.url.render_as_string(hide_password=False))
    other = ev.Custom(name="queue.changed", value={"order": []})
    await elsewhere.transact(lambda tx: tx.append(claim.session, [(None, 0, other)]))
    await elsewhere.close()
    writer.put(KIND, chunk(claim, "two"))
    await writer.flush()
    records = await journal.read(claim.session, 0, 100)
    assert [record.data for record in records[-3:]] == [chunk(claim, "one"), ev.encode(other), chunk(claim, "two")]
    assert [record.seq for record in records] == list(range(1, len(records) + 1))


async def test_a_writer_whose_attempt_is_over_writes_nothing(
    journal: Journal, claim: Claim, database: Database
) -> None:
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    writer.put(KIND, chunk(claim, "mine"))
    await writer.flush()
    elsewhere = Database(database.url.render_as_string(hide_password=False))
    await elsewhere.transact(lambda tx: endings.end(tx, claim.run, claim.attempt, endings.End(outcome="interrupted")))
    await elsewhere.close()
    before = await seqs(journal, claim.session)
    writer.put(KIND, chunk(claim, "too late"))
    with pytest.raises(LeaseLost):
        await writer.flush()
    assert await seqs(journal, claim.session) == before
    with pytest.raises(LeaseLost):
        writer.put(KIND, chunk(claim, "again"))


async def test_one_lost_writer_does_not_keep_the_others_back(
    journal: Journal, claim: Claim, database: Database, user: User
) -> None:
    row = await database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
    good = await claimed(database, user, row["id"])
    lost_writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    good_writer = journal.open(good.session, good.run, good.attempt, good.head)
    for writer, owner in ((lost_writer, claim), (good_writer, good)):
        writer.put(KIND, chunk(owner, "first"))
        await writer.flush()
    elsewhere = Database(database.url.render_as_string(hide_password=False))
    await elsewhere.transact(lambda tx: endings.end(tx, claim.run, claim.attempt, endings.End(outcome="interrupted")))
    await elsewhere.close()
    lost_writer.put(KIND, chunk(claim, "late"))
    good_writer.put(KIND, chunk(good, "second"))
    await good_writer.flush()
    with pytest.raises(LeaseLost):
        await lost_writer.flush()
    assert (await journal.read(good.session, 0, 100))[-1].data == chunk(good, "second")


class Flaky:
    """An appender that writes and then claims that it does not know."""

    def __init__(self, inner: Any, faults: list[str]) -> None:
        self.inner = inner
        self.faults = faults

    async def write(self, additions: Any, now: Any) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise Unavailable("gone before the commit")
        await self.inner.write(additions, now)
        if fault == "after":
            raise Unavailable("gone after the commit")

    async def close(self) -> None:
        await self.inner.close()


@pytest.mark.parametrize("faults", [["before"], ["after"], ["before", "after", "before"], ["after", "after"]])
async def test_a_lost_answer_neither_loses_nor_doubles_an_event(
    journal: Journal, claim: Claim, faults: list[str]
) -> None:
    journal._appender = Flaky(journal._appender, list(faults))
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    for number in range(20):
        writer.put(KIND, chunk(claim, f"{number} "))
        if number % 5 == 4:
            await writer.flush()
    said = [ev.decode(record.data) for record in await journal.read(claim.session, 0, 1000)]
    told = [event.delta for event in said if isinstance(event, ev.TextMessageContent)]
    assert told == [f"{number} " for number in range(20)]


async def test_a_database_that_stays_away_ends_the_writer(journal: Journal, claim: Claim) -> None:
    journal._appender = Flaky(journal._appender, ["before"] * 1000)
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    writer.put(KIND, chunk(claim, "x"))
    with pytest.raises(Unavailable):
        await writer.flush()


async def test_a_taken_place_is_refused_whole(database: Database, claim: Claim) -> None:
    appender = make_appender(database)
    now = SystemClock().now()
    said = [(KIND, chunk(claim, "x"))] * 2
    additions = [Addition(claim.session, claim.run, 1, first, said) for first in (1, 100)]
    with pytest.raises(PositionTaken):
        await appender.write(additions, now)
    await appender.close()
    async with database.read() as conn:
        assert (await conn.execute(select(events.c.seq).where(events.c.seq >= 100))).first() is None


async def test_a_database_that_stays_busy_is_told(database: Database, session: str) -> None:
    tries: list[int] = []

    async def work(tx: Any) -> None:
        tries.append(1)
        await tx.append(session, [(None, 0, ev.Custom(name="x", value={}))])
        raise exc.OperationalError("UPDATE", None, sqlite3.OperationalError("database is locked"))

    with pytest.raises(Unavailable):
        await database.transact(work)
    assert len(tries) > 3
    async with database.read() as conn:
        assert (await conn.execute(select(events))).first() is None


async def test_a_full_disk_is_told_and_stores_nothing(database: Database, session: str) -> None:
    if database.sqlite is None:
        pytest.skip("PostgreSQL says so with a state of its own")
    writer = database.sqlite.writer
    long = (None, 0, ev.Custom(name="x", value={"text": "x" * 2_000_000}))

    def limit(connection: Any, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await writer.run(lambda connection: limit(connection, 1))  # That is: as many as there are.
    outcomes = await asyncio.gather(
        database.transact(lambda tx: tx.append(session, [long])),
        database.transact(lambda tx: tx.append(session, [long])),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 2
    async with database.read() as conn:
        assert (await conn.execute(select(events))).first() is None
    await writer.run(lambda connection: limit(connection, 1_000_000))
    await database.transact(lambda tx: tx.append(session, [long]))


async def test_a_session_that_is_gone_takes_nothing_more(
    journal: Journal, database: Database, user: User, claim: Claim
) -> None:
    """Neither from a run that does not know it yet, nor in a transaction; and nothing of it is left."""
    writer = journal.open(claim.session, claim.run, claim.attempt, claim.head)
    writer.put(KIND, chunk(claim, "before"))
    await writer.flush()
    await database.transact(lambda tx: endings.end(tx, claim.run, claim.attempt, endings.End(outcome="success")))
    await database.transact(lambda tx: sessions.remove(tx, user, claim.session))
    writer.put(KIND, chunk(claim, "late"))
    with pytest.raises(LeaseLost):
        await writer.flush()
    late = (None, 0, ev.Custom(name="x", value={}))
    with pytest.raises(SessionNotFound):
        await database.transact(lambda tx: tx.append(claim.session, [late]))
    async with database.read() as conn:
        assert (await conn.execute(select(events))).first() is None


async def test_sessions_that_are_deleted_while_runs_write_leave_nothing(
    journal: Journal, database: Database, user: User
) -> None:
    """In any order of the two; the other sessions of the same batches lose nothing."""
    made = [await database.transact(lambda tx: sessions.create(tx, user, new_id(), {})) for _ in range(6)]
    claimed_ = [await claimed(database, user, one["id"]) for one in made]
    writers = [journal.open(claim.session, claim.run, claim.attempt, claim.head) for claim in claimed_]

    async def speak(number: int) -> None:
        for count in range(200):
            writers[number].put(KIND, chunk(claimed_[number], f"{count} "))
            await asyncio.sleep(0.0005)
        await writers[number].flush()

    async def delete(number: int) -> None:
        await asyncio.sleep(0.02 + 0.01 * number)
        claim = claimed_[number]
        await database.transact(lambda tx: endings.end(tx, claim.run, claim.attempt, endings.End(outcome="success")))
        await database.transact(lambda tx: sessions.remove(tx, user, claim.session))

    talks = [speak(number) for number in range(6)]
    outcomes = await asyncio.gather(*talks, *(delete(number) for number in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LeaseLost] * 3 + [type(None)] * 6
    async with database.read() as conn:
        rows = (await conn.execute(select(events.c.session_id).where(events.c.type == KIND))).all()
    kept = [row[0] for row in rows]
    assert {session: kept.count(session) for session in set(kept)} == {claim.session: 200 for claim in claimed_[3:]}


async def test_concurrent_transactions_append_in_turn(database: Database, session: str) -> None:
    event = ev.Custom(name="x", value={})
    await asyncio.gather(
        *(database.transact(lambda tx: tx.append(session, [(None, 0, event), (None, 0, event)])) for _ in range(20))
    )
    async with database.read() as conn:
        found = list(
            await conn.scalars(select(events.c.seq).where(events.c.session_id == session).order_by(events.c.seq))
        )
    assert found == list(range(1, 41))


async def test_a_failed_transaction_leaves_nothing(database: Database, session: str) -> None:
    told: list[Any] = []
    database.on_commit = told.append

    async def work(tx: Any) -> None:
        await tx.append(session, [(None, 0, ev.Custom(name="x", value={}))])
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        await database.transact(work)
    assert told == []
    async with database.read() as conn:
        assert (await conn.execute(select(events))).first() is None


async def test_a_transaction_is_finished_when_its_caller_goes_away(database: Database, session: str) -> None:
    entered = threading.Event()

    async def work(tx: Any) -> None:
        entered.set()
        if tx.dialect == "sqlite":
            time.sleep(0.3)  # noqa: ASYNC251 - it has the thread to itself
        else:
            await tx.conn.execute(text("SELECT pg_sleep(0.3)"))
        await tx.append(session, [(None, 0, ev.Custom(name="x", value={}))])

    caller = asyncio.create_task(database.transact(work))
    await asyncio.to_thread(entered.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.wait(set(database._running) or {asyncio.create_task(asyncio.sleep(0))})
    async with database.read() as conn:
        assert len((await conn.execute(select(events))).all()) == 1
