"""The HTTP API against a real server: sessions, messages, runs, errors, credentials, documents."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx2
import jsonschema
import openapi_spec_validator
import pytest
import websockets
from holdfast.api import documents, problems
from holdfast.api.app import ENDPOINTS
from holdfast.cli import main
from holdfast.clock import new_id
from holdfast.domain.errors import ERRORS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import Client, http
from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]


async def ended(api: httpx2.AsyncClient, run: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while (body := (await api.get(f"/api/runs/{run}")).json())["status"] in ("queued", "running"):
            await asyncio.sleep(0.005)
    return body


def conforms(body: Any, name: str) -> None:
    """Hold a body to the OpenAPI document."""
    document = documents.openapi(ENDPOINTS)
    schema = {**document["components"]["schemas"][name], "components": document["components"]}
    jsonschema.validate(body, schema)


async def test_a_conversation_over_http(api: httpx2.AsyncClient) -> None:
    session = (await api.post("/api/sessions", json={"title": "T", "branch": "main"})).json()
    conforms(session, "Session")
    sent = await api.post(f"/api/sessions/{session['id']}/messages", json={"content": "fast 3", "key": "k"})
    assert sent.status_code == 202
    again = await api.post(f"/api/sessions/{session['id']}/messages", json={"content": "fast 3", "key": "k"})
    assert again.json() == sent.json()
    run = await ended(api, sent.json()["run"])
    conforms(run, "Run")
    assert (run["status"], run["session"]) == ("success", session["id"])
    listed = (await api.get(f"/api/sessions/{session['id']}/messages")).json()
    conforms(listed, "MessageList")
    assert [message["role"] for message in listed["items"]] == ["user", "assistant"]
    assert listed["items"][1]["id"] == run["message"]
    assert len(listed["items"][1]["content"].split()) == 3


async def test_cancel_and_continue(api: httpx2.AsyncClient) -> None:
    session = (await api.post("/api/sessions")).json()["id"]
    idle = (await api.post(f"/api/sessions/{session}/cancel")).json()
    assert (idle["effect"], idle["session"]["cancellation_status"]) == ("nothing_to_cancel", "Cancelled")
    assert idle["session"]["ui_status"] == "Idle"
    again = (await api.post(f"/api/sessions/{session}/cancel")).json()
    assert again == idle
    run = (await api.post(f"/api/sessions/{session}/messages", json={"content": "slow 500"})).json()["run"]
    row = (await api.get(f"/api/sessions/{session}")).json()
    assert (row["ui_status"], row["cancellation_status"], row["cancelled_by"]) == ("InProgress", None, None)
    cancelled = (await api.post(f"/api/runs/{run}/cancel", json={"reason": "enough"})).json()
    assert cancelled == {"effect": "requested", "runs": [run]}
    assert (await ended(api, run))["status"] == "cancelled"
    row = (await api.get(f"/api/sessions/{session}")).json()
    assert (row["ui_status"], row["cancellation_status"]) == ("NeedsReview", "Cancelled")
    assert (await api.post(f"/api/runs/{run}/cancel")).json()["effect"] == "already_terminal"
    more = await api.post(f"/api/runs/{run}/continue")
    assert more.status_code == 202
    await api.post(f"/api/sessions/{session}/cancel")


async def test_edits_are_guarded_by_the_version(api: httpx2.AsyncClient) -> None:
    session = (await api.post("/api/sessions", json={"title": "one"})).json()
    path = f"/api/sessions/{session['id']}"
    edited = await api.patch(path, json={"title": "two"}, headers={"If-Match": '"1"'})
    assert (edited.json()["title"], edited.headers["etag"]) == ("two", '"2"')
    stale = await api.patch(path, json={"title": "three"}, headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["code"], stale.json()["current"]["title"]) == (409, "conflict", "two")
    assert (await api.patch(path, json={"title": "x"}, headers={"If-Match": "nonsense"})).status_code == 400
    assert (await api.patch(path, json={"notes": "n"})).json()["title"] == "two"
    both = await asyncio.gather(api.patch(path, json={"title": "A"}), api.patch(path, json={"branch": "B"}))
    assert {answer.status_code for answer in both} == {200}
    final = (await api.get(path)).json()
    assert (final["title"], final["branch"], final["notes"]) == ("A", "B", "n")
    assert (await api.delete(path)).status_code == 204
    assert (await api.get(path)).status_code == 404


async def test_lists_are_paged(api: httpx2.AsyncClient) -> None:
    made = {(await api.post("/api/sessions", json={"title": f"paged {n}"})).json()["id"] for n in range(7)}
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": "3", "q": "paged", **({"cursor": cursor} if cursor else {})}
        page = (await api.get("/api/sessions", params=query)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == 7
    assert set(seen) == made


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "pointers"),
    [
        ("POST", "/api/sessions", b"{", 400, [""]),
        ("POST", "/api/sessions", b"[]", 400, [""]),
        ("POST", "/api/sessions", b"0\x00", 400, [""]),
        ("POST", "/api/sessions", b'{"title": 7, "colour": 1, "branch": []}', 400, ["/colour", "/title", "/branch"]),
        ("POST", "/api/sessions", b'{"title": "a\\u0000"}', 400, ["/title"]),
        ("POST", "/api/sessions", b'{"sandbox": {"deep": ["\\u0000"]}}', 400, ["/sandbox/deep/0"]),
        ("POST", "/api/sessions", b"\xff\xfe", 400, [""]),
        ("POST", "/api/sessions/ID/messages", b"{}", 400, ["/content"]),
        ("POST", "/api/sessions/ID/messages", b'{"content": " "}', 400, ["/content"]),
        ("POST", "/api/sessions/ID/messages", b'{"content": "x", "ifBusy": "no"}', 400, ["/ifBusy"]),
        ("POST", "/api/sessions/ID/queue", b'{"op": "move", "task": "x", "version": 1}', 400, ["/task"]),
        ("PATCH", "/api/sessions/ID", b"{}", 400, [""]),
        ("PATCH", "/api/sessions/ID", b'{"title": null}', 400, ["/title"]),
        ("PATCH", "/api/sessions/ID", b'{"assignee": "01900000-0000-7000-8000-000000000000"}', 400, ["/assignee"]),
        ("GET", "/api/sessions?limit=0", None, 400, ["/limit"]),
        ("GET", "/api/sessions?cursor=xx", None, 400, ["/cursor"]),
        ("GET", "/api/sessions?ui_status=Odd", None, 400, ["/ui_status"]),
        ("GET", "/api/sessions/nonsense", None, 400, ["/id"]),
        ("GET", "/api/runs/nonsense", None, 400, ["/id"]),
        ("GET", "/api/sessions/ID/export?format=pdf", None, 400, ["/format"]),
        ("POST", "/api/sessions/ID/messages", b'{"content": "' + b"x" * 2**20 + b'xx"}', 413, ["/content"]),
    ],
)
async def test_bad_input_names_every_fault(
    api: httpx2.AsyncClient, method: str, path: str, body: bytes | None, status: int, pointers: list[str]
) -> None:
    session = (await api.post("/api/sessions")).json()["id"]
    answer = await api.request(method, path.replace("ID", session), content=body)
    told = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert [error["pointer"] for error in told["errors"]] == pointers
    conforms(told, "Problem")
    assert (await api.get(f"/api/sessions/{session}/messages")).json()["items"] == []


async def test_what_is_not_there_is_404(api: httpx2.AsyncClient) -> None:
    for path, code in (
        (f"/api/sessions/{new_id()}", "session_not_found"),
        (f"/api/runs/{new_id()}", "run_not_found"),
        ("/api/nothing", "not_found"),
    ):
        answer = await api.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, code)


async def test_a_foreign_host_or_origin_is_refused(api: httpx2.AsyncClient) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = await api.post("/api/sessions", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert (await api.get("/", headers={"Host": "evil.example"})).status_code == 403


async def test_every_answer_is_guarded(api: httpx2.AsyncClient) -> None:
    for path in ("/", "/api/me", "/docs", "/nothing"):
        headers = (await api.get(path)).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


async def test_files_outside_the_ui_are_not_served(api: httpx2.AsyncClient) -> None:
    for path in ("/assets/../../config.py", "/assets/%2e%2e/%2e%2e/config.py", "/assets//etc/passwd"):
        assert (await api.get(path)).status_code == 404


async def test_metrics_health_and_readiness(api: httpx2.AsyncClient) -> None:
    assert (await api.get("/health")).json() == {"status": "ok", "database": True}
    assert (await api.get("/ready")).status_code == 200
    assert "holdfast_journal_commits_total" in (await api.get("/metrics")).text


async def test_the_documents_are_valid_and_complete(api: httpx2.AsyncClient) -> None:
    document = (await api.get("/docs/openapi.json")).json()
    openapi_spec_validator.validate(document)
    told = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert told == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    socket = (await api.get("/docs/asyncapi.json")).json()
    assert socket["asyncapi"] == "3.0.0"
    assert {"hello", "send", "server_events"} <= set(socket["components"]["messages"])
    assert "/api/sessions" in (await api.get("/docs")).text


def test_every_error_has_a_status() -> None:
    assert {error.code for error in ERRORS} == set(problems.STATUS)


async def test_export_and_import_keep_the_conversation(
    api: httpx2.AsyncClient, shared: ServerProcess, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    session = (await api.post("/api/sessions", json={"title": "to keep"})).json()["id"]
    run = (await api.post(f"/api/sessions/{session}/messages", json={"content": "think it\nfast 20"})).json()["run"]
    await ended(api, run)
    file = tmp_path / "session.jsonl"
    file.write_text((await api.get(f"/api/sessions/{session}/export?format=jsonl")).text)
    assert "to keep" in (await api.get(f"/api/sessions/{session}/export?format=markdown")).text

    def load() -> str:
        with pytest.raises(SystemExit) as ended_with:
            main(["import", str(file), "--data-dir", str(shared.data_dir)])
        assert ended_with.value.code == 0
        return capsys.readouterr().out.strip().splitlines()[-1]

    copy = await asyncio.to_thread(load)
    one = (await api.get(f"/api/sessions/{session}/messages")).json()["items"]
    two = (await api.get(f"/api/sessions/{copy}/messages")).json()["items"]
    assert [(m["role"], m["content"], m["metadata"]) for m in one] == [
        (m["role"], m["content"], m["metadata"]) for m in two
    ]


def _cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended_with:
        main(list(arguments))
    return int(ended_with.value.code or 0), capsys.readouterr().out


async def test_tokens_isolate_users(make_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server = make_server("--auth", "tokens")
    where = ("--data-dir", str(server.data_dir))
    secrets = {}
    for name, more in (("ada", ()), ("eve", ()), ("root", ("--admin",))):
        code, out = await asyncio.to_thread(_cli, capsys, "token", "create", name, *more, *where)
        secrets[name] = out.strip().splitlines()[-1]
        assert code == 0
        assert secrets[name].startswith("hf_")
        assert len(secrets[name]) >= 43
    async with http(server.base_url) as nobody, http(server.base_url, secrets["ada"]) as ada:
        assert (await nobody.get("/api/me")).status_code == 401
        assert (await nobody.get("/api/me", headers={"Authorization": "Bearer hf_wrong"})).status_code == 401
        assert (await ada.get("/api/me")).json()["name"] == "ada"
        session = (await ada.post("/api/sessions")).json()["id"]
        run = (await ada.post(f"/api/sessions/{session}/messages", json={"content": "slow 100"})).json()["run"]
        async with http(server.base_url, secrets["eve"]) as eve:
            assert (await eve.get("/api/sessions")).json()["items"] == []
            for method, path in (
                ("GET", f"/api/sessions/{session}"),
                ("GET", f"/api/sessions/{session}/messages"),
                ("GET", f"/api/sessions/{session}/export"),
                ("POST", f"/api/sessions/{session}/cancel"),
                ("DELETE", f"/api/sessions/{session}"),
                ("GET", f"/api/runs/{run}"),
                ("POST", f"/api/runs/{run}/cancel"),
                ("POST", f"/api/runs/{run}/continue"),
            ):
                assert (await eve.request(method, path)).status_code == 404, path
            assert (await eve.get("/api/users")).status_code == 403
            assert (await eve.get("/metrics")).status_code == 403
        async with Client(server.ws_url, token=secrets["eve"]) as client:
            assert (await client.ask("subscribe", session=session))["code"] == "session_not_found"
        async with http(server.base_url, secrets["root"]) as root:
            assert (await root.get(f"/api/sessions/{session}")).status_code == 200
            listed = (await root.get("/api/tokens")).json()["items"]
            token = next(item["id"] for item in listed if item["name"] == "ada")
            assert "hash" not in listed[0]
            assert (await root.delete(f"/api/tokens/{token}")).status_code == 204
        assert (await ada.get("/api/me")).status_code == 401
    async with Client(server.ws_url, hello=False) as client:
        assert await client.wait_closed() == 4401
    log = server.log.read_text()
    assert not [secret for secret in secrets.values() if secret in log]


async def test_cookie_and_ticket(make_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server = make_server("--auth", "tokens")
    _, out = await asyncio.to_thread(
        _cli, capsys, "token", "create", "ada", "--expires", "1h", "--data-dir", str(server.data_dir)
    )
    secret = out.strip().splitlines()[-1]
    async with http(server.base_url) as browser:
        assert (await browser.post("/api/login", json={"token": "wrong"})).status_code == 401
        login = await browser.post("/api/login", json={"token": secret})
        cookie = login.headers["set-cookie"]
        assert login.status_code == 204
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert (await browser.get("/api/me")).json()["name"] == "ada"
        evil = await browser.post("/api/sessions", headers={"Origin": "http://evil.example"})
        assert evil.status_code == 403
        ticket = (await browser.post("/api/tickets")).json()["ticket"]
    protocols = [websockets.Subprotocol("holdfast.v1"), websockets.Subprotocol(f"ticket.{ticket}")]
    for good in (True, False):  # A ticket is good once.
        async with websockets.connect(server.ws_url, subprotocols=protocols) as wire:
            assert wire.subprotocol == "holdfast.v1"
            if good:
                await wire.send('{"type":"hello","id":"1","protocol":"1.0"}')
                assert '"welcome"' in str(await wire.recv())
            else:
                with pytest.raises(websockets.ConnectionClosed):
                    await wire.recv()
                assert wire.close_code == 4401
    header = {"Cookie": f"holdfast_token={secret}"}
    for origin, code in ((server.base_url, None), ("http://evil.example", 4403), (None, 4403)):
        async with websockets.connect(
            server.ws_url,
            subprotocols=protocols[:1],
            additional_headers=header,
            origin=websockets.Origin(origin) if origin else None,
        ) as wire:
            if code is None:
                await wire.send('{"type":"hello","id":"1","protocol":"1.0"}')
                assert '"welcome"' in str(await wire.recv())
            else:
                with pytest.raises(websockets.ConnectionClosed):
                    await wire.recv()
                assert wire.close_code == code


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PATCH", "DELETE", "PUT"]),
    path=st.sampled_from([endpoint.path for endpoint in ENDPOINTS]),
    name=st.text(max_size=12).filter(lambda text: "/" not in text and text not in (".", "..")),
    body=st.binary(max_size=40) | st.sampled_from([b"{}", b'{"content":"x"}', b'{"title":null}', b"null", b"1e999"]),
)
def test_no_request_however_strange_is_a_500(
    shared: ServerProcess, method: str, path: str, name: str, body: bytes
) -> None:
    target = path.replace("{id}", quote(name.encode("utf-8", "replace")) or "x")
    with httpx2.Client(base_url=shared.base_url, trust_env=False) as client:
        answer = client.request(method, target, content=body)
    assert answer.status_code < 500
