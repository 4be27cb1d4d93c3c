"""Tools of MCP servers: real ones, over stdio and over HTTP."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from holdfast import config
from holdfast.agents.cancel import CancelToken
from holdfast.agents.folder import Folder
from holdfast.agents.mcp import connected
from holdfast.agents.mcp_servers import McpServer, McpUnavailable
from holdfast.agents.tools import Toolbox, ToolContext, ToolResult, tool

from tests.support.server import free_port

SERVER = Path(__file__).parents[1] / "support" / "mcp_server.py"
STDIO = McpServer("here", command=sys.executable, args=(str(SERVER), "stdio"))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(SERVER), str(port)], stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


@contextlib.asynccontextmanager
async def patiently(server: McpServer) -> AsyncGenerator[Toolbox, None]:
    """The tools of a server that has only just been started."""
    for _ in range(100):
        try:
            async with connected([server]) as toolbox:
                yield toolbox
                return
        except McpUnavailable:
            await asyncio.sleep(0.1)
    raise AssertionError("the server does not start")


def servers_alive() -> list[int]:
    """The servers over stdio that this process has."""
    found: list[int] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # One that has ended has no command line.
            if child.cmdline()[-1:] == ["stdio"]:
                found.append(child.pid)
    return found


def context() -> ToolContext:
    async def never(*args: Any, **more: Any) -> Any:
        raise AssertionError

    return ToolContext("s", Folder(Path("/nowhere")), CancelToken(), never, never)


async def call(toolbox: Toolbox, name: str, **args: Any) -> ToolResult:
    found = toolbox.get(name)
    assert found is not None, toolbox.names
    return await asyncio.wait_for(found.call(context(), args), 30)


async def test_the_tools_of_a_program_over_stdio() -> None:
    async with connected([STDIO]) as toolbox:
        assert set(toolbox.names) == {
            f"here_{name}" for name in ("add", "broken", "variables", "process", "wait", "die")
        }
        add = toolbox.get("here_add")
        assert add is not None
        assert (add.description, add.approval, add.confined) == ("Add two numbers.", "ask", False)
        assert set(add.parameters["properties"]) == {"a", "b"}
        assert await call(toolbox, "here_add", a=2, b=3) == ToolResult({"result": 5})


async def test_the_tools_of_a_server_over_http(address: str) -> None:
    async with patiently(McpServer("far", url=address, approval="always")) as toolbox:
        assert await call(toolbox, "far_add", a=2, b=3) == ToolResult({"result": 5})
        assert {each.approval for each in toolbox} == {"always"}


async def test_what_goes_wrong_in_a_tool_is_a_failed_result(address: str) -> None:
    async with connected([STDIO]) as toolbox:
        broken = await call(toolbox, "here_broken")
        assert broken.failed
        assert "broken" in str(broken.output)
        unfit = await call(toolbox, "here_add", a="x", b=-1)
        assert unfit.failed
        assert await call(toolbox, "here_add", a=1, b=1) == ToolResult({"result": 2})


async def test_a_program_has_none_of_the_services_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SECRET", "x")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    server = McpServer("here", command=sys.executable, args=(str(SERVER),), env={"ITS_OWN": "y"})
    async with connected([server]) as toolbox:
        told = str((await call(toolbox, "here_variables")).output)
    assert "ITS_OWN" in told
    assert "HOLDFAST_SECRET" not in told
    assert "OPENAI_API_KEY" not in told


async def test_a_program_that_dies_in_a_call_is_started_again_for_the_next() -> None:
    async with connected([STDIO]) as toolbox:
        lost = await call(toolbox, "here_die")
        assert lost.failed
        assert "not known" in str(lost.output)
        assert await call(toolbox, "here_add", a=1, b=2) == ToolResult({"result": 3})


async def test_a_call_that_is_cancelled_ends_and_leaves_the_server_usable(tmp_path: Path) -> None:
    sign = tmp_path / "called"
    async with connected([STDIO]) as toolbox:
        waiting = asyncio.create_task(call(toolbox, "here_wait", sign=str(sign)))
        while not sign.exists():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert await call(toolbox, "here_add", a=1, b=2) == ToolResult({"result": 3})


async def test_a_program_ends_with_the_connection() -> None:
    async with connected([STDIO]) as toolbox:
        pid: Any = (await call(toolbox, "here_process")).output["result"]  # pyright: ignore
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_a_program_is_killed_with_the_service_however_that_ends() -> None:
    code = (
        "import asyncio\nfrom tests.agents.test_mcp import STDIO, call\nfrom holdfast.agents.mcp import connected\n"
        "async def main():\n async with connected([STDIO]) as toolbox:\n"
        "  print((await call(toolbox, 'here_process')).output['result'], flush=True)\n  await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    service = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    pid = int(service.stdout.readline())
    server = psutil.Process(pid)
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    for _ in range(100):
        if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (McpServer("x", command="no-such-program"), "there is no command 'no-such-program'"),
        (McpServer("x", command="false"), "could not be connected"),
        (McpServer("x", command="sleep", args=("60",)), "did not answer within 1 seconds"),
        (McpServer("x", url="http://127.0.0.1:1/mcp"), "could not be connected"),
    ],
)
async def test_a_server_that_cannot_be_had_is_told_in_one_line(server: McpServer, words: str) -> None:
    is_silent = server.command == "sleep"
    servers, start_s = ([server], 1.0) if is_silent else ([STDIO, server], 10.0)
    with pytest.raises(McpUnavailable, match=re.escape(words)) as caught:
        async with connected(servers, start_s=start_s):
            pass
    assert "\n" not in str(caught.value)
    assert "'x'" in str(caught.value)
    assert not servers_alive()


async def test_a_name_that_is_taken_is_told() -> None:
    @tool(name="here_add")
    async def own() -> str:
        """Be here."""
        return ""

    with pytest.raises(McpUnavailable, match="'here_add'"):
        async with connected([STDIO], Toolbox([own])):
            pass


class TestTables:
    """The tables of `holdfast.toml`."""

    def load(self, folder: Path, text: str, **environ: str) -> tuple[McpServer, ...]:
        toml = folder / "holdfast.toml"
        toml.write_text(text)
        return config.load({}, environ, toml).mcp

    def test_servers_of_both_kinds(self, tmp_path: Path) -> None:
        text = (
            'port = 8010\n[mcp.files]\ncommand = "mcp-files"\nargs = ["/srv"]\nenv = { KEY = "${SECRET}" }\n'
            '[mcp.far]\nurl = "https://example.test/mcp"\napproval = "never"\nheaders = { A = "Bearer ${SECRET}" }\n'
        )
        files, far = self.load(tmp_path, text, SECRET="hush")
        assert files == McpServer("files", "mcp-files", ("/srv",), {"KEY": "hush"})
        assert far == McpServer("far", url="https://example.test/mcp", headers={"A": "Bearer hush"}, approval="never")
        assert "hush" not in repr((files, far))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("mcp = 3", "mcp must be tables"),
            ("[mcp]\nfiles = 3", "mcp.files must be a table"),
            ("[mcp.'a b']\ncommand = 'x'", "its name must be"),
            ("[mcp.files]", "mcp.files must have `command` or `url`"),
            ("[mcp.files]\ncommand = 'x'\nurl = 'http://x'", "and not both"),
            ("[mcp.files]\ncommand = ''", "mcp.files.command"),
            ("[mcp.files]\nurl = 'file:///x'", "mcp.files.url"),
            ("[mcp.files]\ncommand = 'x'\nheaders = {}", "mcp.files.headers does not go with `command`"),
            ("[mcp.files]\ncommand = 'x'\nargs = 'a'", "mcp.files.args"),
            ("[mcp.files]\ncommand = 'x'\napproval = 'maybe'", "always, ask, never"),
            ("[mcp.files]\ncommand = 'x'\nshell = true", "mcp.files.shell is not a setting"),
            ("[mcp.files]\ncommand = 'x'\nenv = { A = '${NOT_SET}' }", "mcp.files.env.A needs the variable NOT_SET"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(config.SettingError, match=re.escape(words)):
            self.load(tmp_path, text)

    def test_a_wrong_secret_is_not_repeated(self, tmp_path: Path) -> None:
        with pytest.raises(config.SettingError) as caught:
            self.load(tmp_path, "[mcp.files]\ncommand = 'x'\nenv = { KEY = 7, OTHER = 'hush' }")
        assert "hush" not in str(caught.value)
