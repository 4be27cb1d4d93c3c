"""Reading from SQLite: one moment, a connection each, and nothing left behind by who goes away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from holdfast.store.sqlite import READERS, Sqlite
from sqlalchemy import exc, text
from sqlalchemy.engine import make_url

COUNT = text("SELECT count(*) FROM said")
SLOW = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000) SELECT sum(i) FROM n")


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Sqlite]:
    made = Sqlite(make_url(f"sqlite:///{tmp_path / 'some.db'}"), "full")
    await made.writer.run(lambda connection: connection.exec_driver_sql("CREATE TABLE said (word TEXT)"))
    yield made
    await made.close()


async def say(sqlite: Sqlite) -> None:
    await sqlite.writer.run(lambda connection: connection.exec_driver_sql("INSERT INTO said VALUES ('x')"))


async def test_a_reader_sees_one_moment_and_the_next_one_a_later(sqlite: Sqlite) -> None:
    async with sqlite.reading() as conn:
        assert await conn.scalar(COUNT) == 0
        await say(sqlite)
        assert await conn.scalar(COUNT) == 0
    async with sqlite.reading() as conn:
        assert await conn.scalar(COUNT) == 1


async def test_more_readers_than_connections_take_turns(sqlite: Sqlite) -> None:
    most = now = 0

    async def read() -> None:
        nonlocal most, now
        async with sqlite.reading() as conn:
            now += 1
            most = max(most, now)
            await conn.scalar(SLOW)
            now -= 1

    await asyncio.gather(*(read() for _ in range(READERS * 3)))
    assert most == READERS


async def test_who_goes_away_in_the_middle_disturbs_nobody(sqlite: Sqlite) -> None:
    """The statement still runs; whoever gets the connection next comes behind it and sees its own moment."""

    async def read() -> None:
        async with sqlite.reading() as conn:
            await conn.scalar(COUNT)
            await conn.scalar(SLOW)

    gone = [asyncio.ensure_future(read()) for _ in range(READERS)]
    await asyncio.sleep(0.05)
    for one in gone:
        one.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    await say(sqlite)
    for _ in range(READERS * 2):
        async with sqlite.reading() as conn:
            assert await conn.scalar(COUNT) == 1


async def test_a_statement_that_fails_leaves_a_connection_that_works(sqlite: Sqlite) -> None:
    for _ in range(READERS * 2):
        with pytest.raises(exc.OperationalError):
            async with sqlite.reading() as conn:
                await conn.execute(text("SELECT nonsense"))
    async with sqlite.reading() as conn:
        rows = (await conn.execute(text("SELECT 1 AS a, 2 AS b"))).mappings().all()
        assert [dict(row) for row in rows] == [{"a": 1, "b": 2}]
        assert list(await conn.scalars(text("SELECT 3"))) == [3]


async def test_reading_that_ends_after_the_close_says_nothing(sqlite: Sqlite) -> None:
    async with sqlite.reading() as conn:
        await conn.scalar(COUNT)
        await sqlite.close()
