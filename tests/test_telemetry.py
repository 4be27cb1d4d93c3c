"""What the service tells of itself: log lines that say what they are about, and traces from frame to process."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.client import Client, http
from tests.support.jobs import ended, output_of, submit
from tests.support.provider import Provider
from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]


class Collector:
    """A real HTTP server that takes traces as OTLP; `spans` is what came."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                collector.spans += [
                    span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def env_for(collector: Collector) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}


def above(spans: list[Any], span: Any) -> list[str]:
    """The names of a span and of those above it."""
    by_id = {one.span_id: one for one in spans}
    names = [span.name]
    while span.parent_span_id in by_id:
        span = by_id[span.parent_span_id]
        names.append(span.name)
    return names


async def test_a_trace_goes_from_the_frame_to_the_process(make_server: MakeServer, collector: Collector) -> None:
    server = make_server(env=env_for(collector))
    async with http(server.base_url) as api:
        session = (await api.post("/api/sessions")).json()["id"]
        async with Client(server.ws_url) as client:
            await client.follow(session)
            sent = await client.ask("send", session=session, content="run echo hello")
            await client.wait_end(session, sent["result"]["run"])
        job = await submit(api, "true")
        await ended(api, job)
    server.stop()
    paths = [above(collector.spans, span) for span in collector.spans]
    assert ["commit", "frame send"] in paths
    assert ["run", "commit", "frame send"] in paths, "a run goes on from the commit that asked for it"
    assert ["commit", "run", "commit", "frame send"] in paths
    assert ["process", "run", "commit", "frame send"] in paths
    assert ["process", "job", "commit", "POST /api/jobs"] in paths
    assert ["commit"] not in paths, "what loops do when there is nothing to do is not told"
    run = next(span for span in collector.spans if span.name == "run")
    told = {attribute.key: attribute.value.string_value for attribute in run.attributes}
    assert told["holdfast.session"] == session
    assert told["holdfast.task"] == sent["result"]["run"]


async def test_calls_of_a_model_are_in_the_trace_without_what_is_said(
    make_server: MakeServer, collector: Collector
) -> None:
    with Provider() as provider:
        env = {**env_for(collector), "OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "k"}
        server = make_server("--agent", "openai-chat:m", env=env)
        async with http(server.base_url) as api:
            session = (await api.post("/api/sessions")).json()["id"]
            async with Client(server.ws_url) as client:
                await client.follow(session)
                sent = await client.ask("send", session=session, content="the secret of the sea")
                await client.wait_end(session, sent["result"]["run"])
        server.stop()
    calls = [span for span in collector.spans if "chat" in span.name]
    assert calls, [span.name for span in collector.spans]
    assert above(collector.spans, calls[0])[-3:] == ["run", "commit", "frame send"]
    assert "the secret of the sea" not in "".join(map(str, collector.spans))


async def test_without_an_exporter_nothing_is_traced_and_nothing_fails(make_server: MakeServer) -> None:
    server = make_server(env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    async with http(server.base_url) as api:
        await ended(api, await submit(api, "true"))


async def test_each_log_line_says_what_it_is_about(make_server: MakeServer) -> None:
    server = make_server("--log-format", "json")
    async with http(server.base_url) as api:
        me = (await api.get("/api/me")).json()["id"]
        job = await submit(api, "echo said")
        await ended(api, job)
        session = (await api.post("/api/sessions")).json()["id"]
        run = (await api.post(f"/api/sessions/{session}/messages", json={"content": "run true"})).json()["run"]
        async with Client(server.ws_url) as client:
            await client.follow(session)
            await client.wait_end(session, run)
        assert await output_of(api, job) == b"said\n"
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    started = [line for line in lines if "started" in line["message"]]
    assert len(started) >= 2
    about = [{name: line.get(name) for name in ("task", "session", "user")} for line in started]
    assert {"task": job, "session": None, "user": me} in about
    assert {"task": run, "session": session, "user": me} in about
