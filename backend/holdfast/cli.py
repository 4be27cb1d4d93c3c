"""The command line: `holdfast serve | chat | job | migrate | token | user | doctor | export | import`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from holdfast import __version__
from holdfast.config import ENTRIES, SettingError, Settings, flag, load

TOML = "holdfast.toml"
_NEEDS_DATABASE = ("data_dir", "database_url")


class Stop(Exception):
    """The command cannot go on; the message says why and what to do, in one line."""


def main(argv: Sequence[str] | None = None) -> None:
    """The entry of the `holdfast` command."""
    arguments = _parser().parse_args(argv)
    try:
        run: Callable[[argparse.Namespace], int | None] = arguments.run
        code = run(arguments)
    except (Stop, SettingError) as error:
        print(f"holdfast: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast", description=__doc__)
    parser.add_argument("--version", action="version", version=f"holdfast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = _command(commands, "serve", "serve the chat", _serve)
    for entry in ENTRIES:
        _add_setting(serve, entry)
    serve.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)

    chat = _command(commands, "chat", "a chat in the terminal", _chat)
    _add_server(chat)
    chat.add_argument("--session", help="go on with this session")
    chat.add_argument(
        "--approve",
        choices=("ask", "always", "never"),
        default="ask",
        help="what to answer when the agent wants an approval; without a terminal, ask is never (default: ask)",
    )
    chat.add_argument("message", nargs="*", help="say this, wait for the answer, and end")

    _add_jobs(commands)
    migrate = _command(commands, "migrate", "bring the schema to the newest version", _migrate, database=True)
    migrate.add_argument("--check", action="store_true", help="only say whether it is; 1 when it is not")
    migrate.add_argument("--sql", action="store_true", help="only print the SQL")

    _add_accounts(commands)
    doctor = _command(commands, "doctor", "check that everything is in order", _doctor)
    for entry in ENTRIES:
        _add_setting(doctor, entry)

    export = _command(commands, "export", "write a session to standard output", _export, database=True)
    export.add_argument("session")
    export.add_argument("--format", choices=("jsonl", "json", "markdown"), default="jsonl")
    load_ = _command(commands, "import", "read an exported session", _import, database=True)
    load_.add_argument("file", help="a file that export wrote as jsonl, or -")
    load_.add_argument("--user", default="local", help="whose session it becomes (default: local)")
    return parser


def _command(
    commands: Any, name: str, text: str, run: Callable[..., Any], *, database: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    if database:
        for entry in ENTRIES:
            if entry.name in _NEEDS_DATABASE:
                _add_setting(parser, entry)
    return parser


def _add_setting(parser: argparse.ArgumentParser, entry: Any) -> None:
    text = entry.metadata["help"].replace("%", "%%")
    parser.add_argument(flag(entry.name), dest=entry.name, metavar=entry.name.rpartition("_")[2].upper(), help=text)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=None, help="the server ($HOLDFAST_URL; default: http://127.0.0.1:8000)")
    parser.add_argument("--token", default=os.environ.get("HOLDFAST_TOKEN"), help="a token ($HOLDFAST_TOKEN)")


def _add_jobs(commands: Any) -> None:
    job = commands.add_parser("job", help="jobs of a server", description="jobs of a server")
    jobs = job.add_subparsers(required=True, metavar="COMMAND")
    submit = _job_command(jobs, "submit", "put a command into a queue, and print the id of its job")
    texts: dict[str, tuple[type, str]] = {
        "name": (str, "what it is called (default: the command)"),
        "queue": (str, "the queue that it waits in (default: default)"),
        "priority": (int, "from -1000 to 1000, the highest first (default: 0)"),
        "cwd": (str, "a folder within its own, or one that the server allows"),
        "timeout": (float, "seconds that it may take"),
        "idle-timeout": (float, "seconds that it may be silent"),
        "memory-mb": (int, "memory of each of its processes, in MiB"),
        "retries": (int, "how often it is tried again when it fails (default: 0)"),
        "retry-backoff": (float, "seconds before the first retry; doubled for each one after (default: 1)"),
        "run-at": (str, "when it may start: a time such as 2026-01-31T09:00:00Z, or +30s, +5m, +2h, +1d"),
    }
    for name, (kind, text) in texts.items():
        submit.add_argument(f"--{name}", type=kind, help=text)
    submit.add_argument("--env", action="append", metavar="NAME=VALUE", help="a variable; may be given again")
    submit.add_argument("--keep", action="store_true", help="it goes on when the service restarts")
    submit.add_argument("--no-sandbox", action="store_true", help="for admins: run it as the service itself")
    submit.add_argument("-f", "--follow", action="store_true", help="show its output, and end as it ends")
    submit.add_argument("command", nargs="+", help="a program with its arguments after --, or one text for bash")

    listed = _job_command(jobs, "list", "list jobs, the newest first")
    listed.add_argument("--status", help="queued, running, completed, failed or cancelled")
    listed.add_argument("--queue")
    listed.add_argument("--name")
    listed.add_argument("--limit", type=int, help="at most so many (default: 50, at most 100)")
    listed.add_argument("--json", action="store_true", help="print them as JSON")
    _job_command(jobs, "show", "print a job as JSON").add_argument("id")
    logs = _job_command(jobs, "logs", "print what a job has said")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it ends, and end as it ends")
    logs.add_argument("--offset", type=int, default=0, help="the first byte; below 0 it counts from the end")
    logs.add_argument("id")
    cancel = _job_command(jobs, "cancel", "cancel jobs, down to their last process")
    cancel.add_argument("--reason")
    cancel.add_argument("--queue", help="all of this queue")
    cancel.add_argument("id", nargs="*")
    queue = _job_command(jobs, "queue", "show a queue, or change how many of its jobs run at once")
    queue.add_argument("--max-running", type=int, help="jobs at once; makes the queue if need be")
    queue.add_argument("queue", nargs="?", default="default")


def _job_command(jobs: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = _command(jobs, name, text, _job)
    parser.set_defaults(job=name)
    _add_server(parser)
    return parser


def _add_accounts(commands: Any) -> None:
    token = commands.add_parser("token", help="tokens of users", description="tokens of users")
    tokens = token.add_subparsers(required=True, metavar="COMMAND")
    create = _command(tokens, "create", "make a token and print it", _accounts, database=True)
    create.add_argument("name", help="what it is for")
    create.add_argument("--user", help="whose it is (default: the token's name); made if need be")
    create.add_argument("--admin", action="store_true", help="the user is an admin")
    create.add_argument("--expires", help="for how long, such as 90d, 12h (default: for ever)")
    create.set_defaults(account="token_create")
    _command(tokens, "list", "list tokens", _accounts, database=True).set_defaults(account="token_list")
    revoke = _command(tokens, "revoke", "end a token", _accounts, database=True)
    revoke.add_argument("id")
    revoke.set_defaults(account="token_revoke")

    user = commands.add_parser("user", help="users", description="users")
    users = user.add_subparsers(required=True, metavar="COMMAND")
    create = _command(users, "create", "make a user", _accounts, database=True)
    create.add_argument("name")
    create.add_argument("--admin", action="store_true")
    create.set_defaults(account="user_create")
    _command(users, "list", "list users", _accounts, database=True).set_defaults(account="user_list")
    disable = _command(users, "disable", "lock a user out", _accounts, database=True)
    disable.add_argument("name")
    disable.set_defaults(account="user_disable")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings from the command's flags, the environment and `holdfast.toml`."""
    known = {entry.name for entry in ENTRIES}
    flags = {name: value for name, value in vars(arguments).items() if name in known}
    environ = dict(os.environ)
    return load(flags, environ, Path(TOML))


def _serve(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    from holdfast import serving  # noqa: PLC0415 - the other commands need no server, nor does a wrong setting

    return serving.serve(settings, arguments.listen_fd)


def _chat(arguments: argparse.Namespace) -> int:
    from holdfast.terminal.chat import chat  # noqa: PLC0415 - the other commands need no client

    message = " ".join(arguments.message) or None
    return asyncio.run(chat(_url(arguments), arguments.token, arguments.session, message, arguments.approve))


def _job(arguments: argparse.Namespace) -> int:
    from holdfast.terminal import jobs  # noqa: PLC0415 - the other commands need no client

    return jobs.run(arguments, _url(arguments))


def _url(arguments: argparse.Namespace) -> str:
    return arguments.url or os.environ.get("HOLDFAST_URL") or "http://127.0.0.1:8000"


def _migrate(arguments: argparse.Namespace) -> int:
    from holdfast import administration  # noqa: PLC0415 - a wrong flag needs no database

    return _with_administration(
        lambda: administration.migrate(settings_of(arguments), check=arguments.check, sql=arguments.sql)
    )


def _accounts(arguments: argparse.Namespace) -> int:
    from holdfast import administration  # noqa: PLC0415 - a wrong flag needs no database

    return _with_administration(lambda: administration.accounts(settings_of(arguments), arguments))


def _doctor(arguments: argparse.Namespace) -> int:
    from holdfast import doctor  # noqa: PLC0415 - a wrong flag needs no server

    return asyncio.run(doctor.examine(settings_of(arguments)))


def _export(arguments: argparse.Namespace) -> int:
    from holdfast import administration  # noqa: PLC0415 - a wrong flag needs no database

    return _with_administration(
        lambda: administration.export(settings_of(arguments), arguments.session, arguments.format)
    )


def _import(arguments: argparse.Namespace) -> int:
    from holdfast import administration  # noqa: PLC0415 - a wrong flag needs no database

    return _with_administration(lambda: administration.load(settings_of(arguments), arguments.file, arguments.user))


def _with_administration(work: Callable[[], Awaitable[int]]) -> int:
    async def run() -> int:
        return await work()

    return asyncio.run(run())


def stop(message: str) -> NoReturn:
    """End the command with one line.

    Raises:
        Stop: always.
    """
    raise Stop(message)


if __name__ == "__main__":
    main()
