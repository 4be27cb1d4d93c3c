"""The writer to SQLite: who waits shares a commit, and nobody else's failure."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from holdfast.store.sqlite import SqliteWriter, finished
from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


@pytest.fixture
async def writer(file: Path) -> AsyncIterator[SqliteWriter]:
    made = SqliteWriter(make_url(f"sqlite:///{file}"), "full")
    await made.run(lambda connection: connection.exec_driver_sql("CREATE TABLE said (word TEXT UNIQUE)"))
    yield made
    await made.close()


def say(connection: Connection, word: str) -> str:
    connection.exec_driver_sql("INSERT INTO said VALUES (?)", (word,))
    return word


def said(file: Path) -> list[str]:
    """What another connection sees, in the order in which it was written."""
    with sqlite3.connect(file) as connection:
        return [row[0] for row in connection.execute("SELECT word FROM said ORDER BY rowid")]


def commits(writer: SqliteWriter) -> list[str]:
    found: list[str] = []

    def seen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement == "COMMIT":
            found.append(statement)

    event.listen(writer.engine, "before_cursor_execute", seen)
    return found


async def test_all_who_wait_share_a_commit(writer: SqliteWriter, file: Path) -> None:
    seen = commits(writer)
    words = [f"word {number}" for number in range(40)]
    assert await asyncio.gather(*(writer.run(lambda c, w=word: say(c, w)) for word in words)) == words
    assert said(file) == words
    assert 1 <= len(seen) < 20


async def test_a_group_is_closed_in_time(writer: SqliteWriter, file: Path) -> None:
    """One that takes long does not make all others wait for all that follow it."""
    seen = commits(writer)

    def slowly(connection: Connection, number: int) -> None:
        connection.exec_driver_sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT sum(i) FROM n"
        ).scalar()
        say(connection, str(number))

    await asyncio.gather(*(writer.run(lambda c, n=number: slowly(c, n)) for number in range(6)))
    assert len(seen) >= 4
    assert said(file) == [str(number) for number in range(6)], "the rest of a group keeps its place"


async def test_the_journal_goes_first(writer: SqliteWriter, file: Path) -> None:
    usual = [writer.run(lambda c, n=number: say(c, f"usual {n}")) for number in range(3)]
    await asyncio.gather(*usual, writer.run(lambda c: say(c, "urgent"), first=True))
    assert said(file) == ["urgent", "usual 0", "usual 1", "usual 2"]


async def test_one_that_fails_takes_back_only_what_it_did(writer: SqliteWriter, file: Path) -> None:
    def twice(connection: Connection) -> None:
        say(connection, "half")
        say(connection, "half")

    outcomes = await asyncio.gather(
        writer.run(lambda c: say(c, "before")),
        writer.run(twice),
        writer.run(lambda c: say(c, "after")),
        return_exceptions=True,
    )
    assert [type(outcome).__name__ for outcome in outcomes] == ["str", "IntegrityError", "str"]
    assert said(file) == ["before", "after"]


async def test_when_sqlite_takes_all_back_nobody_is_told_that_it_is_stored(writer: SqliteWriter, file: Path) -> None:
    """A full disk or a failed read ends the whole transaction, and SQLite says so to one statement alone."""

    def lost(connection: Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")
        raise OSError("the disk is gone")

    outcomes = await asyncio.gather(
        writer.run(lambda c: say(c, "before")),
        writer.run(lost),
        writer.run(lambda c: say(c, "after")),
        return_exceptions=True,
    )
    assert [type(outcome).__name__ for outcome in outcomes] == ["OSError"] * 3
    assert said(file) == []
    await writer.run(lambda c: say(c, "again"))
    assert said(file) == ["again"]


async def test_whatever_a_unit_raises_nobody_is_left_waiting(writer: SqliteWriter, file: Path) -> None:
    def leave(_: Connection) -> None:
        raise SystemExit(3)

    waiting = [writer.run(lambda c: say(c, "before")), writer.run(leave), writer.run(lambda c: say(c, "after"))]
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*(asyncio.ensure_future(_said_by(one)) for one in waiting))
    assert outcomes == ["SystemExit"] * 3
    assert said(file) == []
    await writer.run(lambda c: say(c, "again"))
    assert said(file) == ["again"]


async def _said_by(one: Coroutine[Any, Any, Any]) -> str:
    try:
        return await one
    except SystemExit as error:
        return type(error).__name__


async def test_who_gives_up_before_its_turn_has_changed_nothing(writer: SqliteWriter, file: Path) -> None:
    busy = asyncio.ensure_future(writer.run(lambda c: say(c, "busy")))
    given_up = asyncio.ensure_future(writer.run(lambda c: say(c, "given up")))
    await asyncio.sleep(0)  # Both wait now, and nobody has begun.
    given_up.cancel()
    await busy
    await writer.run(lambda c: say(c, "later"))
    assert said(file) == ["busy", "later"]


async def test_a_closed_one_says_so(file: Path) -> None:
    writer = SqliteWriter(make_url(f"sqlite:///{file}"), "full")
    await writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        await writer.run(lambda _: None)


def test_a_unit_of_work_awaits_its_connection_and_nothing_else() -> None:
    async def dreams() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="nothing else"):
        finished(dreams())


@pytest.mark.parametrize("seed", range(5))
async def test_random_failures_among_many(writer: SqliteWriter, file: Path, seed: int) -> None:
    """What was answered with success is stored, in the order of the answers; all else is not."""
    dice = random.Random(seed)
    answered: list[str] = []

    async def one(number: int) -> None:
        word, fails = f"{number}", dice.random() < 0.3

        def work(connection: Connection) -> str:
            say(connection, word)
            if fails:
                raise ValueError(word)
            return word

        await asyncio.sleep(dice.random() * 0.05)
        try:
            answered.append(await writer.run(work, first=dice.random() < 0.2))
        except ValueError:
            assert fails

    await asyncio.gather(*(one(number) for number in range(200)))
    assert said(file) == answered
    assert len(answered) < 200
