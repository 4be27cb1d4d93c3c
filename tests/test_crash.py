"""Processes that die, freeze and come back, on both databases: nothing seen is lost, nothing stays open."""

import asyncio
import contextlib
import json
import os
import random
import shlex
import signal
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from holdfast.store import schema
from holdfast.store.database import Database
from holdfast.store.tables import actions, events, messages, processes, sessions, tasks
from sqlalchemy import select

from tests.support.client import Client, deltas, http
from tests.support.following import assert_whole
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]
SHORT_LEASE = ("--lease-s", "1.5", "--heartbeat-s", "0.4")
FAST_POLL_S = 0.02


async def migrated(url: str) -> str:
    database = Database(url)
    await schema.upgrade(database)
    await database.close()
    return url


async def journal_of(url: str, session: str) -> list[dict[str, Any]]:
    database = Database(url)
    async with database.read() as conn:
        rows = await conn.execute(
            select(events.c.seq, events.c.task_id, events.c.data)
            .where(events.c.session_id == session)
            .order_by(events.c.seq)
        )
        found = [{"seq": row[0], "run": row[1], "event": json.loads(row[2])} for row in rows]
    await database.close()
    return found


async def nothing_is_open(url: str) -> None:
    database = Database(url)
    async with database.read() as conn:
        held = (await conn.execute(select(tasks.c.id).where(tasks.c.node_id.is_not(None)))).all()
        streaming = (await conn.execute(select(messages.c.id).where(messages.c.streaming == 1))).all()
        acting = (await conn.execute(select(actions.c.id).where(actions.c.status == "pending"))).all()
        living = (await conn.execute(select(processes.c.mark))).all()
        shown = (await conn.execute(select(sessions.c.id).where(sessions.c.process_pid.is_not(None)))).all()
    await database.close()
    assert (held, streaming, acting, living, shown) == ([], [], [], [], [])


async def new_session(server: ServerProcess) -> str:
    async with http(server.base_url) as client:
        return str((await client.post("/api/sessions")).json()["id"])


def alive(tag: str) -> list[int]:
    """The processes with this name, zombies apart."""
    found: list[int] = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if tag in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


async def all_gone(tag: str, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while alive(tag):
            await asyncio.sleep(0.05)


HOSTILE = {
    "obeys": "sleep 300",
    "ignores": "trap '' TERM INT HUP; while :; do sleep 0.1; done",
    "daemon": "setsid bash -c 'trap \"\" TERM; while :; do sleep 0.1; done' $TAG >/dev/null 2>&1 & sleep 300",
    "orphan": "(setsid bash -c '(exec -a $TAG sleep 300 & exec -a $TAG sleep 300) &' &) ; sleep 300",
    "forks": "f() { bash -c 'sleep 300' $TAG & }; trap f TERM; while :; do f; sleep 0.05; done",
    "stopped": "kill -STOP $$; sleep 300",
    "silent": "exec >&- 2>&- <&-; sleep 300",
    "bomb": "b() { b | b & }; b; sleep 300",
    "memory": "while :; do tail /dev/zero; done",
    "disk": "while :; do head -c 20000000 /dev/zero > full; done",
    "endless": "yes no end",
    "binary": "cat /dev/urandom",
}


def is_begun(record: dict[str, Any]) -> bool:
    """Whether a command has said that it has begun; the message that asks for it says the word too."""
    event = record["event"]
    return event.get("name") == "action.output" and "begun" in str(event["value"])


async def killed_in(server: ServerProcess, kind: str) -> tuple[str, str, list[dict[str, Any]]]:
    """`kill -9` in the middle of a hostile command: the session, the command's tag, what a client had seen."""
    tag = f"hostile-{kind}-{os.getpid()}-{server.port}"
    session = await new_session(server)
    script = f"TAG={tag}; export TAG; echo begun; {HOSTILE[kind]}"
    async with Client(server.ws_url) as client:
        await client.follow(session)
        await client.ask("send", session=session, content=f"run exec -a {tag} bash -c {shlex.quote(script)} {tag}")
        await client.wait_event(session, is_begun)
        await asyncio.sleep(0.3)  # Bombs and hogs are to get going.
        assert alive(tag)
        server.kill9()
        await client.wait_closed()
        return session, tag, client.events[session]


@pytest.mark.parametrize("kind", HOSTILE)
async def test_kill_9_in_the_middle_of_a_command_leaves_nothing_but_the_record(
    make_server: MakeServer, database_url: str, kind: str
) -> None:
    await migrated(database_url)
    server = make_server("--database-url", database_url, "--tool-memory-mb", "64", "--tool-processes", "32")
    session, tag, seen = await killed_in(server, kind)
    await all_gone(tag)
    server.start()
    async with http(server.base_url) as client:
        async with asyncio.timeout(20):
            while (await client.get(f"/api/sessions/{session}")).json()["ui_status"] == "InProgress":
                await asyncio.sleep(FAST_POLL_S)
        found = (await client.get(f"/api/sessions/{session}/messages")).json()["items"]
    action = found[-1]["actions"][0]
    assert (action["type"], action["status"], action["outcome"]) == ("bash", "error", "interrupted")
    assert "not known" in action["output"]
    assert action["live"] if kind in ("endless", "binary") else action["live"].startswith("begun")
    journal = await journal_of(database_url, session)
    assert [e["event"] for e in seen] == [e["event"] for e in journal[: len(seen)]]
    assert_whole(journal)
    assert journal[-1]["event"]["type"] == "RUN_ERROR"
    assert server.stop() == 0
    await nothing_is_open(database_url)


@pytest.mark.parametrize("kind", ["ignores", "daemon", "orphan"])
async def test_what_a_weaker_sandbox_lets_live_is_ended_by_the_next_start(make_server: MakeServer, kind: str) -> None:
    """Without a process namespace the kernel ends only the first process with the service."""
    server = make_server("--sandbox", "landlock", "--kill-grace-s", "0.5")
    _, tag, _ = await killed_in(server, kind)
    server.start()
    await all_gone(tag)
    assert server.stop() == 0
    await nothing_is_open(f"sqlite:///{server.data_dir}/holdfast.db")


@pytest.mark.timeout(400)
async def test_kill_9_at_random_moments_of_actions_and_approvals(make_server: MakeServer, database_url: str) -> None:
    """What was done is done once, whatever moment it dies in: each command leaves a line in a file."""
    await migrated(database_url)
    dice = random.Random(20261121)
    server = make_server("--database-url", database_url, "--commands-per-second", "1000", start=False)
    told: dict[str, list[str]] = {}
    for _ in range(12):
        server.start()
        session = await new_session(server)
        lines = [
            f"{dice.choice(['run', 'run', 'ask'])} echo {n} >> done; sleep 0.0{dice.randrange(9)}" for n in range(6)
        ]
        told[session] = lines
        async with Client(server.ws_url) as client:
            await client.follow(session)
            await client.send("send", session=session, content="\n".join(lines))
            try:
                async with asyncio.timeout(dice.random() * 0.6):
                    await approve_all(client, session)
            except TimeoutError:
                pass
            server.kill9()
    server.start()
    for session in told:
        async with Client(server.ws_url) as client:
            await client.follow(session)
            await client.ask("cancel", session=session)
        async with http(server.base_url) as client:
            async with asyncio.timeout(20):
                while (await client.get(f"/api/sessions/{session}")).json()["ui_status"] == "InProgress":
                    await asyncio.sleep(FAST_POLL_S)
            answer = await client.get(f"/api/sessions/{session}/files/content", params={"path": "done"})
            found = (await client.get(f"/api/sessions/{session}/messages")).json()["items"]
        done = answer.text.split() if answer.status_code == 200 else []
        assert len(done) == len(set(done)), "each at most once"
        for message in found:
            for action in message.get("actions", []):
                number = action["input"]["command"].split()[1]
                if action["outcome"] == "success":
                    assert number in done
                if number in done:
                    assert action["outcome"] in ("success", "interrupted", "cancelled")
        assert_whole(await journal_of(database_url, session))
    assert server.stop() == 0
    await nothing_is_open(database_url)


async def approve_all(client: Client, session: str) -> None:
    """Say yes to whatever is asked, for ever."""
    answered: set[str] = set()
    while True:
        for event in list(client.events.get(session, [])):
            asked = (event["event"].get("outcome") or {}).get("interrupts", [])
            for one in asked:
                if one["id"] not in answered:
                    answered.add(one["id"])
                    decision = {"interruptId": one["id"], "approved": True}
                    await client.send("approve", session=session, run=event["run"], decisions=[decision])
        await asyncio.sleep(0.005)


@pytest.mark.timeout(400)
async def test_kill_9_at_random_moments_loses_nothing_that_was_seen(make_server: MakeServer, database_url: str) -> None:
    """25 kills a database: a client writes down all it sees, and finds it again after each."""
    await migrated(database_url)
    dice = random.Random(20261120)
    server = make_server("--database-url", database_url, "--commands-per-second", "1000", start=False)
    seen: dict[str, list[dict[str, Any]]] = {}
    for _ in range(25):
        server.start()
        session = await new_session(server)
        command = dice.choice(["slow 200", "fast 5000", "think about the sea\nslow 100", "fast 100\nslow 100"])
        async with Client(server.ws_url) as client:
            await client.follow(session)
            await client.send("send", session=session, content=command)
            await client.send("send", session=session, content="slow 3")
            wanted = dice.randrange(1, 40)
            await client.wait_event(session, lambda e, wanted=wanted: e["seq"] >= wanted)
            server.kill9()
            await client.wait_closed()
            seen[session] = client.events[session]
    server.start()
    for session, known in seen.items():
        stored = await journal_of(database_url, session)
        assert [e["event"] for e in known] == [e["event"] for e in stored[: len(known)]]
    async with http(server.base_url) as client:
        for session in seen:
            while (await client.get(f"/api/sessions/{session}")).json()["ui_status"] == "InProgress":
                await asyncio.sleep(FAST_POLL_S)
            found = (await client.get(f"/api/sessions/{session}/messages")).json()["items"]
            journal = await journal_of(database_url, session)
            assert_whole(journal)
            for message in found:
                if message["role"] == "assistant":
                    assert message["content"] == deltas(journal, message["run"])
    assert server.stop() == 0
    await nothing_is_open(database_url)


async def test_a_run_whose_process_died_is_ended_by_another_within_the_lease(
    make_server: MakeServer, database_url: str
) -> None:
    await migrated(database_url)
    one = make_server("--database-url", database_url, *SHORT_LEASE)
    two = make_server("--database-url", database_url, *SHORT_LEASE, "--role", "web")
    session = await new_session(one)
    async with Client(two.ws_url) as client:
        await client.follow(session)
        answer = await client.ask("send", session=session, content="slow 500")
        run = answer["result"]["run"]
        await client.wait_event(session, lambda e: e["event"]["type"] == "TEXT_MESSAGE_CONTENT")
        one.kill9()
        end = await client.wait_end(session, run, 15)
        assert end["event"]["code"] == "interrupted"
        assert_whole(client.events[session])
        async with http(two.base_url) as api:
            reply = (await api.get(f"/api/sessions/{session}/messages")).json()["items"][-1]
            assert reply["metadata"]["interrupted"] is True
            assert reply["content"] == deltas(client.events[session], run)
            again = await api.post(f"/api/runs/{run}/continue")
            assert again.status_code == 202
    await nothing_is_open(database_url)


def freeze(server: ServerProcess, url: str) -> None:
    """SIGSTOP, but not in the middle of a commit of SQLite: that holds the lock of all (see the decisions)."""
    while True:
        server.signal(signal.SIGSTOP)
        if not url.startswith("sqlite"):
            return
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0.5)) as conn:
            try:
                conn.execute("BEGIN IMMEDIATE")
                conn.rollback()
            except sqlite3.OperationalError:
                server.signal(signal.SIGCONT)
                time.sleep(0.05)
            else:
                return


async def test_a_zombie_writes_nothing(make_server: MakeServer, database_url: str) -> None:
    """Frozen until its lease is gone, then woken: what it still wanted to say has no place."""
    await migrated(database_url)
    zombie = make_server("--database-url", database_url, *SHORT_LEASE)
    session = await new_session(zombie)
    healthy = make_server("--database-url", database_url, *SHORT_LEASE, "--role", "web")
    async with Client(healthy.ws_url) as client:
        await client.follow(session)
        answer = await client.ask("send", session=session, content="slow 2000")
        run = answer["result"]["run"]
        await client.wait_event(session, lambda e: e["event"]["type"] == "TEXT_MESSAGE_CONTENT")
        await asyncio.to_thread(freeze, zombie, database_url)
        end = await client.wait_end(session, run, 30)
        assert end["event"]["code"] == "interrupted"
        before = await journal_of(database_url, session)
        zombie.signal(signal.SIGCONT)
        # It notices, drops the run, and serves again under a new identity.
        async with http(zombie.base_url) as api:
            sent = (await api.post(f"/api/sessions/{session}/messages", json={"content": "fast 3"})).json()
        await client.wait_end(session, sent["run"], 30)
    after = await journal_of(database_url, session)
    assert after[: len(before)] == before
    assert not [e for e in after[len(before) :] if e["run"] == run]
    assert_whole(after)


@pytest.mark.parametrize("operation", ["watch", "cancel", "queue"])
async def test_two_processes_work_as_one(make_server: MakeServer, database_url: str, operation: str) -> None:
    await migrated(database_url)
    server = make_server("--database-url", database_url, "--processes", "2")
    session = await new_session(server)
    clients = [Client(server.ws_url) for _ in range(6)]
    for client in clients:
        await client.__aenter__()
        await client.follow(session)
    try:
        content = "slow 10" if operation == "watch" else "slow 1000"
        answer = await clients[0].ask("send", session=session, content=content)
        run = later = answer["result"]["run"]
        if operation == "queue":
            later = (await clients[1].ask("send", session=session, content="fast 2"))["result"]["run"]
        for client in clients:
            await client.wait_event(session, lambda e: e["event"]["type"] == "TEXT_MESSAGE_CONTENT")
        if operation != "watch":
            await clients[3].ask("cancel", session=session, run=run)
        ends = [await client.wait_end(session, run) for client in clients]
        assert len({json.dumps(end) for end in ends}) == 1
        if operation == "queue":
            for client in clients:
                await client.wait_end(session, later)
        shortest = min(len(client.events[session]) for client in clients)
        first = clients[0].events[session][:shortest]
        assert all(client.events[session][:shortest] == first for client in clients)
        assert_whole(await journal_of(database_url, session))
    finally:
        for client in clients:
            await client.__aexit__(None, None, None)
    assert server.stop() == 0


async def test_sigterm_hands_the_run_over_and_the_next_start_goes_on(
    make_server: MakeServer, database_url: str
) -> None:
    await migrated(database_url)
    server = make_server("--database-url", database_url, "--drain-s", "0")
    session = await new_session(server)
    async with Client(server.ws_url) as client:
        await client.follow(session)
        run = (await client.ask("send", session=session, content="slow 60"))["result"]["run"]
        await client.wait_event(session, lambda e: e["event"]["type"] == "TEXT_MESSAGE_CONTENT")
        server.signal(signal.SIGTERM)
        await client.wait_for(lambda frame: frame["type"] == "goaway")
        assert await client.wait_closed() == 1012
        known = client.events[session]
    assert server.stop() == 0
    server.start()
    async with Client(server.ws_url) as client:
        cursor = {"epoch": await epoch_of(database_url), "seq": known[-1]["seq"]}
        await client.ask("subscribe", session=session, cursor=cursor)
        end = await client.wait_end(session, run)
        assert end["event"]["type"] == "RUN_FINISHED", server.log.read_text()
        text = deltas(known) + deltas(client.events[session])
    assert len(text.split()) == 60
    assert_whole(await journal_of(database_url, session))


async def epoch_of(url: str) -> str:
    database = Database(url)
    await database.load_epoch()
    await database.close()
    return database.epoch


async def test_the_database_is_gone_for_a_while_in_mid_stream(
    make_server: MakeServer, postgres: PostgresServer
) -> None:
    """The run waits, and goes on when the database is back; the service recovers by itself."""
    url = await migrated(await postgres.create_database())
    server = make_server("--database-url", url)
    session = await new_session(server)
    async with Client(server.ws_url) as client:
        await client.follow(session)
        run = (await client.ask("send", session=session, content="slow 40"))["result"]["run"]
        await client.wait_event(session, lambda e: e["event"]["type"] == "TEXT_MESSAGE_CONTENT")
        await postgres.cut(url)
        async with http(server.base_url) as api:
            while (await api.get("/health")).status_code != 503:
                await asyncio.sleep(FAST_POLL_S)
            refused = await api.get("/api/sessions")
            assert refused.status_code == 503
            assert refused.json()["code"] == "unavailable"
        await postgres.mend(url)
        end = await client.wait_end(session, run)
        assert end["event"]["type"] == "RUN_FINISHED"
        async with http(server.base_url) as api:
            assert (await api.get("/health")).status_code == 200
            reply = (await api.get(f"/api/sessions/{session}/messages")).json()["items"][-1]
    assert len(reply["content"].split()) == 40
    assert server.stop() == 0
    await postgres.drop_database(url)


async def test_the_database_stays_away_and_the_run_ends_with_what_it_had(
    make_server: MakeServer, postgres: PostgresServer
) -> None:
    url = await migrated(await postgres.create_database())
    server = make_server("--database-url", url, "--db-patience-s", "0.3")
    session = await new_session(server)
    async with Client(server.ws_url) as client:
        await client.follow(session)
        run = (await client.ask("send", session=session, content="slow 2000"))["result"]["run"]
        await client.wait_event(session, lambda e: e["event"]["type"] == "TEXT_MESSAGE_CONTENT")
        await postgres.cut(url)
        while "the database is gone" not in server.log.read_text():
            await asyncio.sleep(FAST_POLL_S)
        await postgres.mend(url)
        end = await client.wait_end(session, run)
        assert end["event"]["code"] == "interrupted"
    assert_whole(await journal_of(url, session))
    await nothing_is_open(url)
    assert server.stop() == 0
    await postgres.drop_database(url)
