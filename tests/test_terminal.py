"""The commands beside `serve`: the chat in the terminal, and what looks after the database."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from holdfast.agents.demo import WORDS

from tests.support.postgres import PostgresServer
from tests.support.server import BACKEND, ServerProcess, free_port

LIMIT_S = 40.0
ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "OPENAI_"))},
    "PYTHONPATH": str(BACKEND),
}
COMMAND = [sys.executable, "-m", "holdfast.cli"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def words(count: int) -> str:
    """What the demo says to `slow N` and `fast N`."""
    return "".join(f"{WORDS[place % len(WORDS)]} " for place in range(count))


class Chat:
    """`holdfast chat` as a process, with what it has printed so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "chat", *arguments],
            env=ENV,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.out = ""
        self.err = ""
        self._news = threading.Condition()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout.fileno(), "out"), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr.fileno(), "err"), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, fd: int, name: str) -> None:
        while block := os.read(fd, 65536):
            with self._news:
                setattr(self, name, getattr(self, name) + block.decode())
                self._news.notify_all()

    def until(self, seen: Callable[[], Any]) -> None:
        """Wait until it has printed something."""
        with self._news:
            assert self._news.wait_for(seen, LIMIT_S), f"{self.out!r} {self.err!r}"

    def type(self, text: str) -> None:
        """Type into it."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(LIMIT_S)
        for reader in self._readers:
            reader.join(10)
        assert "Traceback" not in self.err
        return code

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def chat() -> Iterator[Callable[..., Chat]]:
    """Starts chats, and ends them."""
    chats: list[Chat] = []

    def start(*arguments: str) -> Chat:
        chats.append(Chat(*arguments))
        return chats[-1]

    yield start
    for one in chats:
        one.close()


def new_session(server: ServerProcess) -> str:
    """A new session."""
    request = urllib.request.Request(f"{server.base_url}/api/sessions", data=b"{}", method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["id"])


def answers(server: ServerProcess, session: str) -> str:
    """All that the agent has said in a session, as the database has it."""
    done = run(server.data_dir, "export", session, "--format", "json", "--data-dir", str(server.data_dir))
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout)["messages"]
    return "".join(message["content"] for message in messages if message["role"] == "assistant")


def test_a_message_is_answered_and_the_chat_ends(server: ServerProcess, tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "--url", server.base_url, "fast", "30")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{words(30)}\n")
    assert done.stderr == ""


def test_a_run_that_fails_is_code_1(server: ServerProcess, tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "--url", server.base_url, "fail after 3")
    assert done.returncode == 1
    assert words(3) in done.stdout
    assert "agent_error" in done.stderr


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "--url", f"http://127.0.0.1:{free_port()}", "hello")
    assert done.returncode == 1
    assert done.stderr.startswith("holdfast: ")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_cancels_the_run(server: ServerProcess, chat: Callable[..., Chat]) -> None:
    one = chat("--url", server.base_url, "slow 2000")
    one.until(lambda: "anchor" in one.out)
    one.process.send_signal(signal.SIGINT)
    one.ended()
    assert "[stopped in " in one.err
    assert len(one.out) < len(words(2000))


def test_ctrl_c_without_a_run_ends_the_chat(server: ServerProcess, chat: Callable[..., Chat]) -> None:
    one = chat("--url", server.base_url)
    one.until(lambda: "end with Ctrl-D" in one.err)
    one.type("fast 5\n")
    one.until(lambda: words(5) in one.out and one.out.endswith("\n"))
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 0


def test_lines_of_input_are_said_in_order(server: ServerProcess, chat: Callable[..., Chat]) -> None:
    one = chat("--url", server.base_url)
    one.type("fast 4\nfast 6")
    assert one.process.stdin is not None
    one.process.stdin.close()
    assert one.ended() == 0
    assert one.out.index(words(4)) < one.out.index(words(6))


def test_actions_are_shown_beside_the_answer(server: ServerProcess, tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "--url", server.base_url, "run echo hello; exit 3\nfast 3")
    assert done.returncode == 0
    assert done.stdout == f"{words(3)}\n"
    assert done.stderr.splitlines() == ["▸ bash echo hello; exit 3", "hello", "✗ bash: failed, exit 3"]


def test_what_a_command_says_cannot_drive_the_terminal(server: ServerProcess, tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "--url", server.base_url, r"run printf '\033[2J\033]0;title\007\a\033[31mred\033[0m'")
    assert "red" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "title" not in done.stderr.splitlines()[1]


@pytest.mark.parametrize(
    ("flags", "status"),
    [(("--approve", "always"), "✓ bash: success"), (("--approve", "never"), "⊘ bash: denied"), ((), "⊘")],
)
def test_approvals_without_a_terminal(
    server: ServerProcess, tmp_path: Path, flags: tuple[str, ...], status: str
) -> None:
    done = run(tmp_path, "chat", "--url", server.base_url, *flags, "ask echo hello")
    assert done.returncode == 0, done.stderr
    assert status in done.stderr
    assert ("hello\n✓" in done.stderr) == (status[0] == "✓")


@pytest.mark.parametrize(("typed", "status"), [("y", "✓"), ("always", "✓"), ("", "⊘"), ("what?\nn", "⊘")])
def test_a_person_is_asked(server: ServerProcess, chat: Callable[..., Chat], typed: str, status: str) -> None:
    one = chat("--url", server.base_url)
    one.type("ask echo hello\n")
    one.until(lambda: "? bash echo hello" in one.err and "allow?" in one.err)
    one.type(f"{typed}\n")
    one.until(lambda: f"{status} bash" in one.err)
    one.type("fast 3\n")
    one.until(lambda: words(3) in one.out)
    assert one.process.stdin is not None
    one.process.stdin.close()
    assert one.ended() == 0


def test_an_answer_given_elsewhere_ends_the_question(server: ServerProcess, chat: Callable[..., Chat]) -> None:
    session = new_session(server)
    one = chat("--url", server.base_url, "--session", session)
    one.type("ask echo hello\n")
    one.until(lambda: "allow?" in one.err)
    other = chat("--url", server.base_url, "--session", session, "--approve", "always")
    one.until(lambda: "answered elsewhere" in one.err and "✓ bash" in one.err)
    for each in (one, other):
        assert each.process.stdin is not None
        each.process.stdin.close()
        assert each.ended() == 0


def test_ctrl_c_ends_a_command_and_tells_130(server: ServerProcess, chat: Callable[..., Chat]) -> None:
    one = chat("--url", server.base_url, "run echo begun; sleep 300")
    one.until(lambda: "begun\n" in one.err)
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 130
    assert "1 process ended]" in one.err


def test_ctrl_c_at_a_question_cancels_it(server: ServerProcess, chat: Callable[..., Chat]) -> None:
    one = chat("--url", server.base_url)
    one.type("ask echo hello\n")
    one.until(lambda: "allow?" in one.err)
    one.process.send_signal(signal.SIGINT)
    one.until(lambda: "bash: cancelled" in one.err)
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 0


def test_the_end_of_another_run_is_not_that_of_ones_own(server: ServerProcess, chat: Callable[..., Chat]) -> None:
    session = new_session(server)
    first = chat("--url", server.base_url, "--session", session, "slow 30")
    first.until(lambda: "anchor" in first.out)
    second = chat("--url", server.base_url, "--session", session, "fail after 2")
    assert first.ended() == 0
    assert second.ended() == 1


def test_the_chat_comes_back_after_the_server_was_killed(
    make_server: Callable[..., ServerProcess], chat: Callable[..., Chat]
) -> None:
    server = make_server("--lease-s", "1.5", "--heartbeat-s", "0.3")
    session = new_session(server)
    one = chat("--url", server.base_url, "--session", session, "slow 400")
    one.until(lambda: "anchor" in one.out)
    server.kill9()
    one.until(lambda: "connection lost" in one.err)
    server.start()
    one.ended()
    said = answers(server, session)
    assert said
    assert words(400).startswith(said)
    assert one.out.rstrip("\n").endswith(said)
    assert one.out.count(words(4)) == said.count(words(4))


def test_the_doctor_finds_all_in_order(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor", "--data-dir", str(tmp_path), "--port", str(free_port()))
    assert done.returncode == 0, done.stdout
    states = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert states.keys() == {"database", "model", "port", "ui", "sandbox", "tools", "mcp", "bus"}
    assert "fail" not in states.values()


def test_the_doctor_names_what_keeps_the_service_from_starting(server: ServerProcess, tmp_path: Path) -> None:
    url = f"postgresql://ada:secret@127.0.0.1:{free_port()}/n"
    done = run(tmp_path, "doctor", "--database-url", url, "--port", str(server.port), "--agent", "openai:gpt-5")
    assert done.returncode == 1
    found = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert found["database"].startswith("fail")
    assert found["port"].startswith("fail")
    assert "--port" in found["port"]
    assert "OPENAI_API_KEY" in found["model"]
    assert "secret" not in done.stdout + done.stderr


def test_the_doctor_does_not_wait_for_a_database_that_never_answers(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://ada:secret@127.0.0.1:{silent.getsockname()[1]}/n"
        done = run(tmp_path, "doctor", "--database-url", url, "--port", str(free_port()))
    assert done.returncode == 1
    assert "no answer" in done.stdout
    assert "secret" not in done.stdout


def test_a_chat_with_a_wrong_token_ends_at_once(make_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = make_server("--auth", "tokens")
    session = "01900000-0000-7000-8000-000000000000"
    done = run(tmp_path, "chat", "--url", server.base_url, "--token", "wrong", "--session", session, "hello")
    assert done.returncode == 1
    assert "holdfast: " in done.stderr


def test_migrate_makes_the_schema_and_check_says_so(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    before = run(tmp_path, "migrate", "--check", *where)
    assert before.returncode == 1
    assert "holdfast migrate" in before.stderr
    assert run(tmp_path, "migrate", *where).returncode == 0
    after = run(tmp_path, "migrate", "--check", *where)
    assert after.returncode == 0
    assert "newest" in after.stdout


def test_migrate_check_of_a_database_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "migrate", "--check", "--database-url", f"postgresql://a:secret@127.0.0.1:{free_port()}/n")
    assert done.returncode == 1
    assert done.stderr.startswith("holdfast: ")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


def test_the_sql_of_migrate_makes_the_schema(tmp_path: Path) -> None:
    printed = run(tmp_path, "migrate", "--sql", "--data-dir", str(tmp_path / "none"))
    assert printed.returncode == 0, printed.stderr
    conn = sqlite3.connect(tmp_path / "holdfast.db")
    conn.executescript(printed.stdout)
    conn.close()
    assert run(tmp_path, "migrate", "--check", "--data-dir", str(tmp_path)).returncode == 0


async def test_migrate_makes_the_schema_of_a_postgresql(tmp_path: Path, postgres: PostgresServer) -> None:
    url = await postgres.create_database()
    assert run(tmp_path, "migrate", "--check", "--database-url", url).returncode == 1
    assert run(tmp_path, "migrate", "--database-url", url).returncode == 0
    assert run(tmp_path, "migrate", "--check", "--database-url", url).returncode == 0
    await postgres.drop_database(url)


def test_a_token_is_made_listed_and_revoked(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    made = run(tmp_path, "token", "create", "laptop", "--user", "ada", "--expires", "90d", *where)
    assert made.returncode == 0, made.stderr
    secret = made.stdout.splitlines()[-1]
    listed = run(tmp_path, "token", "list", *where)
    assert "laptop" in listed.stdout
    assert "user ada" in listed.stdout
    assert secret not in listed.stdout
    token = listed.stdout.split()[0]
    assert run(tmp_path, "token", "revoke", token, *where).returncode == 0
    assert "revoked" in run(tmp_path, "token", "list", *where).stdout
    assert run(tmp_path, "token", "revoke", "no-id", *where).returncode == 1


def test_a_user_is_made_listed_and_locked_out(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    assert run(tmp_path, "user", "create", "ada", "--admin", *where).returncode == 0
    again = run(tmp_path, "user", "create", "ada", *where)
    assert again.returncode == 1
    assert len(again.stderr.splitlines()) == 1
    assert "ada  admin" in run(tmp_path, "user", "list", *where).stdout
    assert run(tmp_path, "user", "disable", "ada", *where).returncode == 0
    assert "ada  admin  disabled" in run(tmp_path, "user", "list", *where).stdout
    assert run(tmp_path, "user", "disable", "nobody", *where).returncode == 1


def test_a_token_that_was_revoked_no_longer_opens_a_chat(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = make_server("--auth", "tokens")
    where = ("--data-dir", str(tmp_path))
    secret = run(tmp_path, "token", "create", "ada", *where).stdout.splitlines()[-1]
    speak = ("chat", "--url", server.base_url, "--token", secret, "fast 3")
    assert run(tmp_path, *speak).returncode == 0
    token = run(tmp_path, "token", "list", *where).stdout.split()[0]
    assert run(tmp_path, "token", "revoke", token, *where).returncode == 0
    limit = time.monotonic() + LIMIT_S
    while (refused := run(tmp_path, *speak)).returncode == 0:
        assert time.monotonic() < limit
    assert "401" in refused.stderr


class TestJobs:
    """`holdfast job` against a real server."""

    def test_one_is_submitted_listed_shown_read_and_cancelled(self, server: ServerProcess, tmp_path: Path) -> None:
        def job(*arguments: str) -> subprocess.CompletedProcess[str]:
            return run(tmp_path, "job", *arguments, "--url", server.base_url)

        done = run(tmp_path, "job", "submit", "--url", server.base_url, "--name", "Hello", "--", "echo", "a b", "c")
        one = done.stdout.strip()
        assert done.returncode == 0, done.stderr
        assert len(one) == 36, "the id stands alone, for scripts"
        logs = job("logs", "-f", one)
        assert (logs.stdout, logs.returncode) == ("a b c\n", 0)
        assert json.loads(job("show", one).stdout)["status"] == "completed"
        assert job("logs", "--offset", "4", one).stdout == "c\n"
        listed = job("list").stdout
        assert one in listed
        assert "completed" in listed
        assert "Hello" in listed
        assert json.loads(job("list", "--json", "--status", "completed").stdout)[0]["job_id"] == one
        late = job("cancel", one)
        assert (late.returncode, late.stderr) == (
            1,
            f"holdfast: {one}: Job already finished with status: completed\n",
        )

    def test_one_that_is_followed_ends_as_it_ends(self, server: ServerProcess, tmp_path: Path) -> None:
        url = ("--url", server.base_url)
        done = run(tmp_path, "job", "submit", *url, "-f", "echo out; echo err >&2; sleep 0.5; exit 7")
        assert (done.returncode, sorted(done.stdout.split())) == (7, ["err", "out"])
        told = done.stderr.splitlines()
        assert told[-1] == "[failed: Exited with code 7]", "plain lines in a pipe"
        assert "\x1b" not in done.stderr
        assert "\r" not in done.stderr

    def test_bytes_that_are_no_text_come_through(self, server: ServerProcess, tmp_path: Path) -> None:
        command = [*COMMAND, "job", "submit", "--url", server.base_url, "-f", r"printf 'a\xff\x00b'"]
        done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, timeout=LIMIT_S, check=False)
        assert (done.stdout, done.returncode) == (b"a\xff\x00b", 0)

    def test_a_terminal_sees_one_line_that_moves(self, server: ServerProcess, tmp_path: Path) -> None:
        import pty  # noqa: PLC0415 - the only test that plays a terminal for jobs

        ours, theirs = pty.openpty()
        command = [*COMMAND, "job", "submit", "--url", server.base_url, "-f", "sleep 1; echo done"]
        process = subprocess.Popen(command, cwd=tmp_path, env=ENV, stdout=theirs, stderr=theirs)
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                said += piece
        os.close(ours)
        assert process.wait(LIMIT_S) == 0
        assert b"\r\x1b[K[running 0 s]" in said
        assert b"done\r\n" in said
        assert b"[completed]" in said

    def test_the_queue_and_its_limit(self, server: ServerProcess, tmp_path: Path) -> None:
        def job(*arguments: str) -> subprocess.CompletedProcess[str]:
            return run(tmp_path, "job", *arguments, "--url", server.base_url)

        assert job("queue", "--max-running", "2", "gpu").stdout == "gpu: 0 of 2 running, 0 queued\n"
        made = [job("submit", "--queue", "gpu", "sleep 600").stdout.strip() for _ in range(3)]
        head, *lines = job("queue", "gpu").stdout.splitlines()
        assert head == "gpu: 2 of 2 running, 1 queued"
        assert [line.split()[0] for line in lines] == made
        assert "queued 1" in lines[2]
        assert job("cancel", "--queue", "gpu").stdout == "gpu: 1 removed, 2 stopping\n"
        for one in made:
            assert job("logs", "-f", one).returncode == 130

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["submit", "--", "no-such-program", "x"], "/command/0: there is no program 'no-such-program'"),
            (
                ["submit", "--queue", "nope", "true"],
                "/queue: there is no queue 'nope'; PATCH",
            ),
            (["submit", "--timeout", "-1", "true"], "/timeout: "),
            (["show", "x"], "Job not found"),
            (["cancel"], "name a job, or a queue with --queue"),
            (["list", "--status", "x"], "/status: must be one of"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, server: ServerProcess, tmp_path: Path, arguments: list[str], told: str
    ) -> None:
        command, *rest = arguments
        done = run(tmp_path, "job", command, "--url", server.base_url, *rest)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(f"holdfast: {told}")
        assert done.stderr.count("\n") == 1

    def test_a_server_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        done = run(tmp_path, "job", "list", "--url", f"http://127.0.0.1:{free_port()}")
        assert done.returncode == 1
        assert "does not answer" in done.stderr

    def test_a_restart_is_waited_for(self, server: ServerProcess, tmp_path: Path) -> None:
        command = [*COMMAND, "job", "submit", "--url", server.base_url, "--keep", "-f"]
        script = "for n in $(seq 1 12); do echo $n; sleep 0.2; done"
        with subprocess.Popen(
            [*command, script], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, text=True
        ) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == "1\n"
            server.kill9()
            server.start()
            rest = following.stdout.read()
            assert rest.split() == [str(n) for n in range(2, 13)]
            assert following.wait(LIMIT_S) == 0
