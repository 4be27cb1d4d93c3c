"""The schema: migrations and metadata are one, plans use their indexes, newer ones are refused."""

import uuid
import warnings
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from holdfast.store import gates, schema
from holdfast.store.database import Database, DatabaseUrlError, normalize_url
from holdfast.store.schema import SchemaError
from holdfast.store.tables import metadata
from sqlalchemy import Connection, Select, text


def _differences(connection: Connection) -> list[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Alembic says which expression indexes it cannot compare.
        found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
    # SQLite's index with an expression comes back as other text; the test on the plan holds that one.
    skipped = "ix_tasks_pending" if connection.dialect.name == "sqlite" else None
    return [one for one in found if getattr(one[1], "name", None) != skipped]


async def test_the_migrations_give_the_metadata(database: Database) -> None:
    assert await database.carry_out(_differences) == []


async def test_upgrading_twice_is_the_same_as_once(database: Database) -> None:
    epoch = database.epoch
    await schema.upgrade(database)
    await database.load_epoch()
    assert database.epoch == epoch != ""


async def test_a_journal_of_an_older_schema_is_kept(database_url: str) -> None:
    """Until 0003 events had a foreign key; SQLite's table is made again without."""

    def older(connection: Connection) -> None:
        settings = schema.config()
        settings.attributes["connection"] = connection
        command.upgrade(settings, "0003")

    now = "'2026-01-01T00:00:00.000000Z'"
    user, session, task, message = (str(uuid.UUID(int=number)) for number in range(1, 5))
    said = [
        f"INSERT INTO users (id, name, role, created_at) VALUES ('{user}', 'a', 'user', {now})",
        "INSERT INTO sessions (id, owner, title, ui_status, version, oldest_seq, created_at, updated_at)"
        f" VALUES ('{session}', '{user}', '', 'Idle', 1, 1, {now}, {now})",
        "INSERT INTO messages (id, session_id, task_id, role, content, content_seq, streaming, metadata, created_at)"
        f" VALUES ('{message}', '{session}', '{task}', 'assistant', 'half ', 1, 1, '{{}}', {now})",
        *(
            "INSERT INTO events (session_id, seq, task_id, attempt, type, data, created_at)"
            f" VALUES ('{session}', {seq}, '{task}', 1, 'TEXT_MESSAGE_CONTENT', '{{\"delta\": \"{word}\"}}', {now})"
            for seq, word in enumerate(("old", "a ", "word"), start=1)
        ),
    ]
    database = Database(database_url)
    try:
        await database.carry_out(older)
        for statement in said:
            await database.carry_out(lambda connection, one=statement: connection.exec_driver_sql(one))
        await schema.upgrade(database)
        async with database.read() as conn:
            assert list(await conn.scalars(text("SELECT seq FROM events ORDER BY seq"))) == [1, 2, 3]
            assert await conn.scalar(text("SELECT content FROM message_contents")) == "half a word"
    finally:
        await database.close()


async def test_a_schema_newer_than_the_code_is_refused(database: Database) -> None:
    change = text("UPDATE alembic_version SET version_num = 'from the future'")
    await database.transact(lambda tx: tx.conn.execute(change))
    for work in (schema.check, schema.upgrade):
        with pytest.raises(SchemaError, match="newer Holdfast"):
            await work(database)


async def test_an_empty_database_is_told_apart(database_url: str) -> None:
    database = Database(database_url)
    try:
        with pytest.raises(SchemaError, match="holdfast migrate"):
            await schema.check(database)
    finally:
        await database.close()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_sql_can_be_printed(dialect: str) -> None:
    printed = schema.sql(dialect)
    assert "CREATE TABLE events" in printed
    assert "CREATE VIEW message_contents" in printed


async def explained(database: Database, statement: Select[*tuple[Any, ...]]) -> str:
    """How the database carries out a query; PostgreSQL as it would with many rows."""
    async with database.read() as conn:
        query = str(statement.compile(dialect=conn.dialect, compile_kwargs={"literal_binds": True}))
        if database.dialect == "sqlite":
            return "\n".join(row[3] for row in await conn.execute(text(f"EXPLAIN QUERY PLAN {query}")))
        await conn.execute(text("SET enable_seqscan = off"))
        return "\n".join(row[0] for row in await conn.execute(text(f"EXPLAIN {query}")))


def _claiming(executor: str) -> Select[*tuple[Any, ...]]:
    values = {"executor": executor, "now": datetime(2026, 1, 1, tzinfo=UTC), "default": 10, "limit": 16}
    return gates._pending().params(values)


@pytest.mark.parametrize("executor", ["agent", "process"])
async def test_claiming_reads_indexes_and_not_the_table(database: Database, executor: str) -> None:
    plan = await explained(database, _claiming(executor))
    assert "ix_tasks_pending" in plan, "what waits is found in its order"
    assert "ix_tasks_session_id_state" in plan, "the line of a session"
    assert "SCAN tasks\n" not in plan + "\n"
    assert "Seq Scan" not in plan
    assert "TEMP B-TREE FOR ORDER" not in plan, "the order is that of the index: a limit reads no more than it needs"
    assert "Sort Key: tasks.priority" not in plan, "the same"


async def test_counting_the_use_of_gates_begins_with_the_active_tasks(database: Database) -> None:
    plan = await explained(database, gates._usage())
    assert "ix_tasks_node_id" in plan or "ix_tasks_user_active" in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "", "redis://x"])
def test_an_unusable_url_is_told_so(url: str) -> None:
    with pytest.raises(DatabaseUrlError):
        normalize_url(url)


@pytest.mark.parametrize("url", ["postgres://u:p@h/d", "postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"])
def test_any_spelling_of_postgresql_is_understood(url: str) -> None:
    assert normalize_url(url).drivername == "postgresql+asyncpg"
