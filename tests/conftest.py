"""Fixtures: both databases, an engine in this process, a server as a process."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from holdfast.agents.builtin import BUILTIN
from holdfast.agents.demo import demo
from holdfast.agents.resolve import ResolvedAgent
from holdfast.agents.turn import Agent
from holdfast.clock import new_id
from holdfast.config import Settings
from holdfast.domain.users import User
from holdfast.engine.engine import Engine
from holdfast.engine.registry import AgentTaskRegistry
from holdfast.store import schema, sessions, users
from holdfast.store.database import Database

from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess

hypothesis.settings.register_profile("holdfast", deadline=None, print_blob=True)
hypothesis.settings.load_profile("holdfast")
logging.getLogger("asyncio").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for this test process."""
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A fresh, empty database, once on each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'holdfast.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = await server.create_database()
    yield url
    await server.drop_database(url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with the newest schema."""
    result = Database(database_url)
    await schema.upgrade(result)
    await result.load_epoch()
    yield result
    await result.close()


@pytest.fixture
async def user(database: Database) -> User:
    """A user of that database."""
    return await database.transact(lambda tx: users.ensure_user(tx, "ada", "user", new_id()))


@pytest.fixture
async def session(database: Database, user: User) -> str:
    """A session of that user."""
    row = await database.transact(lambda tx: sessions.create(tx, user, new_id(), {}))
    return str(row["id"])


MakeEngine = Callable[..., Any]


@pytest.fixture
async def make_engine(database: Database, tmp_path: Path) -> AsyncIterator[MakeEngine]:
    """Starts engines (nodes) on the database; each has its own registry, as a process would."""
    started: list[Engine] = []
    opened: list[Database] = []

    async def make(agent: Agent = demo, *, own_database: bool = False, **settings: Any) -> Engine:
        base = database
        if own_database:
            base = Database(database.url.render_as_string(hide_password=False))
            await base.load_epoch()
            opened.append(base)
        resolved = ResolvedAgent("demo", agent)
        tools = {"toolbox": settings.pop("toolbox", BUILTIN)}
        settings.setdefault("data_dir", str(tmp_path))
        engine = Engine(Settings(**settings), base, resolved, registry=AgentTaskRegistry(), **tools)
        await engine.start()
        started.append(engine)
        return engine

    yield make
    for engine in started:
        await engine.stop()
    for base in opened:
        await base.close()


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    """One node with the demo agent."""
    return await make_engine()


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers as processes, and ends them."""
    with contextlib.ExitStack() as ends:

        def make(*arguments: str, start: bool = True, **options: Any) -> ServerProcess:
            options.setdefault("data_dir", tmp_path)
            server = ServerProcess(*arguments, **options)
            ends.callback(server.end)
            return server.start() if start else server

        yield make


@pytest.fixture
def server(make_server: Callable[..., ServerProcess]) -> ServerProcess:
    """One server with the demo agent on SQLite."""
    return make_server()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def brief_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for a module, on each database, that gives processes half a second to end."""
    arguments = ["--kill-grace-s", "0.5"]
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = asyncio.run(postgres.create_database())
        asyncio.run(_migrated(url))
        arguments += ["--database-url", url]
    server = ServerProcess(*arguments, data_dir=tmp_path_factory.mktemp("brief")).start()
    yield server
    server.end()


async def _migrated(url: str) -> None:
    database = Database(url)
    await schema.upgrade(database)
    await database.close()
