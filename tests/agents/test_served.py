"""A real model behind a real server: `holdfast serve --agent openai:...`, told over the WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.client import Client, deltas, http
from tests.support.provider import Provider
from tests.support.server import ServerProcess

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
async def served(make_server: Callable[..., ServerProcess]) -> AsyncIterator[tuple[ServerProcess, Provider]]:
    with Provider() as provider:
        env = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": KEY}
        yield await asyncio.to_thread(lambda: make_server("--agent", "openai:test-model", env=env)), provider


async def new_session(server: ServerProcess) -> str:
    async with http(server.base_url) as client:
        return str((await client.post("/api/sessions")).json()["id"])


async def send(client: Client, session: str, script: dict[str, Any]) -> str:
    answer = await client.ask("send", session=session, content=json.dumps(script))
    return str(answer["result"]["run"])


async def last_message(server: ServerProcess, session: str) -> dict[str, Any]:
    async with http(server.base_url) as client:
        return (await client.get(f"/api/sessions/{session}/messages")).json()["items"][-1]


async def test_an_answer_is_kept_with_its_usage(served: tuple[ServerProcess, Provider]) -> None:
    server, _ = served
    session = await new_session(server)
    async with Client(server.ws_url) as client:
        await client.follow(session)
        run = await send(client, session, {"think": ["hm"], "say": ["Hello ", "world"]})
        await client.wait_end(session, run)
        assert deltas(client.events[session]) == "Hello world"
    message = await last_message(server, session)
    assert message["content"] == "Hello world"
    assert message["metadata"]["usage"] == {"input_tokens": 7, "output_tokens": 11}
    assert message["metadata"]["model"] == "test-model"


async def test_a_fault_in_mid_stream_keeps_what_came(served: tuple[ServerProcess, Provider]) -> None:
    server, _ = served
    session = await new_session(server)
    async with Client(server.ws_url) as client:
        await client.follow(session)
        run = await send(client, session, {"say": ["one ", "two "], "error_event": True, "message": f"bad {KEY}"})
        await client.wait_end(session, run)
    message = await last_message(server, session)
    assert message["content"] == "one two "
    assert message["metadata"]["has_error"] is True
    assert message["metadata"]["error"]["code"] == "provider_error"
    assert KEY not in server.log.read_text()


async def test_cancel_closes_the_providers_stream(served: tuple[ServerProcess, Provider]) -> None:
    server, provider = served
    session = await new_session(server)
    async with Client(server.ws_url) as client:
        await client.follow(session)
        run = await send(client, session, {"say": ["one "], "hang": "stream"})
        await client.wait_event(session, lambda event: event["event"]["type"] == "TEXT_MESSAGE_CONTENT")
        await client.ask("cancel", session=session)
        assert await asyncio.to_thread(provider.closed.wait, 1)
        await client.wait_end(session, run)
    message = await last_message(server, session)
    assert message["content"] == "one "
    assert message["metadata"]["cancelled"] is True
