"""Actions over the public protocol: what a client sees of them, answers, downloads, and is refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.test_http import conforms
from tests.support.client import Client, Frame, http
from tests.support.provider import Provider, Script
from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]


@pytest.fixture
async def session(api: httpx2.AsyncClient) -> str:
    return str((await api.post("/api/sessions")).json()["id"])


@pytest.fixture
async def client(shared: ServerProcess, session: str) -> AsyncIterator[Client]:
    async with Client(shared.ws_url) as made:
        await made.follow(session)
        yield made


async def said(client: Client, session: str, content: str) -> Frame:
    """Send, and wait for the end of the run; that end."""
    before = len(client.events.get(session, []))
    await client.ask("send", session=session, content=content)

    def is_end(event: Frame) -> bool:
        return event["event"]["type"] in ("RUN_FINISHED", "RUN_ERROR") and event in client.events[session][before:]

    return await client.wait_event(session, is_end)


def question_of(end: Frame) -> dict[str, Any]:
    found: dict[str, Any] = end["event"]["outcome"]["interrupts"][0]
    return found


async def actions_of(api: httpx2.AsyncClient, session: str) -> list[dict[str, Any]]:
    items = (await api.get(f"/api/sessions/{session}/messages")).json()["items"]
    return [action for message in items for action in message.get("actions", [])]


class TestOverTheSocket:
    """The native protocol."""

    async def test_an_action_is_seen_from_its_beginning_to_its_end(
        self, client: Client, session: str, api: httpx2.AsyncClient
    ) -> None:
        await said(client, session, "run echo one; echo two >&2")
        events = [each["event"] for each in client.events[session]]
        kinds = [e["type"] for e in events if e["type"].startswith("TOOL_CALL") or e.get("name") == "action.output"]
        assert kinds[:3] == ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END"]
        assert kinds[-1] == "TOOL_CALL_RESULT"
        assert "CUSTOM" in kinds
        action = (await actions_of(api, session))[0]
        assert (action["type"], action["status"], action["exit_code"]) == ("bash", "success", 0)

    async def test_approve_goes_on_and_twice_is_the_same(
        self, client: Client, session: str, api: httpx2.AsyncClient
    ) -> None:
        end = await said(client, session, "ask echo yes")
        decision = {"interruptId": question_of(end)["id"], "approved": True}
        first = await client.ask("approve", session=session, run=end["run"], decisions=[decision])
        assert first["type"] == "ack"
        again = await client.ask("approve", session=session, run=end["run"], decisions=[decision])
        assert again["result"] == first["result"]
        other = {**decision, "approved": False}
        refused = await client.ask("approve", session=session, run=end["run"], decisions=[other])
        assert (refused["type"], refused["code"]) == ("error", "already_resolved")
        await client.wait_event(session, lambda e: e["event"]["type"] == "TOOL_CALL_RESULT")
        assert (await actions_of(api, session))[0]["output"].startswith("yes")

    @pytest.mark.parametrize(
        ("decisions", "field"),
        [
            (None, "/decisions"),
            ([], "/decisions"),
            ([{}], "/decisions/0/interruptId"),
            ([{"interruptId": "x", "approved": True}], "/decisions/0/interruptId"),
            ([{"interruptId": "01a1fd37-585b-77d6-a23e-b19fc75e7989"}], "/decisions/0/approved"),
            ([{"interruptId": "01a1fd37-585b-77d6-a23e-b19fc75e7989", "approved": "yes"}], "/decisions/0/approved"),
            (
                [{"interruptId": "01a1fd37-585b-77d6-a23e-b19fc75e7989", "approved": True, "editedArgs": 3}],
                "/decisions/0/editedArgs",
            ),
            (
                [
                    {
                        "interruptId": "01a1fd37-585b-77d6-a23e-b19fc75e7989",
                        "approved": True,
                        "editedArgs": {"a": "\x00"},
                    }
                ],
                "/decisions/0/editedArgs/a",
            ),
        ],
    )
    async def test_a_wrong_answer_names_the_field_and_changes_nothing(
        self, client: Client, session: str, decisions: Any, field: str, api: httpx2.AsyncClient
    ) -> None:
        end = await said(client, session, "ask echo no")
        more = {} if decisions is None else {"decisions": decisions}
        refused = await client.ask("approve", session=session, run=end["run"], **more)
        assert (refused["type"], refused["code"]) in (("error", "invalid_frame"), ("error", "no_open_interrupt"))
        if refused["code"] == "invalid_frame":
            assert refused["field"].startswith("decisions")
            assert all(part in refused["field"] for part in field.split("/")[3:4])
        answer = await api.post(f"/api/runs/{end['run']}/approve", json=more)
        assert answer.status_code == 400
        assert field in [error["pointer"] for error in answer.json()["errors"]]
        assert (await actions_of(api, session))[0]["status"] == "pending"

    async def test_what_waits_is_in_the_snapshot_of_a_second_tab(
        self, shared: ServerProcess, client: Client, session: str
    ) -> None:
        end = await said(client, session, "ask echo no")
        async with Client(shared.ws_url) as second:
            await second.follow(session)
            snapshot = await second.wait_for(lambda f: f["type"] == "snapshot")
            assert snapshot["activeRun"]["status"] == "waiting"
            assert [each["id"] for each in snapshot["interrupts"]] == [question_of(end)["id"]]
            await second.ask("cancel", session=session)
            await client.wait_event(session, lambda e: e["event"]["type"] == "TOOL_CALL_RESULT")


class TestOverHttp:
    """Without a socket."""

    async def test_approve_edit_and_deny(self, client: Client, session: str, api: httpx2.AsyncClient) -> None:
        end = await said(client, session, "ask echo one")
        edited = {"interruptId": question_of(end)["id"], "approved": True, "editedArgs": {"command": "echo two"}}
        answer = await api.post(f"/api/runs/{end['run']}/approve", json={"decisions": [edited]})
        assert answer.status_code == 200
        conforms(answer.json(), "Approved")
        await client.wait_end(session, answer.json()["run"])
        assert (await actions_of(api, session))[0]["output"].startswith("two")
        conflict = await api.post(
            f"/api/runs/{end['run']}/approve", json={"decisions": [{**edited, "approved": False, "editedArgs": None}]}
        )
        assert (conflict.status_code, conflict.json()["code"]) == (409, "already_resolved")

    async def test_files_are_listed_and_downloaded(self, client: Client, session: str, api: httpx2.AsyncClient) -> None:
        await said(client, session, "write a/b.html <script>alert(1)</script>\nrun ln -s /etc/passwd link; mkfifo pipe")
        listed = (await api.get(f"/api/sessions/{session}/files")).json()
        conforms(listed, "Files")
        assert {each["name"]: each["kind"] for each in listed["entries"]}["a"] == "folder"
        inner = (await api.get(f"/api/sessions/{session}/files", params={"path": "a"})).json()
        assert [each["name"] for each in inner["entries"]] == ["b.html"]
        file = await api.get(f"/api/sessions/{session}/files/content", params={"path": "a/b.html"})
        assert file.text == "<script>alert(1)</script>\n"
        assert file.headers["content-type"] == "application/octet-stream"
        assert file.headers["content-disposition"].startswith("attachment")
        assert file.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize(
        "path",
        ["../../holdfast.db", "/etc/passwd", "link", "pipe", "a/../../x", "nothing", ".", "a", "x" * 5000, "\x00"],
    )
    async def test_nothing_outside_is_reached(
        self, client: Client, session: str, api: httpx2.AsyncClient, path: str
    ) -> None:
        await said(client, session, "run mkdir a; ln -s /etc/passwd link; mkfifo pipe")
        async with asyncio.timeout(10):
            file = await api.get(f"/api/sessions/{session}/files/content", params={"path": path})
            folder = await api.get(f"/api/sessions/{session}/files", params={"path": path})
        assert file.status_code in (400, 404)
        assert "root:" not in file.text + folder.text
        assert folder.status_code in ((200,) if path in (".", "a") else (400, 404))

    async def test_a_large_output_is_kept_whole(self, client: Client, session: str, api: httpx2.AsyncClient) -> None:
        await said(client, session, "run seq 1 200000")
        action = (await actions_of(api, session))[0]
        assert "left out" in action["output"]
        whole = await api.get(action["link"])
        assert whole.text == "".join(f"{n}\n" for n in range(1, 200_001))
        small = await api.get(action["link"].replace(action["id"], "nothing"))
        assert small.status_code == 404

    async def test_the_tools_are_told(self, api: httpx2.AsyncClient) -> None:
        told = (await api.get("/api/tools")).json()
        conforms(told, "Tools")
        assert {each["name"] for each in told["tools"]} == {"bash", "file_read", "file_write", "file_edit", "search"}

    async def test_the_files_go_with_the_session(
        self, shared: ServerProcess, client: Client, session: str, api: httpx2.AsyncClient
    ) -> None:
        await said(client, session, "write a.txt text")
        kept = shared.data_dir / "sessions" / session
        assert kept.is_dir()
        assert (await api.delete(f"/api/sessions/{session}")).status_code == 204
        async with asyncio.timeout(10):
            while kept.exists():
                await asyncio.sleep(0.02)


async def test_files_and_approvals_are_their_owners_alone(
    make_server: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.api.test_http import _cli  # noqa: PLC0415 - beside its use

    server = make_server("--auth", "tokens")
    secrets = {}
    for name in ("ada", "eve"):
        _, out = await asyncio.to_thread(_cli, capsys, "token", "create", name, "--data-dir", str(server.data_dir))
        secrets[name] = out.strip().splitlines()[-1]
    async with http(server.base_url, secrets["ada"]) as ada, http(server.base_url, secrets["eve"]) as eve:
        session = (await ada.post("/api/sessions")).json()["id"]
        async with Client(server.ws_url, token=secrets["ada"]) as client:
            await client.follow(session)
            end = await said(client, session, "write a.txt text\nask echo one")
        for path in ("files", "files/content?path=a.txt", "actions/x/output"):
            assert (await eve.get(f"/api/sessions/{session}/{path}")).status_code == 404
        decision = {"interruptId": question_of(end)["id"], "approved": True}
        body = {"decisions": [decision]}
        assert (await eve.post(f"/api/runs/{end['run']}/approve", json=body)).status_code == 404
        async with Client(server.ws_url, token=secrets["eve"]) as client:
            refused = await client.ask("approve", session=session, run=end["run"], decisions=[decision])
            assert refused["code"] == "session_not_found"
        assert (await ada.post(f"/api/runs/{end['run']}/approve", json=body)).status_code == 200


class TestOfAModel:
    """A model behind a real HTTP server that speaks a provider's protocol, from its call to the page's events."""

    @pytest.fixture
    def provider(self) -> Iterator[Provider]:
        with Provider() as running:
            yield running

    async def test_it_uses_tools_and_sees_what_came_of_them(self, make_server: MakeServer, provider: Provider) -> None:
        env = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "key"}
        server = make_server("--agent", "openai:test", "--instructions", "Be brief.", env=env)
        provider.queue += [
            Script(say=["Let me see. "], calls=[{"name": "bash", "args": {"command": "echo $((6*7))"}, "id": "c1"}]),
            Script(
                calls=[
                    {"name": "invented", "args": {"x": 1}, "id": "c2"},
                    {"name": "bash", "args": {"cmd": 1}, "id": "c3"},
                ]
            ),
            Script(say=["It is 42."]),
        ]
        async with http(server.base_url) as api, Client(server.ws_url) as client:
            session = (await api.post("/api/sessions")).json()["id"]
            await client.follow(session)
            end = await said(client, session, "what is six times seven?")
            assert end["event"]["outcome"] == {"type": "success"}
            first, invented, unfit = await actions_of(api, session)
            items = (await api.get(f"/api/sessions/{session}/messages")).json()["items"]
        assert items[-1]["content"] == "Let me see. It is 42."
        assert (first["id"], first["outcome"], first["output"].split()[0]) == ("c1", "success", "42")
        assert "There is no tool 'invented'" in invented["output"]
        assert (unfit["outcome"], "Invalid arguments" in unfit["output"]) == ("failed", True)
        told = provider.requests[-1]["messages"]
        assert "Be brief." in json.dumps(provider.requests[0])
        assert [each["role"] for each in told].count("tool") == 3
        assert "42" in next(each["content"] for each in told if each["role"] == "tool")

    async def test_it_goes_on_after_an_approval_and_a_restart(
        self, make_server: MakeServer, provider: Provider
    ) -> None:
        env = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "key"}
        server = make_server("--agent", "openai:test", "--approvals", "bash=ask", env=env)
        provider.queue += [
            Script(say=["May I? "], calls=[{"name": "bash", "args": {"command": "echo done"}, "id": "c"}])
        ]
        async with http(server.base_url) as api, Client(server.ws_url) as client:
            session = (await api.post("/api/sessions")).json()["id"]
            await client.follow(session)
            end = await said(client, session, "do it")
            question = question_of(end)
        server.kill9()
        server.start()
        provider.queue += [Script(say=["It is done."])]
        async with http(server.base_url) as api:
            decision = {"interruptId": question["id"], "approved": True}
            answer = await api.post(f"/api/runs/{end['run']}/approve", json={"decisions": [decision]})
            async with asyncio.timeout(20):
                while (await api.get(f"/api/runs/{answer.json()['run']}")).json()["status"] in ("queued", "running"):
                    await asyncio.sleep(0.02)
            items = (await api.get(f"/api/sessions/{session}/messages")).json()["items"]
        assert [each["content"] for each in items] == ["do it", "May I? ", "It is done."]
        assert items[1]["actions"][0]["outcome"] == "success"
        told = provider.requests[-1]["messages"]
        assert [each["role"] for each in told] == ["user", "assistant", "tool"]
        assert told[1]["tool_calls"][0]["function"]["name"] == "bash"
        assert told[2]["content"].startswith("done")


HOSTILE = {
    "the folders of the service": "ls -la {data} 2>&1; cat {data}/holdfast.db 2>&1 | head -c 15",
    "another session's folder": "cat {data}/sessions/{other}/work/secret.txt 2>&1; ls -R /work/.. 2>&1 | grep secret",
    "the own port": "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
    "the network": "timeout 2 bash -c 'exec 3<>/dev/tcp/1.1.1.1/53' 2>&1 && echo REACHED",
    "the service's environment": "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'",
    "the service's process": "kill -9 {pid} 2>&1; kill -9 -1 2>&1; ls /proc/{pid}/fd 2>&1",
    "files of the host": "cat /etc/shadow /root/.bash_history 2>&1; ls /home /root /var/lib 2>&1",
    "a link out": "ln -s {data}/holdfast.db db; cat db 2>&1 | head -c 15; ln -s / up; ls up/root 2>&1",
    "root": "id -u; su -c id 2>&1; sudo -n id 2>&1; unshare -r id -u 2>&1 | grep -x 0 && cat {data}/holdfast.db 2>&1",
    "mounts": "mount -t tmpfs x /mnt 2>&1; mount --bind / /work 2>&1; umount /work 2>&1",
    "devices": "ls /dev/sda /dev/mem /dev/kmsg 2>&1; head -c 10 /dev/mem 2>&1; mknod d b 8 0 2>&1",
    "the system": "echo x > /usr/bin/evil 2>&1; echo x > /etc/passwd 2>&1; echo x > /proc/sys/kernel/core_pattern 2>&1",
    "ptrace": "gdb -p 1 2>&1; cat /proc/1/mem 2>&1 | head -c 10; cat /proc/{pid}/maps 2>&1 | head -3",
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_command_reaches_nothing(make_server: MakeServer, what: str) -> None:
    """Through the real service, which holds a secret in each place that the command tries."""
    server = make_server(
        "--kill-grace-s", "0.5", env={"HOLDFAST_SECRET": "swordfish-env", "OPENAI_API_KEY": "swordfish-key"}
    )
    async with http(server.base_url) as api, Client(server.ws_url) as client:
        other = (await api.post("/api/sessions", json={"title": "swordfish-title"})).json()["id"]
        await client.follow(other)
        await said(client, other, "write secret.txt swordfish-file")
        session = (await api.post("/api/sessions")).json()["id"]
        await client.follow(session)
        names = {"data": server.data_dir, "other": other, "port": server.port, "pid": server.pid}
        end = await said(client, session, "run " + HOSTILE[what].format(**names))
        assert end["event"]["type"] == "RUN_FINISHED"
        output = (await actions_of(api, session))[0]["output"]
        assert (await api.get("/health")).status_code == 200
    assert "swordfish" not in output
    assert "SQLite format" not in output
    assert "uid=0" not in output
    assert "REACHED" not in output
    assert "HTTP/1" not in output
    assert "root:" not in output
    assert not Path("/usr/bin/evil").exists()
    lines = output.splitlines()
    if what == "root":
        assert lines[0] != "0"
    if what == "the service's process":
        assert "No such" in output


@pytest.mark.parametrize("depth", [70, 500, 3_000, 100_000])
async def test_input_nested_without_an_end_is_refused(
    client: Client, session: str, api: httpx2.AsyncClient, depth: int
) -> None:
    end = await said(client, session, "ask echo hi")
    nested = '{"a":' * depth + "1" + "}" * depth
    decisions = f'[{{"interruptId": "{question_of(end)["id"]}", "approved": true, "editedArgs": {nested}}}]'
    for path, body in (
        (f"/api/runs/{end['run']}/approve", f'{{"decisions": {decisions}}}'),
        ("/api/sessions", f'{{"sandbox": {nested}}}'),
    ):
        answer = await api.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413), answer.text
    if len(decisions) < 200_000:
        head = f'{{"type": "approve", "id": "deep", "session": "{session}", "run": "{end["run"]}", "decisions": '
        async with Client(client.url) as other:
            await other.wire.send(head + decisions + "}")
            try:
                refused = await other.wait_for(lambda f: f["type"] == "error")
                assert refused["code"] == "invalid_frame"
            except ConnectionError:
                assert other.closed == 4400  # So deep that it is no JSON any more.
    assert (await actions_of(api, session))[0]["status"] == "pending"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "Invalid arguments"),
        ({"command": ["a"]}, "Invalid arguments"),
        ({"command": "x" * 200_000}, ""),
        ({"command": "echo ok", "timeout_s": 1e308}, "Invalid arguments"),
        ({"command": "echo ok", "more": True}, "Invalid arguments"),
    ],
)
async def test_edited_arguments_that_do_not_fit_are_a_result(
    client: Client, session: str, api: httpx2.AsyncClient, args: dict[str, Any], words: str
) -> None:
    end = await said(client, session, "ask echo hi")
    decision = {"interruptId": question_of(end)["id"], "approved": True, "editedArgs": args}
    answer = await api.post(f"/api/runs/{end['run']}/approve", json={"decisions": [decision]})
    assert answer.status_code == 200
    last = await client.wait_end(session, answer.json()["run"])
    assert last["event"]["type"] == "RUN_FINISHED"
    action = (await actions_of(api, session))[0]
    assert action["outcome"] == "failed"
    assert words in action["output"]
