"""What the command line does on the database itself: schema, users, tokens, files."""

import argparse
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from holdfast import portable
from holdfast.api.auth import new_token
from holdfast.clock import SystemClock, is_id, new_id
from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.preparation import NotReady, open_database, prepare
from holdfast.store import schema, sessions, users
from holdfast.store.database import Database
from holdfast.store.health import DRIVER_FAULTS, in_words
from holdfast.store.journal import Journal
from holdfast.store.schema import SchemaError

Work = Callable[[Database], Awaitable[int]]


async def _with_database(settings: Settings, work: Work, *, upgrade: bool | None = None) -> int:
    """Run `work` on the prepared database; every fault is one line and code 1."""
    try:
        database = open_database(settings)
        try:
            if upgrade is not None:
                await prepare(database, upgrade=upgrade or database.dialect == "sqlite")
                await database.load_epoch()
            return await work(database)
        finally:
            await database.close()
    except (NotReady, SchemaError, HoldfastError) as error:
        print(f"holdfast: {error}", file=sys.stderr)
    except DRIVER_FAULTS as error:
        print(f"holdfast: the database cannot be used: {in_words(error)}", file=sys.stderr)
    return 1


async def migrate(settings: Settings, *, check: bool, sql: bool) -> int:
    """Bring the schema to the newest version, or only look, or only print the SQL."""

    async def work(database: Database) -> int:
        if sql:
            print(schema.sql(database.dialect))
            return 0
        if check:
            await prepare(database, upgrade=False)
            print(f"the schema is at {schema.newest()}, the newest")
            return 0
        await prepare(database, upgrade=True)
        print(f"the schema is at {schema.newest()}")
        return 0

    return await _with_database(settings, work)


async def accounts(settings: Settings, arguments: argparse.Namespace) -> int:
    """`holdfast token ...` and `holdfast user ...`."""
    actions: dict[str, Callable[[Database, argparse.Namespace], Awaitable[int]]] = {
        "token_create": _token_create,
        "token_list": _token_list,
        "token_revoke": _token_revoke,
        "user_create": _user_create,
        "user_list": _user_list,
        "user_disable": _user_disable,
    }
    action = actions[arguments.account]
    return await _with_database(settings, lambda database: action(database, arguments), upgrade=False)


async def export(settings: Settings, session: str, kind: str) -> int:
    """Write a session to standard output."""

    async def work(database: Database) -> int:
        if not is_id(session):
            raise NotReady(f"{session!r} is not the id of a session")
        async with database.read() as conn:
            row = await sessions.row_of(conn, session)
        sys.stdout.write(await portable.export(database, Journal(database, SystemClock()), row, kind))
        return 0

    return await _with_database(settings, work, upgrade=False)


async def load(settings: Settings, file: str, name: str) -> int:
    """Read an exported session; prints its new id."""
    try:
        text = _read(file)
    except (OSError, UnicodeDecodeError) as error:
        print(f"holdfast: {file} cannot be read: {error}", file=sys.stderr)
        return 1

    async def work(database: Database) -> int:
        role = "admin" if name == "local" else "user"
        user = await database.transact(lambda tx: users.ensure_user(tx, name, role, new_id()))
        print(await portable.load(database, user, text))
        return 0

    return await _with_database(settings, work, upgrade=False)


def _read(file: str) -> str:
    return sys.stdin.read() if file == "-" else Path(file).read_text()


def parse_duration(text: str) -> timedelta:
    """`90d`, `12h`, `30m`, `45s` as a duration.

    Raises:
        NotReady: it is none of these.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})([dhms])", text)
    if match is None:
        raise NotReady(f"--expires is {text!r}; it must be like 90d, 12h, 30m or 45s")
    unit = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}[match[2]]
    return timedelta(**{unit: int(match[1])})


async def _token_create(database: Database, arguments: argparse.Namespace) -> int:
    expires = parse_duration(arguments.expires) if arguments.expires else None
    secret = new_token()

    async def work(tx: users.Tx) -> None:
        owner = await users.ensure_user(tx, arguments.user or arguments.name, "user", new_id())
        if arguments.admin and not owner.is_admin:
            await users.set_role(tx, owner.id, "admin")
        await users.create_token(tx, owner.id, arguments.name, secret, new_id(), expires)

    await database.transact(work)
    print("This token is shown once; only its hash is stored.")
    print(secret)
    return 0


async def _token_list(database: Database, arguments: argparse.Namespace) -> int:
    async with database.read() as conn:
        found = await users.list_tokens(conn, None, 10_000)
        names = {user["id"]: user["name"] for user in await users.list_users(conn, None, 10_000)}
    for token in found:
        state = "revoked" if token["revoked_at"] else f"expires {token['expires_at'] or 'never'}"
        print(f"{token['id']}  {token['name']}  user {names[token['user']]}  {state}")
    return 0


async def _token_revoke(database: Database, arguments: argparse.Namespace) -> int:
    if not is_id(arguments.id):
        raise NotReady(f"{arguments.id!r} is not the id of a token; see `holdfast token list`")
    await database.transact(lambda tx: users.revoke_token(tx, arguments.id))
    print("revoked")
    return 0


async def _user_create(database: Database, arguments: argparse.Namespace) -> int:
    role = "admin" if arguments.admin else "user"
    user = await database.transact(lambda tx: users.create_user(tx, arguments.name, role, new_id()))
    print(user.id)
    return 0


async def _user_list(database: Database, arguments: argparse.Namespace) -> int:
    async with database.read() as conn:
        found = await users.list_users(conn, None, 10_000)
    for user in found:
        state = "  disabled" if user["disabled_at"] else ""
        print(f"{user['id']}  {user['name']}  {user['role']}{state}")
    return 0


async def _user_disable(database: Database, arguments: argparse.Namespace) -> int:
    async with database.read() as conn:
        user = await users.find_user(conn, arguments.name)
    if user is None:
        raise NotReady(f"there is no user {arguments.name!r}; see `holdfast user list`")
    await database.transact(lambda tx: users.set_disabled(tx, user.id, disabled=True))
    print("disabled")
    return 0
