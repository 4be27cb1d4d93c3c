"""The layers: who may import whom, read from the code without running it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "backend" / "holdfast"

MAY_IMPORT = {
    "domain": {"domain"},
    "agents": {"agents", "domain"},
    "store": {"store", "domain", "clock"},
    "engine": {"engine", "store", "agents", "domain", "clock", "config"},
    "api": {"api", "engine", "store", "agents", "domain", "clock", "config", "portable", "telemetry", "__version__"},
    "clock": set[str](),
    "config": set[str](),
    "portable": {"store", "domain", "clock"},
    "preparation": {"store", "domain", "config"},
    "telemetry": {"engine", "clock"},
    "terminal": {"domain", "clock", "__version__"},
}
"""What of Holdfast each layer may import; `serving`, `administration`, `doctor` and `cli` may import all."""

THIRD_PARTIES = {
    "domain": {"msgspec"},
    "store": {"sqlalchemy", "alembic", "aiosqlite", "asyncpg", "msgspec"},
    "engine": {"msgspec", "sqlalchemy"},
}

NOT_IN_DOMAIN = {"asyncio", "random", "time", "os", "subprocess", "datetime", "socket", "threading", "secrets"}
API_USERS = {"api", "serving", "administration", "doctor", "cli"}

FUNCTION_IMPORTS = {"cli.py"}
"""Files that may import inside functions: the command line, so that each command loads only what it needs."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "versions" not in path.parts)


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
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}


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
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not calls & {"datetime.now", "datetime.utcnow", "datetime.datetime.now", "time.time"}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_imports_stand_at_the_top(path: Path) -> None:
    if names(path) in FUNCTION_IMPORTS:
        return
    source = path.read_text()
    lines = source.splitlines()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if any(imported(node)):
                    near = " ".join(lines[max(0, node.lineno - 3) : node.lineno])  # type: ignore[attr-defined]
                    assert "#" in near, f"line {node.lineno} imports inside a function and does not say why"  # type: ignore[attr-defined]
