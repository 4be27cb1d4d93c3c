"""The schema: is it there, is it ours, and how it comes to the newest version."""

import io
import uuid
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from holdfast.store.database import Database

_MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The schema is not the one that this version works with; the message says what to do."""


def config() -> Config:
    """Alembic's configuration; the connection is put in by whoever runs it."""
    result = Config()
    result.set_main_option("script_location", str(_MIGRATIONS))
    return result


def newest() -> str:
    """The revision that this version works with."""
    return ScriptDirectory.from_config(config()).get_current_head() or ""


async def check(database: Database) -> None:
    """Refuse a schema that is not the newest.

    Raises:
        SchemaError: it is missing, older, or newer than the code.
    """
    state = await present(database)
    if state == newest():
        return
    if state is None:
        raise SchemaError("the database has no schema yet; run `holdfast migrate`")
    if _known(state):
        raise SchemaError(f"the schema is at {state}, older than this version; run `holdfast migrate`")
    raise SchemaError(
        f"the schema is at {state}, which this version does not know; it was made by a newer Holdfast: install that one"
    )


async def present(database: Database) -> str | None:
    """The revision of the schema in the database, None when there is none."""
    return await database.carry_out(_revision)


async def upgrade(database: Database) -> None:
    """Bring the schema to the newest version; several processes may try at once.

    Raises:
        SchemaError: it is newer than the code.
    """
    state = await present(database)
    if state is not None and state != newest() and not _known(state):
        await check(database)
    await database.carry_out(_upgrade)


def sql(dialect: str) -> str:
    """The statements that make the newest schema from nothing, for a person to read and run."""
    settings = config()
    settings.output_buffer = io.StringIO()
    settings.attributes["dialect"] = dialect
    command.upgrade(settings, "head", sql=True)
    return settings.output_buffer.getvalue()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known(revision: str) -> bool:
    known: list[Any] = list(ScriptDirectory.from_config(config()).walk_revisions())
    return revision in {script.revision for script in known}


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7205759403792793)")
    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")


def new_epoch() -> str:
    """An epoch that no other database has."""
    return uuid.uuid4().hex[:12]
