"""Jobs over HTTP: what is refused and how, whose they are, and their output by offset and as it comes."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.test_http import conforms
from tests.support.client import http
from tests.support.jobs import cancel, ended, job_of, limit, new_tag, output_of, queue_of, said, submit, when
from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]
LONG = "a" * 200_000


async def refused(api: httpx2.AsyncClient, body: Any, status: int = 400) -> list[str]:
    """The fields that are told to be wrong; nothing is submitted."""
    before = (await api.get("/api/jobs")).json()
    answer = await api.post("/api/jobs", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await api.get("/api/jobs")).json() == before
    return [fault["pointer"] for fault in answer.json().get("errors", [])]


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            ({}, ["/command"]),
            ({"command": ""}, ["/command"]),
            ({"command": " \n"}, ["/command"]),
            ({"command": []}, ["/command"]),
            ({"command": [""]}, ["/command/0"]),
            ({"command": 7}, ["/command"]),
            ({"command": ["echo", 7]}, ["/command[1]", "/command/1"]),
            ({"command": ["no-such-program", "x"]}, ["/command/0"]),
            ({"command": ["/etc/passwd"]}, ["/command/0"]),
            ({"command": ["/usr/bin"]}, ["/command/0"]),
            ({"command": ["./mine"]}, ["/command/0"]),
            ({"command": ["echo", "\x00"]}, ["/command/1"]),
            ({"command": LONG}, ["/command"]),
            ({"command": ["echo", LONG]}, ["/command/1"]),
            ({"command": "true", "cwd": "/etc"}, ["/cwd"]),
            ({"command": "true", "cwd": "../x"}, ["/cwd"]),
            ({"command": "true", "cwd": "a/../../x"}, ["/cwd"]),
            ({"command": "true", "cwd": ""}, ["/cwd"]),
            ({"command": "true", "cwd": "/work"}, ["/cwd"]),
            ({"command": "true", "env": {"A=B": "x"}}, ["/env/A=B"]),
            ({"command": "true", "env": {"": "x"}}, ["/env/"]),
            ({"command": "true", "env": {"HOLDFAST_PROCESS": "x"}}, ["/env/HOLDFAST_PROCESS"]),
            ({"command": "true", "env": {"A": 1}}, ["/env"]),
            ({"command": "true", "queue": "nope"}, ["/queue"]),
            ({"command": "true", "queue": "not a name"}, ["/queue"]),
            ({"command": "true", "priority": 1001}, ["/priority"]),
            ({"command": "true", "priority": 1.5}, ["/priority"]),
            ({"command": "true", "timeout": 0}, ["/timeout"]),
            ({"command": "true", "timeout": -1}, ["/timeout"]),
            ({"command": "true", "timeout": 86401}, ["/timeout"]),
            ({"command": "true", "idle_timeout": 0}, ["/idle_timeout"]),
            ({"command": "true", "retries": -1}, ["/retries"]),
            ({"command": "true", "retries": 101}, ["/retries"]),
            ({"command": "true", "memory_mb": 1}, ["/memory_mb"]),
            ({"command": "true", "memory_mb": 1_000_000}, ["/memory_mb"]),
            ({"command": "true", "run_at": "tomorrow"}, ["/run_at"]),
            ({"command": "true", "run_at": "2026-01-01T00:00:00"}, ["/run_at"]),
            ({"command": "true", "run_at": "0001-01-01T00:00:00+14:00"}, ["/run_at"]),
            ({"command": "true", "run_at": "1969-12-31T23:59:59Z"}, ["/run_at"]),
            ({"command": "true", "run_at": "9999-12-31T23:59:59-14:00"}, ["/run_at"]),
            ({"command": "true", "on_restart": "what"}, ["/on_restart"]),
            ({"command": "true", "sandbox": "maybe"}, ["/sandbox"]),
            ({"command": "true", "metadata": []}, ["/metadata"]),
            ({"command": "true", "metadata": {"a": "x" * 70_000}}, ["/metadata"]),
            ({"command": "true", "name": ""}, ["/name"]),
            ({"command": "true", "unknown": 1}, ["/unknown"]),
            ({"command": "", "priority": "high", "what": 1}, ["/what", "/priority"]),
        ],
    )
    async def test_a_body_with_a_fault_names_the_field(
        self, api: httpx2.AsyncClient, body: Any, fields: list[str]
    ) -> None:
        found = await refused(api, body)
        assert found, "at least one field is named"
        assert set(found) <= set(fields)

    @pytest.mark.parametrize("run_at", ["9999-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "2026-01-01T00:00:00.5+05:30"])
    async def test_any_time_of_the_calendar_can_be_kept(self, api: httpx2.AsyncClient, run_at: str) -> None:
        job = await submit(api, "true", run_at=run_at)
        assert (await api.get("/api/jobs/queue")).status_code == 200
        if run_at.startswith("9999"):
            assert (await cancel(api, job)).status_code == 200
        assert (await ended(api, job))["status"] == ("cancelled" if run_at.startswith("9999") else "completed")

    async def test_no_json_is_told_so(self, api: httpx2.AsyncClient) -> None:
        for content in (b"", b"{", b"[]", b"null", b"\xff", b'{"command": NaN}', b"[" * 10_000):
            assert (await api.post("/api/jobs", content=content)).status_code == 400

    @pytest.mark.parametrize("many", [0, -1, 10_001, 1.5, "2", None])
    async def test_a_limit_out_of_range(self, api: httpx2.AsyncClient, many: Any) -> None:
        answer = await api.patch("/api/queues/default", json={"max_running": many})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == "/max_running"
        assert (await queue_of(api))["max_running"] == 1

    @pytest.mark.parametrize(
        ("path", "field"),
        [
            ("/api/jobs/queue?queue=nope", "/queue"),
            ("/api/jobs/queue?queue=not%20a%20name", "/queue"),
            ("/api/jobs?status=done", "/status"),
            ("/api/jobs?limit=0", "/limit"),
            ("/api/jobs?cursor=nonsense", "/cursor"),
            ("/api/jobs?name=%00", "/name"),
        ],
    )
    async def test_a_query_with_a_fault_names_it(self, api: httpx2.AsyncClient, path: str, field: str) -> None:
        answer = await api.get(path)
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == field

    async def test_an_unknown_job_is_not_found_in_its_shape(self, api: httpx2.AsyncClient) -> None:
        for path in ("/api/jobs/x", "/api/jobs/x/output"):
            answer = await api.get(path)
            assert answer.status_code == 404
            told = answer.json()
            assert (told["success"], told["job_id"], told["message"]) == (False, "x", "Job not found")
            conforms(told, "Problem")

    @settings(max_examples=60)
    @given(
        body=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["command", "env", "cwd", "queue", "run_at", "metadata", "timeout", "x"]), inner
                )
            ),
            max_leaves=8,
        )
    )
    def test_no_body_is_a_fault_of_ours(self, shared: ServerProcess, body: Any) -> None:
        with httpx2.Client(base_url=shared.base_url, trust_env=False) as client:
            answer = client.post("/api/jobs", content=json.dumps(body))
            assert answer.status_code in (201, 400), answer.text
            if answer.status_code == 201:
                client.post(f"/api/jobs/{answer.json()['job_id']}/cancel")


class TestAnswers:
    async def test_jobs_and_queues_are_as_the_document_says(self, api: httpx2.AsyncClient) -> None:
        body = {"name": "n", "command": ["echo", "x"], "env": {"SECRET": "s3cret"}, "metadata": {"a": [1]}}
        answer = await api.post("/api/jobs", json=body)
        assert answer.status_code == 201
        job = answer.json()["job_id"]
        assert answer.headers["location"] == f"/api/jobs/{job}"
        found = await ended(api, job)
        conforms(found, "Job")
        assert found["metadata"] == {"a": [1]}
        assert "s3cret" not in json.dumps(found), "variables may be secrets: they are not told"
        conforms((await api.get("/api/jobs")).json(), "JobList")
        conforms((await api.get("/api/queues")).json(), "QueueList")
        conforms(await queue_of(api), "JobQueue")
        conforms((await cancel(api, job)).json(), "JobCancelled")

    async def test_lists_page_and_filter(self, api: httpx2.AsyncClient) -> None:
        await limit(api, "pages", 4)
        made = [await submit(api, "true", queue="pages", name=f"j{n % 2}") for n in range(5)]
        for job in made:
            await ended(api, job)
        seen: list[str] = []
        cursor = None
        while True:
            query = {"queue": "pages", "limit": "2", **({"cursor": cursor} if cursor else {})}
            page = (await api.get("/api/jobs", params=query)).json()
            seen += [job["job_id"] for job in page["items"]]
            if (cursor := page["next"]) is None:
                break
        assert seen == made[::-1], "the newest first, each once"
        named = (await api.get("/api/jobs", params={"queue": "pages", "name": "j1"})).json()["items"]
        assert [job["job_id"] for job in named] == [made[3], made[1]]
        none = (await api.get("/api/jobs", params={"queue": "pages", "status": "failed"})).json()["items"]
        assert none == []

    async def test_places_are_exchanged_over_http(self, api: httpx2.AsyncClient) -> None:
        await limit(api, "swaps", 1)
        blocker = await submit(api, ["sleep", new_tag()], queue="swaps")
        await when(api, blocker, "running")
        a, b = [await submit(api, "true", queue="swaps") for _ in range(2)]
        swap = {"a": a, "b": b, "version_a": 1, "version_b": 1}
        answer = await api.post("/api/queue/swap", json=swap)
        assert [job["job_id"] for job in answer.json()["jobs"]] == [blocker, b, a]
        again = await api.post("/api/queue/swap", json=swap)
        assert again.status_code == 409
        assert again.json()["current"]["queued"] == 2
        wrong = await api.post("/api/queue/swap", json={**swap, "b": blocker, "version_a": 2})
        assert wrong.status_code == 409, "it has started"
        answer = await api.post("/api/queues/swaps/cancel")
        conforms(answer.json(), "QueueCancelled")
        assert answer.json() == {"queue": "swaps", "removed": 2, "stopping": 1}
        await ended(api, blocker)

    async def test_a_queue_that_stops_within_its_grace_is_waited_for_and_one_that_does_not_is_accepted(
        self, make_server: MakeServer, tmp_path: Path
    ) -> None:
        """A frozen process takes no signal: the answer comes all the same, and says that it is not done."""
        freezer = Path("/sys/fs/cgroup/freezer")
        try:
            cold = freezer / f"holdfast-jobs-{tmp_path.name}"
            cold.mkdir()
        except OSError:
            pytest.skip("no freezer: nothing here withstands SIGKILL")
        server = make_server("--kill-grace-s", "0.2")
        try:
            async with http(server.base_url) as api:
                tag = new_tag()
                job = await submit(api, f"echo ready; sleep {tag}")
                await said(api, job, b"ready")
                found = subprocess.run(["pgrep", "-f", f"^sleep {tag}"], capture_output=True, text=True, check=True)
                for pid in found.stdout.split():
                    (cold / "cgroup.procs").write_text(pid)
                (cold / "freezer.state").write_text("FROZEN")
                answer = await cancel(api, job)
                assert answer.status_code == 202
                assert answer.json()["message"] == "Cancellation requested"
                async with asyncio.timeout(20):
                    while (await job_of(api, job))["kill_failures"] == 0:
                        await asyncio.sleep(0.05)
                assert (await job_of(api, job))["status"] == "running"
                (cold / "freezer.state").write_text("THAWED")
                assert (await ended(api, job))["status"] == "cancelled"
        finally:
            (cold / "freezer.state").write_text("THAWED")
            async with asyncio.timeout(10):
                while (cold / "cgroup.procs").read_text():
                    await asyncio.sleep(0.05)
            cold.rmdir()


class TestOutput:
    async def test_it_is_read_by_offset(self, api: httpx2.AsyncClient) -> None:
        job = await submit(api, r"printf 'abc\xff\xfe\x00def'")
        await ended(api, job)
        whole = b"abc\xff\xfe\x00def"
        for offset in (0, 3, len(whole)):
            answer = await api.get(f"/api/jobs/{job}/output", params={"offset": offset})
            assert answer.content == whole[offset:]
            assert answer.headers["x-next-offset"] == str(len(whole))
            assert answer.headers["content-type"] == "application/octet-stream"
        assert await output_of(api, job, -4) == whole[-4:]
        assert await output_of(api, job, -400) == whole
        for wrong in (str(len(whole) + 1), "x", "", "1.5", "--1", "9" * 30):
            answer = await api.get(f"/api/jobs/{job}/output", params={"offset": wrong})
            assert answer.status_code == 400
            assert answer.json()["errors"][0]["pointer"] == "/offset"

    async def test_it_is_followed_and_resumed_at_every_offset(self, api: httpx2.AsyncClient) -> None:
        job = await submit(api, "for n in 1 2 3; do echo täglich $n; echo grün >&2; sleep 0.1; done")
        whole = await followed(api, job)
        assert whole[-1] == ("end", {"status": "completed", "exit_code": 0, "signal": None, "error": None})
        pieces = [event for event in whole if event[0] != "end"]
        text = "".join(data["text"] for _, data in pieces)
        assert sorted(text.split("\n")) == sorted(["täglich 1", "täglich 2", "täglich 3", "grün", "grün", "grün", ""])
        said_all = await output_of(api, job)
        assert int(pieces[-1][0]) == len(said_all)
        for offset, _ in pieces:
            rest = await followed(api, job, int(offset))
            assert "".join(data["text"] for name, data in rest if name != "end") == said_all[int(offset) :].decode()
        resumed = await followed(api, job, 0, last=pieces[1][0])
        assert "".join(d["text"] for n, d in resumed if n != "end") == said_all[int(pieces[1][0]) :].decode()

    async def test_following_one_that_waits_goes_on_to_its_end(self, api: httpx2.AsyncClient) -> None:
        await limit(api, "follow", 1)
        blocker = await submit(api, ["sleep", new_tag()], queue="follow")
        job = await submit(api, "echo at last", queue="follow")
        following = asyncio.create_task(followed(api, job))
        await asyncio.sleep(0.3)
        await cancel(api, blocker)
        events = await asyncio.wait_for(following, 20)
        assert [data.get("text") for _, data in events][:-1] == ["at last\n"]
        gone = await submit(api, "true", queue="follow", run_at="2099-01-01T00:00:00Z")
        following = asyncio.create_task(followed(api, gone))
        await cancel(api, gone)
        assert (await asyncio.wait_for(following, 20))[-1][1]["status"] == "cancelled"

    async def test_one_that_goes_away_costs_nothing(self, api: httpx2.AsyncClient, shared: ServerProcess) -> None:
        job = await submit(api, f"while :; do echo x; sleep 0.05; done # {new_tag()}")
        for _ in range(5):
            async with api.stream("GET", f"/api/jobs/{job}/output?follow=true") as answer:
                async for _line in answer.aiter_lines():
                    break
        await cancel(api, job)
        assert "Traceback" not in shared.log.read_text()


async def followed(
    api: httpx2.AsyncClient, job: str, offset: int = 0, last: str | None = None
) -> list[tuple[str, Any]]:
    """The events of an output, with their ids, until the end."""
    headers = {"Last-Event-ID": last} if last else {}
    query = {"follow": "true", "offset": offset}
    events: list[tuple[str, Any]] = []
    name, number = "message", ""
    async with api.stream("GET", f"/api/jobs/{job}/output", params=query, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                number = value
            elif field == "event":
                name = value
            elif field == "data":
                events.append((name if name != "message" else number, json.loads(value)))
    return events


class TestWhose:
    @pytest.fixture
    async def two(self, make_server: MakeServer, tmp_path: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, ...]]:
        server = make_server("--auth", "tokens")
        tokens = [_token(server, "ada"), _token(server, "grace"), _token(server, "root", "--admin")]
        clients = [http(server.base_url, token) for token in tokens]
        yield tuple(clients)
        for client in clients:
            await client.aclose()

    async def test_jobs_are_ones_own(self, two: tuple[httpx2.AsyncClient, ...]) -> None:
        ada, grace, root = two
        job = await submit(ada, ["sleep", new_tag()])
        await when(ada, job, "running")
        assert (await grace.get(f"/api/jobs/{job}")).status_code == 404
        assert (await grace.get(f"/api/jobs/{job}/output")).status_code == 404
        assert (await cancel(grace, job)).json()["message"] == "Job not found"
        assert (await grace.get("/api/jobs")).json()["items"] == []
        assert (await queue_of(grace))["running"] == 0
        assert [one["job_id"] for one in (await root.get("/api/jobs")).json()["items"]] == [job], "an admin sees all"
        theirs = await submit(grace, "true")
        assert (await ended(grace, theirs))["status"] == "completed", "queues are one's own too"
        assert (await cancel(root, job)).status_code == 200
        found = await job_of(ada, job)
        assert found["cancelled_by"] == (await root.get("/api/me")).json()["id"]

    async def test_no_sandbox_is_for_admins(self, two: tuple[httpx2.AsyncClient, ...]) -> None:
        ada, _, root = two
        answer = await ada.post("/api/jobs", json={"command": "id -u", "sandbox": "off"})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert answer.json()["errors"][0]["pointer"] == "/sandbox"
        job = await submit(root, "id -u; pwd", sandbox="off")
        assert (await ended(root, job))["status"] == "completed"
        assert b"/jobs/" in await output_of(root, job)

    async def test_without_credentials_nothing_is_told(self, make_server: MakeServer) -> None:
        server = make_server("--auth", "tokens")
        async with http(server.base_url) as nobody:
            for method, path in (("GET", "/api/jobs"), ("POST", "/api/jobs"), ("GET", "/api/queues")):
                assert (await nobody.request(method, path)).status_code == 401


def _token(server: ServerProcess, name: str, *flags: str) -> str:
    command = [sys.executable, "-m", "holdfast.cli", "token", "create", name, *flags]
    command += ["--data-dir", str(server.data_dir)]
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[-1]


async def test_without_a_sandbox_jobs_are_refused_unless_that_is_allowed(make_server: MakeServer) -> None:
    server = make_server("--sandbox", "off")
    async with http(server.base_url) as api:
        answer = await api.post("/api/jobs", json={"command": "true"})
        assert (answer.status_code, answer.json()["code"]) == (503, "sandbox_unavailable")
        job = await submit(api, "true", sandbox="off")
        assert (await ended(api, job))["status"] == "completed", "local users are admins"
    server.stop()
    server = make_server("--sandbox", "off", "--unsandboxed", "allow")
    async with http(server.base_url) as api:
        assert (await ended(api, await submit(api, "true")))["status"] == "completed"


async def test_metrics_tell_of_jobs(api: httpx2.AsyncClient) -> None:
    await ended(api, await submit(api, "true"))
    job = await submit(api, ["sleep", new_tag()])
    await when(api, job, "running")
    await cancel(api, job)
    told = (await api.get("/metrics")).text
    for line in (
        'holdfast_tasks_waiting{executor="process"} ',
        'holdfast_tasks_active{executor="process"} 0.0',
        'holdfast_tasks_claimed_total{executor="process"} ',
        'holdfast_tasks_ended_total{executor="process",status="completed"} ',
        'holdfast_tasks_ended_total{executor="process",status="cancelled"} ',
        'holdfast_task_wait_seconds_bucket{executor="process",le="+Inf"} ',
        'holdfast_task_run_seconds_count{executor="process"} ',
        'holdfast_kills_total{how="terminated"} ',
        "holdfast_leases_lost_total 0.0",
    ):
        assert line in told, line
