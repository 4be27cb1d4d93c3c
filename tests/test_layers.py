"""The layers: who may import whom, read from the code without running it."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "backend" / "holdfast"

MAY_IMPORT = {
    "domain": {"domain"},
    "agents": {"agents", "domain", "tracing"},
    "store": {"store", "domain", "clock", "tracing"},
    "engine": {"engine", "store", "agents", "domain", "clock", "config", "context", "tracing"},
    "api": {
        *("api", "engine", "store", "agents", "domain", "clock", "config", "context", "portable", "telemetry"),
        *("tracing", "__version__"),
    },
    "context": set[str](),
    "tracing": set[str](),
    "clock": set[str](),
    "config": {"agents"},
    "portable": {"store", "domain", "clock"},
    "preparation": {"store", "agents", "domain", "config"},
    "telemetry": {"engine", "clock", "context"},
    "terminal": {"terminal", "domain", "clock", "__version__"},
}
"""What of Holdfast each layer may import; `serving`, `administration`, `doctor` and `cli` may import all."""

THIRD_PARTIES = {
    "domain": {"msgspec"},
    "agents": {"msgspec", "pydantic_ai", "httpx2", "fastmcp"},
    "store": {"sqlalchemy", "alembic", "asyncpg", "msgspec"},
    "engine": {"msgspec"},
}

DATABASE = {"sqlalchemy", "alembic", "asyncpg"}
"""What only the store may import."""

NOT_IN_DOMAIN = {"asyncio", "random", "time", "os", "subprocess", "datetime", "socket", "threading", "secrets"}
API_USERS = {"api", "serving", "administration", "doctor", "cli"}

MARK = re.compile(r"(?:noqa|type: ?ignore|pyright: ?ignore)\S*(?: [A-Z]+\d+)*")
"""What a comment says to a tool, and not to a person."""

REASON_WORDS = 3

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "versions" not in path.parts)

TREES = {path: ast.parse(path.read_text()) for path in FILES}
"""Parsed before any test runs: Python 3.11 can fail to when a collection of garbage comes in between."""


def layer_of(path: Path) -> str:
    """The layer of a file: its folder, or its name at the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(node: ast.AST) -> Iterator[str]:
    """The full names of the modules that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        if node.module == "holdfast":
            yield from (f"holdfast.{alias.name}" for alias in node.names)
        else:
            yield node.module or ""


def imports_of(path: Path) -> set[str]:
    """All modules that a file imports."""
    return {name for node in ast.walk(TREES[path]) for name in imported(node)}


def names(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_layer_imports_only_the_layers_below_it(path: Path) -> None:
    allowed = MAY_IMPORT.get(layer_of(path))
    if allowed is None:
        return
    own = {name.split(".")[1] for name in imports_of(path) if name.startswith("holdfast.")}
    assert own <= allowed


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_layer_imports_only_its_third_parties(path: Path) -> None:
    allowed = THIRD_PARTIES.get(layer_of(path))
    if allowed is None:
        return
    tops = {name.split(".")[0] for name in imports_of(path)}
    assert tops - set(sys.stdlib_module_names) - {"holdfast"} <= allowed


@pytest.mark.parametrize("path", FILES, ids=names)
def test_only_the_entries_import_the_api(path: Path) -> None:
    if any(name.startswith("holdfast.api") for name in imports_of(path)):
        assert layer_of(path) in API_USERS


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(path) == "domain"], ids=names)
def test_the_domain_knows_no_clock_no_chance_and_no_system(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & NOT_IN_DOMAIN


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(path) in ("store", "engine", "api")], ids=names)
def test_nobody_reads_the_wall_clock_but_the_clock(path: Path) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)}
    assert not calls & {"datetime.now", "datetime.utcnow", "datetime.datetime.now", "time.time"}


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(path) != "store"], ids=names)
def test_only_the_store_knows_the_database(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & DATABASE


def late_imports(tree: ast.AST) -> set[int]:
    """The lines that import inside a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    return {node.lineno for node in inside if isinstance(node, ast.Import | ast.ImportFrom)}


def says_why(line: str) -> bool:
    """Whether the comment of a line has a reason in it."""
    comment = MARK.sub("", line.partition("#")[2])
    return len(re.findall(r"[A-Za-z]{2,}", comment)) >= REASON_WORDS


@pytest.mark.parametrize("path", FILES, ids=names)
def test_an_import_inside_a_function_says_why(path: Path) -> None:
    lines = ["", *path.read_text().splitlines()]
    silent = [
        number
        for number in sorted(late_imports(TREES[path]))
        if not says_why(lines[number]) and not says_why(lines[number - 1])
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import x  # noqa: PLC0415", False),
        ("import x  # noqa: PLC0415 - slow", False),
        ("import x  # type: ignore[import-untyped]", False),
        ("import x", False),
        ("import x  # noqa: PLC0415 - only what is in use is loaded", True),
        ("# The other commands need no server.", True),
    ],
)
def test_a_mark_for_a_tool_is_no_reason(line: str, reason: bool) -> None:
    assert says_why(line) == reason
