"""Cancellation of sessions as its document tells it, scenario by scenario, with real processes and no pid made up."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from holdfast.domain.tasks import CancellationStatus
from holdfast.store.database import Database
from holdfast.store.tables import processes, sessions, tasks
from sqlalchemy import select

from tests.support.client import http
from tests.support.jobs import alive, new_tag, until
from tests.support.server import ServerProcess

Session = dict[str, Any]
MakeServer = Callable[..., ServerProcess]
ABOUT = {
    "title": "Mend the parser",
    "repository": "acme/parser",
    "branch": "agent/mend",
    "target_branch": "main",
    "sandbox": {"network": False},
}


@pytest.fixture
async def api(brief_server: ServerProcess) -> AsyncIterator[httpx2.AsyncClient]:
    async with http(brief_server.base_url) as client:
        yield client


@pytest.fixture
async def database(brief_server: ServerProcess) -> AsyncIterator[Database]:
    """The same database, looked at from outside."""
    arguments = brief_server.arguments
    url = f"sqlite:///{Path(brief_server.data_dir) / 'holdfast.db'}"
    if "--database-url" in arguments:
        url = arguments[arguments.index("--database-url") + 1]
    found = Database(url)
    yield found
    await found.close()


async def create(api: httpx2.AsyncClient, **about: Any) -> str:
    return str((await api.post("/api/sessions", json={**ABOUT, **about})).json()["id"])


async def session_of(api: httpx2.AsyncClient, session: str) -> Session:
    return (await api.get(f"/api/sessions/{session}")).json()


async def working(api: httpx2.AsyncClient, session: str, command: str) -> Session:
    """Have the agent run a command; the session as soon as its process is known."""
    await api.post(f"/api/sessions/{session}/messages", json={"content": f"run {command}"})
    async with asyncio.timeout(20):
        while (found := await session_of(api, session))["process_pid"] is None:
            await asyncio.sleep(0.02)
    return found


async def settled(api: httpx2.AsyncClient, session: str, status: str = "Cancelled") -> Session:
    async with asyncio.timeout(20):
        while (found := await session_of(api, session))["cancellation_status"] != status:
            await asyncio.sleep(0.02)
    return found


STUBBORN = "trap '' TERM; echo ready; while :; do sleep TAG & wait; done"


async def test_cancel_session_marks_as_requested(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    before = await working(api, session, STUBBORN.replace("TAG", tag := new_tag()))
    await until(lambda: alive(tag))
    me = (await api.get("/api/me")).json()["id"]
    answer = (await api.post(f"/api/sessions/{session}/cancel")).json()
    asked = answer["session"]
    assert answer["effect"] == "requested"
    assert asked["cancellation_status"] == "Requested"
    assert asked["cancelled_at"] is not None
    assert asked["cancelled_by"] == me
    assert asked["process_pid"] == before["process_pid"]
    await settled(api, session)


async def test_cancel_session_without_process_pid(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    asked = (await api.post(f"/api/sessions/{session}/cancel")).json()["session"]
    assert asked["process_pid"] is None
    assert asked["cancellation_status"] == "Cancelled", "nothing runs: it is done at once"
    assert asked["cancelled_at"] is not None
    await api.post(f"/api/sessions/{session}/messages", json={"content": "hello"})
    after = await session_of(api, session)
    assert (after["cancellation_status"], after["cancelled_at"], after["cancelled_by"]) == (None, None, None)


async def test_cancel_of_a_run_that_only_talks_has_no_process(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    await api.post(f"/api/sessions/{session}/messages", json={"content": "slow 1000"})
    asked = (await api.post(f"/api/sessions/{session}/cancel")).json()["session"]
    assert asked["process_pid"] is None
    assert asked["cancellation_status"] in ("Requested", "Cancelled")
    await settled(api, session)


async def test_cancellation_enforcer_query(api: httpx2.AsyncClient, database: Database) -> None:
    """A request that nobody was told of, as another node writes it, is found with its process."""
    session = await create(api)
    await working(api, session, f"sleep {(tag := new_tag())}")
    await until(lambda: alive(tag))
    async with database.read() as conn:
        found = await conn.execute(select(processes.c.pid, processes.c.task_id).where(processes.c.pid.is_not(None)))
        known = {row[1]: row[0] for row in found}
        run = await conn.scalar(select(tasks.c.id).where(tasks.c.session_id == session, tasks.c.node_id.is_not(None)))
    assert run in known, "a requested cancel and a process are both in the store"
    asked = {"cancellation_status": "Requested"}
    await database.transact(lambda tx: tx.conn.execute(tasks.update().where(tasks.c.id == run).values(**asked)))
    await until(lambda: not alive(tag), 5)


async def test_cancellation_enforcer_marks_as_cancelled(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    before = await working(api, session, STUBBORN.replace("TAG", tag := new_tag()))
    await until(lambda: alive(tag))
    await api.post(f"/api/sessions/{session}/cancel")
    after = await settled(api, session)
    assert after["process_pid"] is None
    assert after["ui_status"] == "NeedsReview"
    assert not alive(tag)
    assert not Path(f"/proc/{before['process_pid']}").exists()


async def test_cancel_already_cancelled_session(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    await working(api, session, f"sleep {new_tag()}")
    await api.post(f"/api/sessions/{session}/cancel")
    once = await settled(api, session)
    for _ in range(2):
        again = await api.post(f"/api/sessions/{session}/cancel")
        assert again.status_code == 200
        assert again.json()["effect"] == "nothing_to_cancel"
        assert again.json()["session"] == once


async def test_multiple_sessions_cancellation(api: httpx2.AsyncClient, database: Database) -> None:
    one, two, three = [await create(api) for _ in range(3)]
    tags = [new_tag(), new_tag()]
    for session, tag in zip((one, two), tags, strict=True):
        await working(api, session, f"sleep {tag}")
    await until(lambda: alive(tags[0]) and alive(tags[1]))
    async with database.read() as conn:
        held = select(tasks.c.session_id).join(processes, processes.c.task_id == tasks.c.id)
        with_process = set(await conn.scalars(held))
    assert {one, two} <= with_process
    assert three not in with_process, "without a process there is nothing to be enforced"
    await asyncio.gather(*(api.post(f"/api/sessions/{session}/cancel") for session in (one, two, three)))
    for session in (one, two, three):
        assert (await settled(api, session))["process_pid"] is None
    assert not alive(tags[0])
    assert not alive(tags[1])


async def test_cancellation_state_transitions(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    initial = await working(api, session, STUBBORN.replace("TAG", tag := new_tag()))
    await until(lambda: alive(tag))
    assert (initial["cancellation_status"], initial["ui_status"]) == (None, "InProgress")
    requested = (await api.post(f"/api/sessions/{session}/cancel")).json()["session"]
    assert (requested["cancellation_status"], requested["ui_status"]) == ("Requested", "InProgress")
    assert requested["cancelled_at"] is not None
    cancelled = await settled(api, session)
    assert (cancelled["ui_status"], cancelled["process_pid"]) == ("NeedsReview", None)
    assert cancelled["cancelled_at"] == requested["cancelled_at"]


async def test_cancellation_preserves_metadata(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    await working(api, session, f"sleep {new_tag()}")
    await api.post(f"/api/sessions/{session}/cancel")
    after = await settled(api, session)
    assert {name: after[name] for name in ABOUT} == ABOUT


async def test_query_sessions_by_user_and_cancellation_status(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server("--auth", "tokens", data_dir=tmp_path)
    tokens = [_token(server, name) for name in ("ada", "grace")]
    found: list[set[str]] = []
    made: list[str] = []
    for token in tokens:
        async with http(server.base_url, token) as client:
            cancelled, other = await create(client), await create(client)
            await client.post(f"/api/sessions/{cancelled}/cancel")
            made += [cancelled, other]
    for token in tokens:
        async with http(server.base_url, token) as client:
            answer = await client.get("/api/sessions", params={"cancellation_status": "Cancelled"})
            found.append({one["id"] for one in answer.json()["items"]})
    assert found == [{made[0]}, {made[2]}]


def _token(server: ServerProcess, name: str) -> str:
    command = [sys.executable, "-m", "holdfast.cli", "token", "create", name, "--data-dir", str(server.data_dir)]
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[-1]


def test_cancellation_status_enum_values() -> None:
    assert CancellationStatus.REQUESTED != CancellationStatus.CANCELLED
    assert [str(status) for status in CancellationStatus] == ["Requested", "Cancelled"]


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.skipif(not os.access(FREEZER / "tasks", os.W_OK), reason="no freezer: nothing here withstands SIGKILL")
async def test_a_kill_that_fails_is_retried_and_shown_and_never_reported_as_done(
    api: httpx2.AsyncClient, brief_server: ServerProcess
) -> None:
    """A frozen process takes no signal, not even SIGKILL, until it is thawed."""
    session = await create(api)
    tag = new_tag()
    await working(api, session, f"sleep {tag}")
    await until(lambda: alive(tag))
    cold = FREEZER / f"holdfast-test-{os.getpid()}"
    cold.mkdir()
    try:
        for pid in alive(tag):
            (cold / "cgroup.procs").write_text(str(pid))
        (cold / "freezer.state").write_text("FROZEN")
        await api.post(f"/api/sessions/{session}/cancel")
        async with asyncio.timeout(20):
            while (found := await session_of(api, session))["kill_failures"] < 2:
                await asyncio.sleep(0.05)
        assert found["cancellation_status"] == "Requested", "not reported as done"
        assert found["process_pid"] is not None
        metrics = (await api.get("/metrics")).text
        assert re.search(r"^holdfast_kill_failures_total [1-9]", metrics, re.MULTILINE)
    finally:
        (cold / "freezer.state").write_text("THAWED")
        await until(lambda: not (cold / "cgroup.procs").read_text())
        cold.rmdir()
    after = await settled(api, session)
    assert (after["process_pid"], after["kill_failures"]) == (None, 0)
    assert not alive(tag)
    assert "could not be killed yet" in brief_server.log.read_text()


async def test_a_stopped_process_is_cancelled(api: httpx2.AsyncClient) -> None:
    session = await create(api)
    tag = new_tag()
    await working(api, session, f"sleep {tag}")
    await until(lambda: alive(tag))
    for pid in alive(tag):
        os.kill(pid, signal.SIGSTOP)
    await api.post(f"/api/sessions/{session}/cancel")
    await settled(api, session)
    assert not alive(tag)


async def test_a_process_that_starts_after_the_request_does_no_work(
    api: httpx2.AsyncClient, database: Database
) -> None:
    """Sent and cancelled at once, again and again: whichever comes first, nothing lives and the session settles."""
    for _ in range(10):
        session = await create(api)
        tag = new_tag()
        sending = asyncio.create_task(
            api.post(f"/api/sessions/{session}/messages", json={"content": f"run sleep {tag}"})
        )
        await sending
        await api.post(f"/api/sessions/{session}/cancel")
        after = await settled(api, session)
        assert after["process_pid"] is None
        assert not alive(tag)
        async with database.read() as conn:
            row = (await conn.execute(select(sessions.c.kill_failures).where(sessions.c.id == session))).one()
        assert row[0] == 0
