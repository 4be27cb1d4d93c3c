"""All settings: each is a field below, a flag, a variable and a line of `holdfast.toml`.

A flag beats its variable, which beats the file, which beats the default. `docs/reference/settings.md`
lists them all; a test compares it with this file.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from holdfast.agents.mcp_servers import McpServer, McpSettingError, parse_servers


class SettingError(ValueError):
    """A setting with a wrong value: names it, its value, and what would be right."""


def approvals_of(text: str) -> dict[str, Literal["always", "ask", "never"]]:
    """The rules that `approvals` gives, by tool.

    Raises:
        ValueError: it is not a list such as `bash=ask, file_write=never`.
    """
    rules: dict[str, Literal["always", "ask", "never"]] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, rule = (part.strip() for part in entry.partition("="))
        if not name or rule not in ("always", "ask", "never"):
            raise ValueError("it must be a list such as `bash=ask, file_write=never`")
        rules[name] = rule
    return rules


def folders_of(text: str) -> tuple[Path, ...]:
    """The folders that `job_folders` lists, without symbolic links.

    Raises:
        ValueError: one is not absolute, or not there.
    """
    found = tuple(Path(part.strip()) for part in text.split(",") if part.strip())
    for folder in found:
        if not folder.is_absolute() or not folder.is_dir():
            raise ValueError(f"{folder} must be the absolute path of a folder that is there")
    return tuple(folder.resolve() for folder in found)


def _setting(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service is told. Times end in `_s` (seconds), sizes in `_bytes`."""

    host: str = _setting("127.0.0.1", "The address to listen on.")
    port: int = _setting(8000, "The port to listen on; 0 takes a free one.", low=0, high=65535)
    data_dir: str = _setting("./data", "Where the SQLite database and working folders live.")
    database_url: str = _setting(
        "", "`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`; empty: SQLite in the data folder."
    )
    redis_url: str = _setting("", "A Redis or Valkey bus; not used by this version.")
    role: str = _setting("all", "What this node does.", choices=("all", "web", "worker"))
    processes: int = _setting(1, "How many processes serve the port together.", low=1, high=64)
    agent: str = _setting("demo", "`demo`, `module:function`, or `provider:model`.")
    instructions: str = _setting("", "What a model is told before everything else.")
    tools: str = _setting("", "Tools of your own: `module:name` or `module` for all in it, separated by commas.")
    auth: str = _setting("local", "`local` (loopback, no credentials) or `tokens`.", choices=("local", "tokens"))
    public_url: str = _setting("", "The address under which clients reach the service, if not host and port.")
    allowed_origins: str = _setting("", "More browser origins that may call, separated by commas.")
    allowed_hosts: str = _setting("", "More names that a Host header may have, separated by commas.")
    log_format: str = _setting("console", "How the log looks.", choices=("console", "json"))
    log_level: str = _setting("info", "The least level that is logged.", choices=("debug", "info", "warning", "error"))
    durability: str = _setting(
        "full",
        "`full`: a commit survives a power cut. `relaxed`: the last moment before one may be lost.",
        choices=("full", "relaxed"),
    )
    lease_s: float = _setting(30.0, "How long a node that does not beat keeps its runs.", low=0.5, high=3600)
    heartbeat_s: float = _setting(10.0, "How often a node beats; at most a third of the lease.", low=0.1, high=1200)
    drain_s: float = _setting(20.0, "How long runs may go on after SIGTERM.", low=0, high=3600)
    cancel_grace_s: float = _setting(
        1.0, "How long an agent may take to stop before it is interrupted.", low=0, high=60
    )
    run_timeout_s: float = _setting(3600.0, "How long a run may take.", low=1, high=86400)
    db_patience_s: float = _setting(
        20.0, "How long a run waits for a database that is gone, before it ends.", low=0, high=600
    )
    kill_grace_s: float = _setting(
        5.0, "How long a process may take to end after SIGTERM, before SIGKILL.", low=0, high=300
    )
    sandbox: str = _setting(
        "auto",
        "What commands run in; `auto` takes the first that works, and none if none does.",
        choices=("auto", "bubblewrap", "landlock", "off"),
    )
    unsandboxed: str = _setting(
        "ask",
        "Without a sandbox: tools that run commands are asked for each time, or off, and jobs are refused; `allow` lets"
        " both run as the service itself.",
        choices=("ask", "off", "allow"),
    )
    approvals: str = _setting(
        "", "`always`, `ask` or `never` by tool, such as `bash=ask, file_write=never`.", check=approvals_of
    )
    approval_timeout_s: float = _setting(
        86400.0, "A question that nobody answers for so long is denied; 0 waits for ever.", low=0, high=31_536_000
    )
    tool_memory_mb: int = _setting(1024, "Memory of each process of a command, in MiB.", low=32, high=1_048_576)
    tool_total_memory_mb: int = _setting(
        0,
        "Memory of all processes of a command together, in MiB, by control groups. 0: on version 2 of these"
        " twice that of one process; on version 1, where entering a group makes starts slower, no limit.",
        low=0,
        high=1_048_576,
    )
    tool_processes: int = _setting(128, "Processes of all commands of a session.", low=4, high=100_000)
    tool_output_mb: int = _setting(
        512, "Output of one command that is kept, in MiB; a command that says more is stopped.", low=1, high=1_048_576
    )
    history_tokens: int = _setting(
        100_000, "About how many tokens of history a model is given; 0 is no limit.", low=0, high=100_000_000
    )
    job_folders: str = _setting(
        "", "Folders of this machine that jobs may work in, separated by commas; all must exist.", check=folders_of
    )
    max_jobs: int = _setting(64, "Jobs at once on this node, of all queues.", low=1, high=10_000)
    max_runs: int = _setting(1000, "Runs at once on this node.", low=1, high=100_000)
    max_runs_per_user: int = _setting(1000, "Runs at once of one user, on all nodes.", low=1, high=100_000)
    frame_bytes: int = _setting(256 * 1024, "The largest frame a client may send.", low=1024, high=64 * 2**20)
    content_bytes: int = _setting(1024 * 1024, "The largest message over HTTP.", low=1024, high=64 * 2**20)
    subscriptions: int = _setting(32, "Subscriptions of one socket.", low=1, high=10_000)
    commands_per_second: int = _setting(20, "Commands a second of one socket.", low=1, high=100_000)
    in_flight: int = _setting(64, "Commands of one socket at once.", low=1, high=10_000)
    sockets: int = _setting(16, "Sockets of one user on one node.", low=1, high=1_000_000)
    send_timeout_s: float = _setting(15.0, "A send stuck for longer ends the connection.", low=0.1, high=3600)
    hello_timeout_s: float = _setting(10.0, "How long a socket may stay without a hello.", low=0.1, high=600)
    mcp: tuple[McpServer, ...] = ()
    """The `[mcp.NAME]` tables of the file; they have neither flags nor variables."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if self.heartbeat_s * 3 > self.lease_s + 1e-9:
            raise SettingError(
                f"heartbeat_s is {self.heartbeat_s}, which is more than a third of lease_s ({self.lease_s})"
            )
        if self.auth == "local" and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise SettingError(
                f"host is {self.host!r}, but auth=local serves this machine alone;"
                " use --auth tokens to listen elsewhere"
            )

    @property
    def resolved_database_url(self) -> str:
        """The database's URL; SQLite in the data folder when none is set."""
        return self.database_url or f"sqlite:///{Path(self.data_dir).absolute() / 'holdfast.db'}"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"HOLDFAST_{name.upper()}"


def flag(name: str) -> str:
    """The command line flag of a setting."""
    return "--" + name.replace("_", "-")


def load(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    toml: Path | None = None,
) -> Settings:
    """The settings from flags, variables and file.

    Raises:
        SettingError: a value is wrong, a line of the file is unknown, or the file is broken.
    """
    values: dict[str, Any] = {}
    table = read_toml(toml) if toml is not None else {}
    try:
        values["mcp"] = tuple(parse_servers(table.pop("mcp", {}), environ or {}))
    except McpSettingError as error:
        raise SettingError(f"{toml}: {error}") from None
    for name, value in table.items():
        values[name] = _checked(name, value, f"{toml}: {name}")
    for name in _FIELDS:
        if (text := (environ or {}).get(variable(name))) is not None:
            values[name] = _checked(name, text, variable(name))
        if (given := (flags or {}).get(name)) is not None:
            values[name] = _checked(name, given, flag(name))
    return Settings(**values)


def read_toml(path: Path) -> dict[str, Any]:
    """The settings that a `holdfast.toml` gives; empty when it is not there.

    Raises:
        SettingError: it is not TOML, or has a line that is no setting.
    """
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingError(f"{path} cannot be read: {error}") from None
    unknown = sorted(set(table) - set(_FIELDS) - {"mcp"})
    if unknown:
        raise SettingError(f"{path}: {unknown[0]!r} is not a setting; see docs/reference/settings.md")
    return table


def _checked(name: str, value: Any, source: str) -> Any:
    kind, metadata = _FIELDS[name]
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        result = kind(value)
    except ValueError:
        words = {"int": "a whole number", "float": "a number", "str": "text"}[kind.__name__]
        raise SettingError(f"{source} is {value!r}; it must be {words}") from None
    choices = metadata.get("choices")
    if choices and result not in choices:
        raise SettingError(f"{source} is {value!r}; it must be one of {', '.join(choices)}")
    if check := metadata.get("check"):
        try:
            check(result)
        except ValueError as error:
            raise SettingError(f"{source} is {value!r}; {error}") from None
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None and not low <= result <= high:
        raise SettingError(f"{source} is {value!r}; it must be from {low} to {high}")
    return result


ENTRIES: tuple[Field[Any], ...] = tuple(entry for entry in fields(Settings) if "help" in entry.metadata)
"""What has a flag, a variable and a line of the file."""

_FIELDS: dict[str, tuple[type, Mapping[str, Any]]] = {
    entry.name: ({"int": int, "float": float}.get(str(entry.type), entry.type), entry.metadata)  # type: ignore
    for entry in ENTRIES
}
