"""A start that cannot work stops at once, with one line that says what is wrong and what to do."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.support.server import BACKEND, ServerProcess, free_port

LIMIT_S = 4.0
"""Two seconds are promised; a machine that runs other tests gets twice that."""

FUNCTIONS = """
async def good(turn):
    yield "never said"

def plain(turn):
    return "no generator"

async def no_turn():
    yield "takes nothing"

number = 7
"""


@dataclass
class Outcome:
    """What a start that stopped left behind."""

    code: int
    line: str
    seconds: float


def start(folder: Path, *arguments: str, env: dict[str, str] | None = None, before: Sequence[str] = ()) -> Outcome:
    """Run `holdfast serve` in `folder` until it stops; its one line. The quickest of at most three tries."""
    outcome = start_once(folder, *arguments, env=env, before=before)
    for _ in range(2):
        if outcome.seconds < LIMIT_S:
            break
        outcome = start_once(folder, *arguments, env=env, before=before)
    return outcome


def start_once(folder: Path, *arguments: str, env: dict[str, str] | None, before: Sequence[str]) -> Outcome:
    """Run `holdfast serve` in `folder` until it stops; its one line. `before` is a program that runs it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "OPENAI_"))}
    command = [*before, sys.executable, "-m", "holdfast.cli", "serve"]
    if not any(one == "--port" for one in arguments):
        command += ["--port", str(free_port())]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(BACKEND), **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    seconds = time.monotonic() - began
    lines = done.stderr.splitlines()
    assert done.returncode != 0, done.stdout
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("holdfast: ")
    assert "Traceback" not in lines[0]
    return Outcome(done.returncode, lines[0], seconds)


def check(outcome: Outcome, *words: str) -> None:
    """The line has these words, and came in time."""
    for word in words:
        assert word in outcome.line
    assert outcome.seconds < LIMIT_S


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("nowhere:agent", ("nowhere", "spelling")),
        ("own_agents:missing", ("missing", "check the name")),
        ("own_agents:plain", ("plain", "async generator function")),
        ("own_agents:no_turn", ("no_turn", "one argument")),
        ("own_agents:number", ("number", "async generator function")),
        ("opnai:gpt-5", ("opnai", "provider", "spelling")),
        ("openai:gpt-5", ("OPENAI_API_KEY",)),
        ("words", ("words", "module:function")),
    ],
)
def test_an_agent_that_cannot_be_had_stops_the_start(tmp_path: Path, agent: str, words: tuple[str, ...]) -> None:
    (tmp_path / "own_agents.py").write_text(FUNCTIONS)
    check(start(tmp_path, "--agent", agent), *words)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ("nowhere", ("tools 'nowhere'", "spelling")),
        ("own_tools:missing", ("own_tools:missing", "check the name")),
        ("own_tools:number", ("`number` is no tool", "@holdfast.agents.tools.tool")),
        ("own_agents", ("has no tools",)),
        ("own_tools", ("two tools are named 'bash'",)),
    ],
)
def test_tools_that_cannot_be_had_stop_the_start(tmp_path: Path, tools: str, words: tuple[str, ...]) -> None:
    (tmp_path / "own_agents.py").write_text(FUNCTIONS)
    (tmp_path / "own_tools.py").write_text(
        "from holdfast.agents.tools import tool\nnumber = 3\n@tool\ndef bash() -> str:\n    'Say.'\n    return 'no'\n"
    )
    check(start(tmp_path, "--tools", tools), *words)


def test_a_sandbox_that_does_not_start_stops_the_start(tmp_path: Path) -> None:
    hidden = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind /bin/false "$0" && exec "$@"',
        shutil.which("bwrap") or "",
    ]
    if subprocess.run([*hidden, "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can hide bubblewrap")
    check(start(tmp_path, "--sandbox", "bubblewrap", before=hidden), "bubblewrap: it exits with 1", "--sandbox")


def test_an_mcp_server_that_cannot_be_had_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text("[mcp.files]\ncommand = 'no-such-program'\n")
    check(start(tmp_path), "MCP server 'files'", "no command 'no-such-program'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "x"), ("--port", "'x'", "whole number")),
        (("--port", "99999"), ("--port", "99999", "65535")),
        (("--auth", "maybe"), ("--auth", "maybe", "local, tokens")),
        (("--auth", "local", "--host", "0.0.0.0"), ("0.0.0.0", "--auth tokens")),
        (("--lease-s", "10", "--heartbeat-s", "5"), ("heartbeat_s", "third", "lease_s")),
        (("--lease-s", "nan"), ("--lease-s", "nan")),
        (("--database-url", "mysql://u:secret@h/n"), ("database_url", "sqlite", "postgresql")),
        (("--database-url", "ada:secret@host/words"), ("database_url", "sqlite", "postgresql")),
    ],
)
def test_a_flag_with_a_wrong_value_stops_the_start(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    outcome = start(tmp_path, *arguments)
    check(outcome, *words)
    assert "secret" not in outcome.line


def test_a_variable_with_a_wrong_value_stops_the_start(tmp_path: Path) -> None:
    check(start(tmp_path, env={"HOLDFAST_LEASE_S": "abc"}), "HOLDFAST_LEASE_S", "'abc'", "a number")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = = 3\n", ("holdfast.toml", "cannot be read", "line 1")),
        ("prot = 8001\n", ("holdfast.toml", "'prot'", "settings.md")),
        ("port = true\n", ("holdfast.toml", "port", "whole number")),
        ('log_format = "xml"\n', ("holdfast.toml", "log_format", "console, json")),
    ],
)
def test_a_broken_file_stops_the_start(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "holdfast.toml").write_text(text)
    check(start(tmp_path), *words)


def test_a_postgresql_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    url = f"postgresql://ada:secret@127.0.0.1:{free_port()}/holdfast"
    outcome = start(tmp_path, "--database-url", url)
    check(outcome, "postgresql", "cannot be reached")
    assert "secret" not in outcome.line


def test_a_postgresql_that_never_answers_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://ada:secret@127.0.0.1:{silent.getsockname()[1]}/holdfast"
        outcome = start(tmp_path, "--database-url", url)
    check(outcome, "does not answer", "is it running")
    assert "secret" not in outcome.line


async def test_a_postgresql_without_schema_stops_the_start(tmp_path: Path, postgres: PostgresServer) -> None:
    url = await postgres.create_database()
    check(start(tmp_path, "--database-url", url), "no schema", "holdfast migrate")
    await postgres.drop_database(url)


def test_a_port_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        check(start(tmp_path, "--port", port), port, "in use", "--port")


def test_a_data_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    check(start(tmp_path, "--data-dir", str(tmp_path / "file" / "data")), "file/data", "--data-dir")


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "holdfast.db").write_text("words, and no database at all; " * 100)
    check(start(tmp_path, "--data-dir", str(tmp_path)), "holdfast.db", "not a database")


def test_a_schema_newer_than_the_code_stops_the_start(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "holdfast.db") as conn:
        conn.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        conn.execute("INSERT INTO alembic_version VALUES ('9999')")
    conn.close()
    check(start(tmp_path, "--data-dir", str(tmp_path)), "9999", "newer Holdfast", "install")


def test_sigterm_ends_the_server_with_0(make_server: Callable[..., ServerProcess]) -> None:
    server = make_server()
    server.signal(signal.SIGTERM)
    assert server.process is not None
    assert server.process.wait(20) == 0


def test_a_second_server_on_the_same_data_works(make_server: Callable[..., ServerProcess]) -> None:
    one = make_server()
    two = make_server()
    assert one.port != two.port
    assert two.stop() == 0
    one.wait_ready()
    assert one.stop() == 0
