"""The WebSocket, exactly as the reference says, against a real server."""

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import websockets
from holdfast.api import documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import TERMINAL, Client, deltas, http
from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server for the tests that only talk."""
    arguments = ("--commands-per-second", "2000", "--sockets", "200", "--send-timeout-s", "1.5")
    server = ServerProcess(*arguments, data_dir=tmp_path_factory.mktemp("data")).start()
    yield server
    server.end()


async def new_session(server: ServerProcess) -> str:
    async with http(server.base_url) as client:
        return str((await client.post("/api/sessions")).json()["id"])


def valid(frame: dict[str, Any]) -> None:
    """Hold a frame of the server to the AsyncAPI document."""
    document = documents.asyncapi()
    name = f"Server{frame['type'].title().replace('_', '')}"
    schema = {**document["components"]["schemas"][name], "components": document["components"]}
    jsonschema.validate(frame, schema)


async def test_three_frames_are_enough_for_a_chat(shared: ServerProcess) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as client:
        await client.follow(session)
        sent = await client.ask("send", session=session, content="fast 5")
        await client.wait_end(session, sent["result"]["run"])
        assert len(deltas(client.events[session]).split()) == 5
        assert [e["seq"] for e in client.events[session]] == list(range(1, len(client.events[session]) + 1))


async def test_the_three_frames_may_go_out_at_once(shared: ServerProcess) -> None:
    """However quick the agent and however busy the server: what is sent after the subscription comes as events."""

    async def chat() -> list[int]:
        session = await new_session(shared)
        async with Client(shared.ws_url, hello=False) as client:
            await client.send("hello", protocol="1.0")
            await client.send("subscribe", session=session)
            await client.send("send", session=session, content="fast 3")
            await client.wait_event(session, lambda e: e["event"]["type"] in TERMINAL)
            return [e["seq"] for e in client.events[session]]

    for seen in await asyncio.gather(*(chat() for _ in range(60))):
        assert seen == list(range(1, len(seen) + 1))


async def test_every_frame_of_the_server_is_as_documented(shared: ServerProcess) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as client:
        await client.follow(session)
        sent = await client.ask("send", session=session, content="think a\nslow 20")
        await client.ask("send", session=session, content="fast 1")
        await client.ask("ping")
        await client.ask("dance")
        await client.follow(session)
        await client.wait_end(session, sent["result"]["run"])
        kinds = {frame["type"] for frame in client.frames}
        assert {"welcome", "ack", "snapshot", "events", "caught_up", "error", "pong"} <= kinds
        for frame in client.frames:
            valid(frame)


async def test_resume_at_every_seq_gives_each_event_exactly_once(shared: ServerProcess) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as client:
        await client.follow(session)
        sent = await client.ask("send", session=session, content="think one two\nslow 5\nthink three\nfast 9")
        await client.wait_end(session, sent["result"]["run"])
        whole = client.events[session]
        epoch = client.frames[1]["at"]["epoch"]
    for cut in range(len(whole) + 1):
        async with Client(shared.ws_url) as client:
            answer = await client.ask("subscribe", session=session, cursor={"epoch": epoch, "seq": cut})
            assert answer["result"] == {"mode": "replay", "head": len(whole)}
            await client.wait_for(lambda frame: frame["type"] == "caught_up")
            assert client.events.get(session, []) == whole[cut:]


async def test_resume_in_mid_stream_at_random_moments(shared: ServerProcess) -> None:
    session = await new_session(shared)
    dice = random.Random(7)
    got: list[Any] = []
    epoch = None
    async with http(shared.base_url) as api:
        run = (await api.post(f"/api/sessions/{session}/messages", json={"content": "slow 40"})).json()["run"]
    while not got or got[-1]["event"]["type"] != "RUN_FINISHED":
        async with Client(shared.ws_url) as client:
            cursor = {"epoch": epoch, "seq": len(got)} if epoch else None
            if cursor is None:
                epoch = (await client.ask("subscribe", session=session))["at"]["epoch"]
                continue
            await client.ask("subscribe", session=session, cursor=cursor)
            stop = len(got) + dice.randrange(1, 6)
            await client.wait_event(session, lambda e, stop=stop: e["seq"] >= stop or e["event"]["type"] in TERMINAL)
            got += client.events[session]
    assert [e["seq"] for e in got] == list(range(1, len(got) + 1))
    assert len(deltas(got, run).split()) == 40


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (None, "initial"),
        ({"epoch": "nonsense", "seq": 0}, "epoch_changed"),
        ({"epoch": "", "seq": 999_999}, "cursor_ahead"),
    ],
)
async def test_a_snapshot_replaces_a_cursor_that_cannot_be_followed(
    shared: ServerProcess, cursor: dict[str, Any] | None, reason: str
) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as client:
        epoch = (await client.follow(session))["at"]["epoch"]
        sent = await client.ask("send", session=session, content="fast 3")
        await client.wait_end(session, sent["result"]["run"])
        if cursor is not None and cursor["epoch"] == "":
            cursor = {**cursor, "epoch": epoch}
        await client.follow(session, cursor)
        frame = [f for f in client.frames if f["type"] == "snapshot"][-1]
        assert frame["reason"] == reason
        assert [m["role"] for m in frame["messages"]] == ["user", "assistant"]


async def test_a_snapshot_in_mid_stream_has_the_content_so_far(shared: ServerProcess) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as one, Client(shared.ws_url) as two:
        await one.follow(session)
        sent = await one.ask("send", session=session, content="slow 30")
        run = sent["result"]["run"]
        await one.wait_event(session, lambda e: e["seq"] >= 12)
        await two.follow(session)
        snapshot = await two.wait_for(lambda frame: frame["type"] == "snapshot")
        assert snapshot["activeRun"]["run"] == run
        assert snapshot["open"]["messages"] == [snapshot["messages"][-1]["id"]]
        await two.wait_end(session, run)
        assert two.events[session][0]["seq"] == snapshot["seq"] + 1
        assert snapshot["messages"][-1]["content"] + deltas(two.events[session]) == deltas(one.events[session])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nonsense", 4400),
        ("[]", 4400),
        (b"\x00\x01", 4400),
        ('{"type":"ping","id":"1"}', 4400),
        ('{"type":"hello","id":"1","protocol":"9.0"}', 4406),
    ],
)
async def test_a_bad_first_frame_closes(shared: ServerProcess, text: str | bytes, code: int) -> None:
    async with Client(shared.ws_url, hello=False) as client:
        await client.wire.send(text)
        assert await client.wait_closed() == code


async def test_no_hello_in_time_closes(make_server: MakeServer) -> None:
    server = make_server("--hello-timeout-s", "0.2")
    async with Client(server.ws_url, hello=False) as client:
        assert await client.wait_closed() == 4408


async def test_only_unknown_subprotocols_are_400(shared: ServerProcess) -> None:
    with pytest.raises(websockets.InvalidStatus) as caught:
        await websockets.connect(shared.ws_url, subprotocols=[websockets.Subprotocol("chat.v7")])
    assert caught.value.response.status_code == 400


async def test_a_foreign_origin_or_host_is_closed_with_4403(shared: ServerProcess) -> None:
    async with Client(shared.ws_url, hello=False, origin="http://evil.example") as client:
        assert await client.wait_closed() == 4403


@pytest.mark.parametrize(
    ("frame", "code", "field"),
    [
        ({"type": "send", "session": "x", "content": "hi"}, "session_not_found", None),
        ({"type": "send", "content": "hi"}, "invalid_frame", "session"),
        ({"type": "send", "session": "SESSION", "content": 7}, "invalid_frame", "content"),
        ({"type": "send", "session": "SESSION", "content": "a\u0000b"}, "invalid_frame", "content"),
        ({"type": "send", "session": "SESSION", "content": "  "}, "invalid_frame", "content"),
        ({"type": "send", "session": "SESSION", "content": "x", "more": 1}, "invalid_frame", "more"),
        ({"type": "cancel", "session": "SESSION", "run": "nonsense"}, "run_not_found", None),
        ({"type": "subscribe", "session": "SESSION", "cursor": {"epoch": "e"}}, "invalid_frame", "cursor.seq"),
        ({"type": "queue", "session": "SESSION", "op": "remove", "task": "t", "version": 1}, "conflict", None),
        ({"type": "approve", "session": "SESSION", "run": "r", "decisions": []}, "invalid_frame", "decisions"),
        ({"type": "hello", "protocol": "1.0"}, "invalid_frame", "type"),
        ({"type": "dance"}, "unknown_type", "type"),
    ],
)
async def test_an_invalid_frame_is_told_and_changes_nothing(
    shared: ServerProcess, frame: dict[str, Any], code: str, field: str | None
) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as client:
        given = {key: session if value == "SESSION" else value for key, value in frame.items()}
        answer = await client.ask(given.pop("type"), **given)
        assert (answer["type"], answer["code"], answer.get("field")) == ("error", code, field)
        assert (await client.ask("subscribe", session=session))["result"]["head"] == 0


async def test_too_large_a_frame_is_1009(shared: ServerProcess) -> None:
    async with Client(shared.ws_url) as client:
        await client.wire.send("x" * 300_000)
        assert await client.wait_closed() == 1009


async def test_limits_are_told_and_kept(make_server: MakeServer) -> None:
    server = make_server("--commands-per-second", "5", "--subscriptions", "2", "--sockets", "2")
    made = [await new_session(server) for _ in range(3)]
    async with Client(server.ws_url) as client:
        limits = client.frames[0]["limits"]
        assert (limits["commandsPerSecond"], limits["subscriptions"], limits["sockets"]) == (5, 2, 2)
        answers = [await client.ask("subscribe", session=session) for session in made]
        assert [answer.get("code") for answer in answers] == [None, None, "overloaded"]
        for _ in range(20):
            await client.send("ping")
        refused = await client.wait_for(lambda frame: frame.get("code") == "rate_limited")
        assert refused["retryAfterMs"] > 0
        async with Client(server.ws_url), Client(server.ws_url, hello=False) as third:
            assert await third.wait_closed() == 4429
        with contextlib.suppress(websockets.ConnectionClosed):
            for _ in range(400):
                await client.send("ping")
        assert await client.wait_closed() == 4429


async def test_a_client_that_stops_reading_is_dropped_and_disturbs_nobody(shared: ServerProcess) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as reader:
        stalled = await websockets.connect(
            shared.ws_url, subprotocols=[websockets.Subprotocol("holdfast.v1")], max_queue=1, compression=None
        )
        stalled.transport.pause_reading()
        await stalled.send('{"type":"hello","id":"1","protocol":"1.0"}')
        await stalled.send(json.dumps({"type": "subscribe", "id": "2", "session": session}))
        await reader.follow(session)
        sent = await reader.ask("send", session=session, content="fast 200000")
        await reader.wait_end(session, sent["result"]["run"], 60)
        async with http(shared.base_url) as api:
            async with asyncio.timeout(20):
                while "holdfast_sockets 1.0" not in (await api.get("/metrics")).text:
                    await asyncio.sleep(0.05)
        stalled.transport.abort()


async def test_a_slow_reader_gets_everything_in_order(shared: ServerProcess) -> None:
    session = await new_session(shared)
    async with Client(shared.ws_url) as client:
        await client.follow(session)
        sent = await client.ask("send", session=session, content="fast 30000")
        for _ in range(20):
            client.wire.transport.pause_reading()
            await asyncio.sleep(0.02)
            client.wire.transport.resume_reading()
            await asyncio.sleep(0.005)
        await client.wait_end(session, sent["result"]["run"])
        assert [e["seq"] for e in client.events[session]] == list(range(1, len(client.events[session]) + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = ["session", "content", "cursor", "op", "task", "version", "decisions", "run", "key", "ifBusy", "position"]
types = st.sampled_from(["hello", "subscribe", "unsubscribe", "send", "cancel", "approve", "queue", "ping"])
frames = st.fixed_dictionaries(
    {"type": types | st.text(max_size=8)}, optional={name: json_values | st.just("SESSION") for name in fields}
)


def test_no_frame_however_strange_hurts_the_server(shared: ServerProcess) -> None:
    async def talk(sent: list[dict[str, Any]]) -> None:
        session = await new_session(shared)
        async with Client(shared.ws_url) as client:
            for frame in sent:
                filled = {key: session if value == "SESSION" else value for key, value in frame.items()}
                answer = await client.ask(filled.pop("type"), **filled)
                assert answer.get("code") != "internal"

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
    @given(st.lists(frames, max_size=12))
    def fuzz(sent: list[dict[str, Any]]) -> None:
        asyncio.run(talk(sent))

    fuzz()
    assert "internal error" not in shared.log.read_text()
