"""Tools: what a function becomes, and the tools that every agent has, on real files."""

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from holdfast.agents import builtin
from holdfast.agents.builtin import BUILTIN, unified_diff
from holdfast.agents.folder import Folder
from holdfast.agents.tools import (
    CommandResult,
    InvalidArguments,
    Tool,
    Toolbox,
    ToolContext,
    ToolResult,
    tool,
)
from holdfast.agents.turn import CancelToken
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic_ai.tools import Tool as ModelTool


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "session"
    path.mkdir()
    return path


@pytest.fixture
def context(root: Path) -> ToolContext:
    """A context whose commands are run by a real bash, without a sandbox."""

    async def run(command: str, *, timeout_s: float, network: bool = False) -> CommandResult:
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            return CommandResult(None, 9, "", timed_out=True)
        code = process.returncode or 0
        ended = (code, None) if code >= 0 else (None, -code)
        shown = output.decode(errors="replace")
        return CommandResult(*ended, shown[:1000], len(shown) > 1000, len(output), link="/output")

    async def emit(stream: str, text: str) -> None:
        raise AssertionError("no tool here tells live output by itself")

    return ToolContext("s", Folder(root), CancelToken(), run, emit)


async def call(name: str, context: ToolContext, **args: Any) -> ToolResult:
    found = BUILTIN.get(name)
    assert found is not None
    result = await found.call(context, args)
    assert isinstance(result.output, str)
    assert "\0" not in result.output
    result.output.encode()
    msgspec.json.encode(result.extra)
    return result


async def text_of(name: str, context: ToolContext, **args: Any) -> str:
    result = await call(name, context, **args)
    assert not result.failed, result
    return str(result.output)


async def fault_of(name: str, context: ToolContext, **args: Any) -> str:
    result = await call(name, context, **args)
    assert result.failed, result
    return str(result.output)


class Place(msgspec.Struct):
    """A structured argument."""

    city: str
    zip: int | None = None


@tool
async def weather(
    context: ToolContext,
    place: Place,
    days: Annotated[int, msgspec.Meta(ge=1, le=7, description="How far to look")] = 1,
    units: list[str] = ["metric"],  # noqa: B006
) -> dict[str, Any]:
    """Tell the weather
    of a place.

    More that is not for the model.

    Args:
        place: Where,
            in full.
        days (int): This loses against the annotation.
        units: Which units.

    Returns:
        place: This is no argument.
    """
    units.append("seen")
    return {"session": context.session, "city": place.city, "days": days, "units": units}


def test_a_function_becomes_a_tool() -> None:
    assert (weather.name, weather.description) == ("weather", "Tell the weather of a place.")
    assert (weather.approval, weather.confined) == ("always", False)
    properties = weather.parameters["properties"]
    assert list(properties) == ["place", "days", "units"]
    assert properties["place"] == {"$ref": "#/$defs/Place", "description": "Where, in full."}
    assert properties["days"]["description"] == "How far to look"
    assert (properties["days"]["minimum"], properties["days"]["maximum"]) == (1, 7)
    assert properties["units"]["description"] == "Which units."
    assert weather.parameters["required"] == ["place"]
    assert weather.parameters["additionalProperties"] is False
    assert set(weather.parameters["$defs"]) == {"Place"}
    Draft202012Validator.check_schema(weather.parameters)
    Draft202012Validator(weather.parameters).validate({"place": {"city": "Kiel"}})


async def test_a_tool_gets_its_arguments_and_fresh_defaults(context: ToolContext) -> None:
    for _ in range(2):
        result = await weather.call(context, {"place": {"city": "Kiel"}})
        assert result.output == {"session": "s", "city": "Kiel", "days": 1, "units": ["metric", "seen"]}


async def test_numbers_as_models_write_them_are_taken(context: ToolContext) -> None:
    for days in (3, 3.0, "3"):
        result = await weather.call(context, {"place": {"city": "Kiel"}, "days": days})
        assert isinstance(result.output, dict)
        assert result.output["days"] == 3


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({}, "place"),
        ({"place": "Kiel"}, "place"),
        ({"place": {"city": 5}}, "city"),
        ({"place": {"city": "Kiel"}, "days": 0}, "days"),
        ({"place": {"city": "Kiel"}, "days": "soon"}, "days"),
        ({"place": {"city": "Kiel"}, "days": 1.5}, "days"),
        ({"place": {"city": "Kiel"}, "units": [1]}, "units"),
        ({"place": {"city": "Kiel"}, "other": 1}, "other"),
        ({"place": {"city": "Kiel"}, "x" * 9999: 1}, "xxx"),
        ({"place": {"city": "Kiel"}, "\0\ud800": 1}, "unknown"),
        ({"place": {"city": "Kiel"}, "context": {}}, "context"),
    ],
)
async def test_arguments_that_do_not_fit_name_the_field(context: ToolContext, args: Any, named: str) -> None:
    with pytest.raises(InvalidArguments, match=named) as fault:
        await weather.call(context, args)
    assert len(str(fault.value)) <= 500
    assert "\0" not in str(fault.value)
    str(fault.value).encode()


async def test_a_plain_function_runs_in_a_thread(context: ToolContext) -> None:
    @tool(name="where", approval="ask", confined=True)
    def here() -> str:
        return threading.current_thread().name

    assert (here.name, here.description, here.approval, here.confined) == ("where", "", "ask", True)
    assert here.parameters == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    result = await here.call(context, {})
    assert result.output == "holdfast-tool"
    assert threading.current_thread().name != "holdfast-tool"


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        ("a\0b\ud800", "a\ufffdb\ufffd"),
        (None, ""),
        (b"a\xff\0", "a\ufffd\ufffd"),
        ({"a": ["\0", {"\0": 1}], 2: None}, {"a": ["\ufffd", {"\ufffd": 1}], "2": None}),
        ([1, "\ud800"], '[1,"\ufffd"]'),
        (True, "true"),
        (Place("Kiel"), {"city": "Kiel", "zip": None}),
        (ToolResult("a\0", failed=True, extra={"diff": "\0"}), "a\ufffd"),
    ],
)
async def test_what_a_function_returns_is_what_the_model_sees(context: ToolContext, returned: Any, output: Any) -> None:
    @tool
    def give() -> Any:
        return returned

    result = await give.call(context, {})
    assert result.output == output
    if isinstance(returned, ToolResult):
        assert (result.failed, result.extra) == (True, {"diff": "\ufffd"})


@pytest.mark.parametrize("error", [KeyError("a"), StopIteration(), SystemExit(1)])
async def test_what_a_plain_function_raises_reaches_the_caller(context: ToolContext, error: BaseException) -> None:
    @tool
    def fail() -> None:
        raise error

    with pytest.raises(KeyError if isinstance(error, KeyError) else RuntimeError):
        await asyncio.wait_for(fail.call(context, {}), 5)


async def test_what_the_folder_refuses_is_a_failed_result(context: ToolContext) -> None:
    @tool
    async def look(context: ToolContext) -> bytes:
        return context.folder.read("../a")[0]

    assert await look.call(context, {}) == ToolResult("../a: leads out of the working folder", failed=True)


async def test_nobody_waits_for_a_plain_function_that_was_given_up(context: ToolContext) -> None:
    entered, let_go = threading.Event(), threading.Event()

    @tool
    def hang() -> None:
        entered.set()
        let_go.wait(60)

    started = time.monotonic()
    work = asyncio.ensure_future(hang.call(context, {}))
    while not entered.is_set():
        await asyncio.sleep(0.001)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - started < 10
    let_go.set()


def by_position(a: int, /) -> None: ...


def any_number(*a: int) -> None: ...


def anything(**a: int) -> None: ...


def no_json(a: threading.Event) -> None: ...


@pytest.mark.parametrize("function", [by_position, any_number, anything, no_json])
def test_a_function_that_no_model_can_call_is_refused(function: Any) -> None:
    with pytest.raises(TypeError):
        tool(function)


@pytest.mark.parametrize("name", ["a b", "a" * 65, "ä", "a.b"])
def test_a_name_that_providers_refuse_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a tool"):
        tool(name=name)(lambda: None)


def test_a_toolbox_knows_its_tools() -> None:
    more = BUILTIN.with_([weather])
    assert BUILTIN.names == ("bash", "file_read", "file_write", "file_edit", "search")
    assert more.names == (*BUILTIN.names, "weather")
    assert more.get("weather") is weather
    assert BUILTIN.get("weather") is None
    assert (len(more), list(more)[-1]) == (6, weather)
    assert [each["name"] for each in more.schemas()] == list(more.names)
    assert more.schemas()[5]["parameters"] == weather.parameters
    assert BUILTIN.unknown_tool("rm").endswith("the tools are: bash, file_read, file_write, file_edit, search")
    assert "(none)" in Toolbox().unknown_tool("\0")
    with pytest.raises(ValueError, match="'weather'"):
        more.with_([weather])


ARGS = {
    "bash": {"command": "true"},
    "file_read": {"path": "a"},
    "file_write": {"path": "a", "content": ""},
    "file_edit": {"path": "a", "old": "b", "new": "", "all": True},
    "search": {"pattern": "a", "glob": None},
}


@pytest.mark.parametrize("each", list(BUILTIN), ids=lambda each: each.name)
def test_schemas_are_valid_and_models_can_be_told_them(each: Tool) -> None:
    Draft202012Validator.check_schema(each.parameters)
    check = Draft202012Validator(each.parameters)
    check.validate(ARGS[each.name])
    assert not check.is_valid({**ARGS[each.name], "more": 1})
    assert not check.is_valid({})
    assert each.description.endswith(".")
    assert all(value["description"] for value in each.parameters["properties"].values() if "default" not in value)
    told = ModelTool.from_schema(each.call, each.name, each.description, each.parameters)
    assert told.tool_def.parameters_json_schema == each.parameters


@pytest.mark.parametrize("each", list(BUILTIN), ids=lambda each: each.name)
async def test_every_required_argument_is_named_when_it_is_missing(each: Tool, context: ToolContext) -> None:
    for name in each.parameters["required"]:
        args = {other: value for other, value in ARGS[each.name].items() if other != name}
        with pytest.raises(InvalidArguments, match=f"`{name}`"):
            await each.call(context, args)


def test_only_bash_runs_commands() -> None:
    assert [each.name for each in BUILTIN if each.confined] == ["bash"]


def test_tools_load_neither_pydantic_nor_a_store() -> None:
    script = "import sys, holdfast.agents.builtin; print(*{name.split('.')[0] for name in sys.modules})"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert not {"pydantic", "pydantic_ai", "sqlalchemy"} & set(loaded.stdout.split())


async def test_bash_shows_output_and_how_it_ended(context: ToolContext) -> None:
    result = await call("bash", context, command="echo one; echo two >&2")
    assert (result.output, result.failed) == ("one\ntwo", False)
    assert result.extra == {"exit_code": 0, "bytes": 8, "link": "/output"}
    assert await text_of("bash", context, command="true") == "(no output)"
    failed = await call("bash", context, command="echo one; exit 3")
    assert (failed.output, failed.failed, failed.extra["exit_code"]) == ("one\n(exit code 3)", True, 3)
    assert await fault_of("bash", context, command="kill -9 $$") == "(ended by signal 9)"
    assert await fault_of("bash", context, command="sleep 60", timeout_s=0.05) == "(stopped after 0.05 s)"
    assert (await text_of("bash", context, command="seq 1000")).endswith("(3893 bytes in all; the middle is left out)")
    assert await text_of("bash", context, command=r"printf 'a\0\377'") == "a\ufffd\ufffd"


@pytest.mark.parametrize("args", [{"command": "a\0"}, {"command": "\ud800"}, {"command": ""}])
async def test_a_command_that_no_shell_can_have_is_refused(context: ToolContext, args: Any) -> None:
    with pytest.raises(InvalidArguments, match="command"):
        await call("bash", context, **args)


async def test_a_file_is_read_by_lines(context: ToolContext, root: Path) -> None:
    (root / "file").write_bytes(b"one\r\ntwo\n\nfour \xff")
    assert await text_of("file_read", context, path="file") == "     1\tone\n     2\ttwo\n     3\t\n     4\tfour \ufffd"
    page = await text_of("file_read", context, path="/work/file", offset=1, limit=2)
    assert page == "     2\ttwo\n     3\t\n(there is more; go on with offset=3)"
    assert await text_of("file_read", context, path="file", offset=3, limit=1) == "     4\tfour \ufffd"
    assert await text_of("file_read", context, path="file", offset=9) == "(file has only 4 lines)"
    (root / "empty").touch()
    assert await text_of("file_read", context, path="empty") == "(empty is empty)"
    (root / "binary").write_bytes(b"\x7fELF\0\0")
    assert await text_of("file_read", context, path="binary") == "binary is a binary file of 6 bytes"
    assert await fault_of("file_read", context, path="none") == "none: there is no such file or folder"
    assert await fault_of("file_read", context, path=".") == ".: is a folder"


async def test_reading_is_bounded(context: ToolContext, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "SCAN_BYTES", 4 << 20)
    (root / "long").write_bytes(b"x" * 1_000_000 + b"\nend")
    first, second = (await text_of("file_read", context, path="long")).split("\n")
    assert first.endswith(f"xxx ... ({1_000_000 - builtin.LINE_BYTES} bytes more)")
    assert second == "     2\tend"
    (root / "many").write_bytes((b"y" * 999 + b"\n") * 3000)
    shown = await text_of("file_read", context, path="many")
    assert len(shown) < builtin.READ_CHARS + 10_000
    following = re.search(r"offset=(\d+)\)$", shown)
    assert following is not None
    assert int(following[1]) == builtin.READ_CHARS // 999 + 1
    assert shown.count("\n") == int(following[1])
    (root / "huge").write_bytes(b"first\n" + b"z" * builtin.LINE_BYTES * 10)
    os.truncate(root / "huge", 1 << 40)
    first, second, more = (await text_of("file_read", context, path="huge")).split("\n")
    assert (first, second[:11]) == ("     1\tfirst", "     2\tzzzz")
    assert more == "(there is more; go on with offset=2)"
    assert "no line 3 within its first" in await text_of("file_read", context, path="huge", offset=2)


async def test_a_file_is_written_and_the_change_shown(context: ToolContext, root: Path) -> None:
    new = await call("file_write", context, path="a/file", content="one\ntwo\n")
    assert new.output == "Created a/file: 8 bytes"
    assert new.extra == {"bytes": 8, "diff": "--- /dev/null\n+++ a/file\n@@ -0,0 +1,2 @@\n+one\n+two\n"}
    changed = await call("file_write", context, path="a/file", content="one\nthree ä")
    assert changed.output == "Replaced a/file: 12 bytes"
    assert changed.extra["diff"] == (
        "--- a/file\n+++ a/file\n@@ -1,2 +1,2 @@\n one\n-two\n+three ä\n\\ No newline at end of file\n"
    )
    assert (root / "a/file").read_bytes() == "one\nthree ä".encode()
    same = await call("file_write", context, path="a/file", content="one\nthree ä")
    assert same.extra["diff"] == ""
    empty = await call("file_write", context, path="empty", content="")
    assert empty.extra["diff"] == "--- /dev/null\n+++ empty\n"


async def test_bytes_that_are_no_text_have_no_diff(context: ToolContext, root: Path) -> None:
    written = await call("file_write", context, path="file", content="a\0b")
    assert (root / "file").read_bytes() == b"a\0b"
    assert written.extra == {"bytes": 3}
    assert (await call("file_write", context, path="file", content="a")).extra == {"bytes": 1}
    with pytest.raises(InvalidArguments, match="content"):
        await call("file_write", context, path="file", content="\ud800")


async def test_text_is_replaced_where_it_is_unique(context: ToolContext, root: Path) -> None:
    (root / "file").write_text("one\ntwo\nthree\n")
    result = await call("file_edit", context, path="file", old="two\n", new="2\n")
    assert result.output == "Replaced once in file"
    assert result.extra["diff"] == "--- file\n+++ file\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    assert (root / "file").read_text() == "one\n2\nthree\n"
    assert await text_of("file_edit", context, path="file", old="e", new="E", all=True) == "Replaced 3 times in file"
    assert (root / "file").read_text() == "onE\n2\nthrEE\n"


async def test_an_edit_that_is_not_clear_changes_nothing(context: ToolContext, root: Path) -> None:
    (root / "file").write_text("a\nb\na\nab\n")
    before = (root / "file").stat()
    assert "`old` is not in the file" in await fault_of("file_edit", context, path="file", old="c", new="d")
    assert "there 3 times (lines 1, 3, 4)" in await fault_of("file_edit", context, path="file", old="a", new="d")
    assert "the same" in await fault_of("file_edit", context, path="file", old="b", new="b")
    assert "no such file" in await fault_of("file_edit", context, path="none", old="b", new="c")
    with pytest.raises(InvalidArguments, match="old"):
        await call("file_edit", context, path="file", old="", new="c")
    after = (root / "file").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    (root / "binary").write_bytes(b"a\xff")
    assert "not a text file" in await fault_of("file_edit", context, path="binary", old="a", new="b")


async def test_an_edit_keeps_the_ends_of_lines(context: ToolContext, root: Path) -> None:
    (root / "file").write_bytes(b"one\r\ntwo\r\nthree\n")
    await text_of("file_edit", context, path="file", old="one\ntwo", new="1\n2")
    assert (root / "file").read_bytes() == b"1\r\n2\r\nthree\n"


async def test_an_edit_does_not_grow_a_file_without_bound(root: Path, context: ToolContext) -> None:
    (root / "file").write_text("a" * 100_000)
    assert "too large" in await fault_of("file_edit", context, path="file", old="a", new="b" * 100_000, all=True)
    (root / "huge").touch()
    os.truncate(root / "huge", 1 << 40)
    assert "too many to edit" in await fault_of("file_edit", context, path="huge", old="a", new="b")


@pytest.fixture
def tree(root: Path) -> Path:
    """Some files, among them such as are not searched."""
    for name, data in {
        "a.py": b"one\nTwo\r\nthree\n",
        "src/b.py": b"two\n",
        "src/deep/c.ts": "zwei ä two\n".encode(),
        "src/d.bin": b"two\0\n",
        ".git/config": b"two\n",
        "x/node_modules/y": b"two\n",
        "latin": b"\xfctwo\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root.parent / "outside").mkdir()
    (root.parent / "outside/file").write_bytes(b"two secret\n")
    (root / "link").symlink_to(root.parent / "outside")
    (root / "link.py").symlink_to("a.py")
    return root


async def test_lines_that_match_are_found(context: ToolContext, tree: Path) -> None:
    found = await text_of("search", context, pattern="two$", ignore_case=True)
    assert found.split("\n") == ["a.py:2: Two", "latin:1: \ufffdtwo", "src/b.py:1: two", "src/deep/c.ts:1: zwei ä two"]
    assert await text_of("search", context, pattern="two", path="src", glob="*.py") == "src/b.py:1: two"
    assert await text_of("search", context, pattern="T[w]o", path="/work/a.py") == "/work/a.py:2: Two"
    assert await text_of("search", context, pattern="secret") == "No matches"
    assert await fault_of("search", context, pattern="two", path="none") == "none: there is no such file or folder"
    assert "leads out" in await fault_of("search", context, pattern="two", path="../outside")
    assert (await fault_of("search", context, pattern="two", path="link")).startswith("link: ")


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.py", {"a.py", "src/b.py"}),
        ("*.{py,ts}", {"a.py", "src/b.py", "src/deep/c.ts"}),
        ("src/**/*.{py,ts}", {"src/b.py", "src/deep/c.ts"}),
        ("**/c.ts", {"src/deep/c.ts"}),
        ("/src/*", {"src/b.py", "src/deep/c.ts"}),
        ("{" * 400, set[str]()),
        ("{a,b}" * 80, set[str]()),
        ("*" * 400 + "x", set[str]()),
    ],
)
async def test_files_are_chosen_by_a_glob(context: ToolContext, tree: Path, glob: str, names: set[str]) -> None:
    found = await text_of("search", context, pattern=".*(two|Two)", glob=glob)
    assert {line.partition(":")[0] for line in found.split("\n")} - {"No matches"} == names


async def test_what_a_search_shows_is_bounded(
    context: ToolContext, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "many").write_text("match\n" * 100_000)
    found = (await text_of("search", context, pattern="match", limit=3)).split("\n")
    assert found == ["many:1: match", "many:2: match", "many:3: match", "(there are more than 3 matches)"]
    (root / "many").write_text("a" * 1_000_000 + "match" + "b" * 1_000_000)
    (line,) = (await text_of("search", context, pattern="match")).split("\n")
    assert len(line) < 400
    assert "match" in line
    monkeypatch.setattr(builtin, "SEARCH_FILE_BYTES", 1 << 20)
    left_out = await text_of("search", context, pattern="match")
    assert left_out == "No matches\n(left out: 1 files of more than 1 MiB)"


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "(?P<a>x)(?P<a>y)", "*"])
async def test_a_pattern_that_is_none_is_told(context: ToolContext, pattern: str) -> None:
    with pytest.raises(InvalidArguments, match="pattern: "):
        await call("search", context, pattern=pattern)


def matchers() -> list[int]:
    """The children of this process that match patterns."""
    found: list[int] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                command = Path(entry.path, "cmdline").read_bytes()
                parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if b"RLIMIT_AS" in command and int(parent) == os.getpid():
                found.append(int(entry.name))
    return found


@pytest.fixture
def hostile(root: Path) -> Path:
    (root / "a").write_text("aaa\n")
    (root / "b").write_text("a" * 60 + "!\n")
    return root


async def test_a_catastrophic_pattern_ends_in_time(
    context: ToolContext, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "SEARCH_S", 0.5)
    started = time.monotonic()
    result = await call("search", context, pattern="(a+)+$")
    assert time.monotonic() - started < 5
    lines = str(result.output).split("\n")
    assert lines[0] == "a:1: aaa"
    assert lines[1].startswith("(stopped after 0.5 s at b:")
    assert matchers() == []


async def test_a_search_ends_when_the_run_is_cancelled(context: ToolContext, hostile: Path) -> None:
    work = asyncio.ensure_future(call("search", context, pattern="(a+)+$"))
    while not matchers():
        await asyncio.sleep(0.001)
    started = time.monotonic()
    context.cancelled.set("enough")
    assert (await work).output == "The search was cancelled"
    assert time.monotonic() - started < 5
    assert matchers() == []


async def test_a_search_that_is_given_up_leaves_no_process(context: ToolContext, hostile: Path) -> None:
    work = asyncio.ensure_future(call("search", context, pattern="(a+)+$"))
    while not matchers():
        await asyncio.sleep(0.001)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    async with asyncio.timeout(10):
        while matchers():
            await asyncio.sleep(0.001)


async def test_a_pattern_that_eats_memory_is_stopped(context: ToolContext, root: Path) -> None:
    (root / "file").write_text("ab" * 4_000_000)
    assert "too much memory" in await fault_of("search", context, pattern="(?:(a)|(b))*c")


async def test_a_search_leaves_no_descriptor(context: ToolContext, tree: Path) -> None:
    await text_of("search", context, pattern="two")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await text_of("search", context, pattern="two")
    assert len(os.listdir("/proc/self/fd")) == before


def apply(before: str, diff: str) -> str:
    """What `before` becomes by a unified diff; each line that it names must be there."""
    old = re.findall(r"[^\n]*\n|[^\n]+$", before)
    new: list[str] = []
    at = 0
    body = diff.replace("\n\\ No newline at end of file\n", "").split("\n")[2:]
    for line in re.findall(r"[^\0]*\0", "\0".join(body) + "\0"):
        text = line[:-1]
        if match := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@", text):
            start = int(match[1]) - (match[2] != "0")
            new += old[at:start]
            at = start
        elif text[:1] in (" ", "-"):
            assert old[at].rstrip("\n") == text[1:]
            new += [old[at]] if text[0] == " " else []
            at += 1
        elif text[:1] == "+":
            new.append(f"{text[1:]}\n")
    return "".join(new + old[at:])


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "- d", "+ e"]), max_size=40).map(
    lambda lines: "".join(f"{line}\n" for line in lines)
)


@given(LINES, LINES, st.sampled_from([0, 2000]))
def test_a_diff_makes_the_new_text_of_the_old(before: str, after: str, compared: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "DIFF_LINES", compared)
        diff = unified_diff("file", before.encode(), after.encode())
    assert bool(diff) == (before != after)
    if diff:
        assert apply(before, diff) == after


def test_a_diff_is_what_git_can_apply(tmp_path: Path) -> None:
    before = "".join(f"line {number}\n" for number in range(50)) + "end"
    after = before.replace("line 7\n", "").replace("line 30\n", "30\nmore\n").replace("end", "the end")
    (tmp_path / "file").write_text(before)
    diff = unified_diff("file", before.encode(), after.encode())
    subprocess.run(["git", "apply", "-p0", "-"], cwd=tmp_path, input=diff.encode(), check=True)
    assert (tmp_path / "file").read_text() == after
    assert diff.count("@@ -") == 3


def test_a_diff_is_bounded() -> None:
    chance = random.Random(1)
    words = [f"{number}\n" for number in range(40)]
    worst = [("".join(chance.choices(words, k=builtin.DIFF_LINES)).encode()) for _ in range(2)]
    large = [b"".join(b"%d\n" % chance.randrange(9) for _ in range(400_000)) for _ in range(2)]
    started = time.monotonic()
    for before, after in (worst, large, (b"", b"x" * (8 << 20)), (b"x\n" * 1_000_000, b"")):
        diff = unified_diff("file", before, after)
        assert 0 < len(diff) < builtin.DIFF_CHARS + 1000
    assert time.monotonic() - started < 20
    assert diff.endswith("(the rest of the change is not shown)\n")


async def test_paths_that_lead_out_are_refused_by_every_tool(context: ToolContext, root: Path) -> None:
    (root.parent / "secret").write_text("secret")
    (root / "link").symlink_to("../secret")
    for path in ("../secret", "link", str(root.parent / "secret"), "/etc/passwd"):
        for name, more in (
            ("file_read", {}),
            ("file_write", {"content": "x"}),
            ("file_edit", {"old": "secret", "new": "x"}),
            ("search", {"pattern": "."}),
        ):
            assert "secret" not in (await fault_of(name, context, path=path, **more)).replace(path, "")
    assert (root.parent / "secret").read_text() == "secret"
