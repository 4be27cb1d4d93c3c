"""The `[mcp.NAME]` tables of `holdfast.toml`; see `mcp` for what they look like.

`${NAME}` in a text stands for a variable of the service, so that no secret need be in the file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, get_args

from holdfast.agents.tools import Approval

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_URL = re.compile(r"https?://[^\s/]+\S*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_STDIO, _HTTP = {"command", "args", "env"}, {"url", "headers"}


class McpSettingError(ValueError):
    """A line of an `[mcp.NAME]` table is wrong; the message names its key."""


class McpUnavailable(Exception):
    """A server cannot be had; `why` is one line."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the MCP server {name!r} {why}")
        self.name = name
        self.why = why


@dataclass(frozen=True, slots=True)
class McpServer:
    """A server: a program (`command`, looked for in PATH) or an address (`url`), one of the two.

    `approval` goes for each of its tools, see `holdfast.agents.tools`.
    """

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    approval: Approval = "ask"


def parse_servers(table: Any, environ: Mapping[str, str]) -> list[McpServer]:
    """The servers of the `mcp` table, in its order.

    Raises:
        McpSettingError: a name, a key or a value is wrong, or a variable is not set.
    """
    _check("mcp", isinstance(table, dict), "must be tables such as [mcp.files]")
    return [_server(name, entry, environ) for name, entry in table.items()]


def _server(name: str, entry: Any, environ: Mapping[str, str]) -> McpServer:
    key = f"mcp.{name}"
    _check(key, _NAME.fullmatch(name) is not None, "its name must be 1 to 32 letters, digits, `_` and `-`")
    _check(key, isinstance(entry, dict), "must be a table")
    unknown = sorted(set(entry) - _STDIO - _HTTP - {"approval"})
    _check(f"{key}.{unknown[0] if unknown else ''}", not unknown, "is not a setting of an MCP server")
    _check(key, ("command" in entry) != ("url" in entry), "must have `command` or `url`, and not both")
    other, instead = (_HTTP, "command") if "command" in entry else (_STDIO, "url")
    misplaced = sorted(set(entry) & other)
    _check(f"{key}.{misplaced[0] if misplaced else ''}", not misplaced, f"does not go with `{instead}`")
    for setting, value in entry.items():
        fits, words = _KINDS[setting]
        _check(
            f"{key}.{setting}", fits(value), f"is {value!r}; it must be {words}", secret=setting in ("env", "headers")
        )
    filled: dict[str, Any] = {setting: _filled(f"{key}.{setting}", value, environ) for setting, value in entry.items()}
    filled["args"] = tuple(filled.get("args", ()))
    return McpServer(name, **filled)


def _filled(key: str, value: Any, environ: Mapping[str, str]) -> Any:
    """The value with its variables put in."""
    if isinstance(value, dict):
        return {name: _filled(f"{key}.{name}", each, environ) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(key, each, environ) for each in value]
    for variable in _VARIABLE.findall(value):
        _check(key, variable in environ, f"needs the variable {variable}, which is not set")
    return _VARIABLE.sub(lambda match: environ[match[1]], value)


def _check(key: str, is_right: bool, words: str, *, secret: bool = False) -> None:
    """Raise when it is not; a value that may be a secret is not repeated."""
    if not is_right:
        raise McpSettingError(f"{key} {words.partition('; it ')[2] if secret else words}")


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) and "\0" not in each for each in value.values())


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "command": (_is_text, "text"),
    "args": (lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value), "a list of texts"),
    "env": (_are_texts, "a table of texts"),
    "url": (lambda value: _is_text(value) and _URL.fullmatch(value) is not None, "an http or https address"),
    "headers": (_are_texts, "a table of texts"),
    "approval": (lambda value: value in get_args(Approval), f"one of {', '.join(get_args(Approval))}"),
}
