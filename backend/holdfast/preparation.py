"""What must be in order before anything runs: each fault stops the start with one line."""

import asyncio
import os
from pathlib import Path

from holdfast.agents.builtin import BUILTIN
from holdfast.agents.resolve import resolve_tools
from holdfast.agents.sandbox import Sandbox, SandboxUnavailable, find_sandbox
from holdfast.agents.tools import Toolbox
from holdfast.config import Settings
from holdfast.domain.errors import Unavailable
from holdfast.store import schema
from holdfast.store.database import Database, DatabaseUrlError, is_connection_error
from holdfast.store.health import in_words
from holdfast.store.schema import SchemaError

CONNECT_S = 1.5


class NotReady(Exception):
    """Something is missing; the message says what to do."""


def open_database(settings: Settings) -> Database:
    """The database that the settings name; SQLite's folder is made.

    Raises:
        NotReady: the URL is wrong, or the folder cannot be written.
    """
    try:
        database = Database(settings.resolved_database_url, synchronous=settings.durability)
    except DatabaseUrlError as error:
        raise NotReady(f"database_url: {error}") from None
    if database.dialect == "sqlite":
        folder = database.sqlite_path.parent
        _make_writable(folder)
        if database.sqlite_path.exists() and not os.access(database.sqlite_path, os.W_OK):
            raise NotReady(f"{database.sqlite_path} cannot be written; give this user the right to, or use another")
    return database


def find_tools(settings: Settings) -> Toolbox:
    """The tools of this project, and those of one's own that the settings name.

    Raises:
        NotReady: one cannot be had, or two have one name.
    """
    try:
        return BUILTIN.with_(resolve_tools(settings.tools))
    except ValueError as error:
        raise NotReady(str(error)) from None


def check_sandbox(settings: Settings) -> Sandbox:
    """The sandbox that the settings ask for.

    Raises:
        NotReady: this machine does not have it.
    """
    try:
        return find_sandbox(settings.sandbox)  # pyright: ignore[reportArgumentType]
    except SandboxUnavailable as error:
        raise NotReady(str(error)) from None


async def prepare(database: Database, *, upgrade: bool) -> None:
    """See that the database answers and has the newest schema; bring it there when `upgrade`.

    Raises:
        NotReady: it does not answer, is no database, or has another schema.
    """
    shown = database.url.render_as_string(hide_password=True)
    try:
        async with asyncio.timeout(CONNECT_S):
            await schema.present(database)
        await (schema.upgrade(database) if upgrade else schema.check(database))
    except SchemaError as error:
        raise NotReady(str(error)) from None
    except (TimeoutError, Unavailable):
        raise NotReady(f"the database {shown} does not answer; is it running, and the address right?") from None
    except Exception as error:
        why = "reached" if is_connection_error(error) else "used"
        raise NotReady(f"the database {shown} cannot be {why}: {in_words(error)}") from None


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".holdfast-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotReady(
            f"the data folder {folder} cannot be written ({reason}); set --data-dir to one that can"
        ) from None
