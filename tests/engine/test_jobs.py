"""Jobs on an engine in this process: their order, limits, times, tries, output, and what a restart does to them."""

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from holdfast.agents.demo import demo
from holdfast.clock import new_id
from holdfast.domain.errors import Conflict, InvalidRequest, JobNotFound
from holdfast.domain.users import User
from holdfast.engine.engine import Engine
from holdfast.engine.jobs import Jobs
from holdfast.store import gates, jobs, nodes, users
from holdfast.store.database import Database
from holdfast.store.jobs import JobSpec
from holdfast.store.tables import nodes as nodes_table
from holdfast.store.tables import processes, tasks
from sqlalchemy import select, update

from tests.conftest import MakeEngine
from tests.support.jobs import alive, new_tag, until

GRACE = {"kill_grace_s": 0.5}
Body = dict[str, Any]


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    return await make_engine(demo, **GRACE)


async def submit(engine: Engine, user: User, command: Any, **more: Any) -> str:
    return str((await engine.submit_job(user, JobSpec(name="j", command=command, **more)))["job_id"])


async def shown(engine: Engine, job: str) -> Body:
    async with engine.database.read() as conn:
        return await jobs.show(conn, await jobs.row_of(conn, job), await engine.database.now(conn))


async def when(engine: Engine, job: str, *statuses: str, within_s: float = 30) -> Body:
    async with asyncio.timeout(within_s):
        while (found := await shown(engine, job))["status"] not in statuses:
            await asyncio.sleep(0.01)
    return found


async def ended(engine: Engine, job: str) -> Body:
    return await when(engine, job, "completed", "failed", "cancelled")


async def limit(engine: Engine, user: User, many: int, queue: str = "default") -> None:
    gate = jobs.gate_of(user.id, queue)
    await engine.database.transact(lambda tx: gates.set_capacity(tx, gate, many, user.id))
    engine.job_worker.wake()


def output(engine: Engine, job: str) -> bytes:
    return engine.jobs.log_of(job).read(0, 1 << 20)


async def said(engine: Engine, job: str, words: bytes) -> None:
    await until(lambda: words in output(engine, job))


class TestEnds:
    async def test_how_a_command_ends_is_how_its_job_ends(self, engine: Engine, user: User) -> None:
        await limit(engine, user, 4)
        made = {
            "completed": await submit(engine, user, ["true"]),
            "failed 3": await submit(engine, user, "exit 3"),
            "failed 127": await submit(engine, user, "no-such-program"),
        }
        found = {name: await ended(engine, job) for name, job in made.items()}
        assert [(one["status"], one["exit_code"], one["error"]) for one in found.values()] == [
            ("completed", 0, None),
            ("failed", 3, "Exited with code 3"),
            ("failed", 127, "Exited with code 127"),
        ]
        for one in found.values():
            assert one["cpu_s"] > 0
            assert one["max_rss_bytes"] > 0
            assert one["created_at"] <= one["started_at"] <= one["completed_at"]

    @pytest.mark.parametrize("restart", ["end", "keep"])
    async def test_what_a_job_used_is_told(self, engine: Engine, user: User, restart: Any) -> None:
        command = "python3 -c 'a = bytearray(60_000_000); b = sum(range(3_000_000))'"
        job = await submit(engine, user, command, on_restart=restart)
        found = await ended(engine, job)
        assert found["status"] == "completed", output(engine, job)
        assert 60_000_000 < found["max_rss_bytes"] < 200_000_000
        assert 0.02 < found["cpu_s"] < 5

    async def test_a_command_that_cannot_be_started_fails_in_words(self, engine: Engine, user: User) -> None:
        job = await submit(engine, user, ["true"], cwd="/nowhere/at/all")
        found = await ended(engine, job)
        assert found["status"] == "failed"
        assert found["error"].startswith("It could not be started: ")

    async def test_the_environment_and_the_folder_are_those_asked_for(self, engine: Engine, user: User) -> None:
        command = 'echo "$GREETING|${HOLDFAST_DATA_DIR-none}|$PWD"; touch here'
        job = await submit(engine, user, command, env={"GREETING": "a b\n'$c"}, cwd="sub/folder")
        assert (await ended(engine, job))["status"] == "completed"
        assert output(engine, job) == b"a b\n'$c|none|/work/sub/folder\n"
        assert (engine.jobs.log_of(job).folder / "work/sub/folder/here").exists()

    async def test_a_folder_of_the_host_is_worked_in_as_its_owner(
        self, make_engine: MakeEngine, user: User, tmp_path: Path
    ) -> None:
        project = tmp_path / "project"
        project.mkdir()
        os.chown(project, 12345, 12345)
        (project / "mine").write_text("mine")
        os.chown(project / "mine", 12345, 12345)
        engine = await make_engine(demo, job_folders=str(project))
        job = await submit(engine, user, "echo more >> mine && id -u && pwd", cwd=str(project))
        found = await ended(engine, job)
        assert (found["status"], output(engine, job)) == ("completed", b"12345\n/work\n")
        assert (project / "mine").read_text() == "minemore\n"
        assert project.stat().st_uid == 12345

    async def test_a_folder_that_became_a_link_since_is_not_followed(
        self, make_engine: MakeEngine, user: User, tmp_path: Path
    ) -> None:
        (tmp_path / "project/sub").mkdir(parents=True)
        (tmp_path / "outside").mkdir()
        engine = await make_engine(demo, job_folders=str(tmp_path / "project"))
        job = await submit(engine, user, "touch x", cwd=str(tmp_path / "project/sub"))
        assert (await ended(engine, job))["status"] == "completed"
        (tmp_path / "project/sub/x").unlink()
        (tmp_path / "project/sub").rmdir()
        (tmp_path / "project/sub").symlink_to(tmp_path / "outside")
        job = await submit(engine, user, "touch x", cwd=str(tmp_path / "project/sub"))
        found = await ended(engine, job)
        assert found["status"] == "failed"
        assert "not a folder that jobs may work in" in found["error"]
        assert list((tmp_path / "outside").iterdir()) == []

    async def test_what_a_job_leaves_behind_is_swept(self, engine: Engine, user: User) -> None:
        tag = new_tag()
        job = await submit(engine, user, f"setsid sleep {tag} & (sleep {tag} &) ; echo done")
        assert (await ended(engine, job))["status"] == "completed"
        assert not alive(tag)

    async def test_one_that_closes_its_output_but_lives_is_waited_for_and_cancelled(
        self, engine: Engine, user: User
    ) -> None:
        tag = new_tag()
        job = await submit(engine, user, f"exec >&- 2>&-; sleep {tag}")
        await when(engine, job, "running")
        await until(lambda: alive(tag))
        await asyncio.sleep(0.5)
        assert (await shown(engine, job))["status"] == "running"
        await engine.cancel_job(user, job)
        assert not alive(tag)


class TestOutput:
    async def test_bytes_are_kept_as_they_came(self, engine: Engine, user: User) -> None:
        job = await submit(engine, user, r"printf 'a\xff\x00\xc3'; printf '\xa4b' >&2; printf 'c\n'")
        await ended(engine, job)
        kept = output(engine, job)
        assert sorted(kept) == sorted(b"a\xff\x00\xc3\xa4bc\n")
        log = engine.jobs.log_of(job)
        pieces = []
        offset = 0
        while (piece := log.say(offset, ended=True)) is not None:
            offset = piece.next_offset
            pieces.append(piece)
        assert offset == len(kept), "all of it is told"
        assert "".join(piece.text for piece in pieces if piece.stream == "stderr") == "\ufffdb"

    async def test_both_streams_are_told_apart_in_order(self, engine: Engine, user: User) -> None:
        command = "for n in 1 2 3; do echo out$n; sleep 0.05; echo err$n >&2; sleep 0.05; done"
        job = await submit(engine, user, command)
        await ended(engine, job)
        log, offset, told = engine.jobs.log_of(job), 0, list[tuple[str, str]]()
        while (piece := log.say(offset, ended=True)) is not None:
            offset = piece.next_offset
            told.append((piece.stream, piece.text))
        assert told == [
            (stream, f"{word}{n}\n") for n in (1, 2, 3) for stream, word in (("stdout", "out"), ("stderr", "err"))
        ]

    async def test_a_large_output_does_not_pass_through_memory(self, make_engine: MakeEngine, user: User) -> None:
        engine = await make_engine(demo)
        process = psutil.Process()
        before = process.memory_info().rss
        job = await submit(engine, user, "head -c 200000000 /dev/zero")
        found = await when(engine, job, "completed", "failed", within_s=60)
        assert found["status"] == "completed"
        assert engine.jobs.log_of(job).size == 200_000_000
        assert process.memory_info().rss - before < 64 << 20

    @pytest.mark.parametrize("keep", [False, True])
    async def test_one_that_says_too_much_is_stopped_with_what_was_kept(
        self, make_engine: MakeEngine, user: User, keep: bool
    ) -> None:
        engine = await make_engine(demo, tool_output_mb=1)
        job = await submit(engine, user, "yes", on_restart="keep" if keep else "end")
        found = await ended(engine, job)
        assert found["status"] == "failed"
        assert "it said more than" in found["error"]
        assert engine.jobs.log_of(job).size == 1 << 20


class TestTimes:
    async def test_one_that_takes_too_long_is_stopped(self, engine: Engine, user: User) -> None:
        job = await submit(engine, user, f"sleep {(tag := new_tag())}", timeout_s=0.4)
        found = await ended(engine, job)
        assert (found["status"], found["error"]) == ("failed", "Timed out after 0.4 s")
        assert not alive(tag)

    @pytest.mark.parametrize("keep", [False, True])
    async def test_one_that_is_silent_for_too_long_is_stopped(self, engine: Engine, user: User, keep: bool) -> None:
        await limit(engine, user, 2)
        restart: Any = "keep" if keep else "end"
        talks = await submit(
            engine, user, "for n in 1 2 3 4; do echo $n; sleep 0.4; done", idle_timeout_s=1.0, on_restart=restart
        )
        silent = await submit(engine, user, f"echo first; sleep {new_tag()}", idle_timeout_s=1.0, on_restart=restart)
        found = await ended(engine, silent)
        assert (found["status"], found["error"]) == ("failed", "Timed out: it said nothing for 1 s")
        assert (await ended(engine, talks))["status"] == "completed"

    async def test_one_with_a_time_starts_then_and_not_before(self, engine: Engine, user: User) -> None:
        due = datetime.now(UTC) + timedelta(seconds=1.2)
        later = await submit(engine, user, ["true"], run_at=due)
        sooner = await submit(engine, user, ["true"])
        assert (await ended(engine, sooner))["status"] == "completed", "it holds nobody up"
        assert (await shown(engine, later))["status"] == "queued"
        found = await ended(engine, later)
        late = datetime.fromisoformat(found["started_at"]) - due
        assert timedelta() <= late < timedelta(seconds=1)


class TestTries:
    async def test_one_that_fails_is_tried_again_until_it_succeeds(self, engine: Engine, user: User) -> None:
        command = "echo try; test -e second && exit 0; test -e first && touch second; touch first; exit 1"
        job = await submit(engine, user, command, retries=5, retry_backoff_s=0.05)
        found = await ended(engine, job)
        assert (found["status"], found["failures"], found["attempt"]) == ("completed", 2, 3)
        assert output(engine, job) == b"try\ntry\ntry\n", "what earlier tries have said stays"
        assert found["error"] is None

    async def test_tries_come_to_an_end(self, engine: Engine, user: User) -> None:
        job = await submit(engine, user, "exit 4", retries=2, retry_backoff_s=0.01)
        found = await ended(engine, job)
        assert (found["status"], found["failures"], found["attempt"]) == ("failed", 3, 3)
        assert found["error"] == "Exited with code 4"

    async def test_one_that_waits_for_its_next_try_holds_no_place_and_can_be_cancelled(
        self, engine: Engine, user: User
    ) -> None:
        job = await submit(engine, user, "exit 4", retries=1, retry_backoff_s=1000.0)
        async with asyncio.timeout(20):
            while (await shown(engine, job))["failures"] == 0:
                await asyncio.sleep(0.01)
        assert (await shown(engine, job))["status"] == "queued"
        assert (await ended(engine, await submit(engine, user, "true")))["status"] == "completed"
        found, done = await engine.cancel_job(user, job)
        assert (found.previous, done) == ("queued", True)

    async def test_a_cancelled_one_is_not_tried_again(self, engine: Engine, user: User) -> None:
        job = await submit(engine, user, f"sleep {new_tag()}", retries=5)
        await when(engine, job, "running")
        await engine.cancel_job(user, job)
        assert (await shown(engine, job))["status"] == "cancelled"


class TestQueues:
    async def test_the_order_is_by_priority_then_age(self, make_engine: MakeEngine, user: User) -> None:
        engine = await make_engine(demo, role="web")
        made = [await submit(engine, user, ["true"], priority=priority) for priority in (0, 5, -5, 5, 0)]
        wanted = [made[place] for place in (1, 3, 0, 4, 2)]
        async with engine.database.read() as conn:
            now = await engine.database.now(conn)
            found = await jobs.queue_of(conn, user, "default", now)
        assert [one["job_id"] for one in found["jobs"]] == wanted
        assert [one["position"] for one in found["jobs"]] == [1, 2, 3, 4, 5]
        for job in made:
            assert (await shown(engine, job))["position"] == wanted.index(job) + 1
        node = nodes.NodeIdentity(new_id(), "h", "b", 1, "1")
        await engine.database.transact(lambda tx: nodes.register(tx, node, 30))
        taken = []
        for _ in made:
            found_ = await engine.database.transact(lambda tx: gates.take(tx, "process", node.id, limit=9))
            assert len(found_.tasks) == 1, "one at once"
            taken.append(found_.tasks[0]["id"])
            done = {"state": "Success", "node_id": None, "ended_at": now}
            ending = update(tasks).where(tasks.c.id == taken[-1]).values(**done)
            await engine.database.transact(lambda tx, ending=ending: tx.conn.execute(ending))
        assert taken == wanted, "and so they are taken"

    async def test_places_are_exchanged_with_their_priorities(self, make_engine: MakeEngine, user: User) -> None:
        engine = await make_engine(demo, role="web")
        a, b = [await submit(engine, user, ["true"], priority=priority) for priority in (5, 0)]
        await engine.database.transact(lambda tx: jobs.swap(tx, user, (a, 1), (b, 1)))
        found = [await shown(engine, job) for job in (a, b)]
        assert [(one["position"], one["priority"], one["version"]) for one in found] == [(2, 0, 2), (1, 5, 2)]
        with pytest.raises(Conflict):
            await engine.database.transact(lambda tx: jobs.swap(tx, user, (a, 1), (b, 2)))
        with pytest.raises(InvalidRequest):
            await engine.database.transact(lambda tx: jobs.swap(tx, user, (a, 2), (a, 2)))

    async def test_a_limit_that_is_raised_holds_at_once_and_one_that_is_lowered_kills_nobody(
        self, engine: Engine, user: User
    ) -> None:
        made = [await submit(engine, user, ["sleep", new_tag()]) for _ in range(4)]
        await when(engine, made[0], "running")
        await limit(engine, user, 3)
        for job in made[1:3]:
            await when(engine, job, "running", within_s=2)
        assert (await shown(engine, made[3]))["status"] == "queued"
        await limit(engine, user, 1)
        await engine.cancel_job(user, made[0])
        assert [(await shown(engine, job))["status"] for job in made[1:]] == ["running", "running", "queued"]
        for job in made[1:3]:
            await engine.cancel_job(user, job)
        await when(engine, made[3], "running", within_s=2)
        await engine.cancel_job(user, made[3])

    async def test_a_queue_that_is_full_holds_no_other_up(self, engine: Engine, user: User) -> None:
        await limit(engine, user, 1, "other")
        blocking = await submit(engine, user, ["sleep", new_tag()], priority=1000)
        for _ in range(40):
            await submit(engine, user, ["true"], priority=1000)
        starving = await submit(engine, user, ["true"], queue="other", priority=-1000)
        assert (await ended(engine, starving))["status"] == "completed"
        assert (await shown(engine, blocking))["status"] == "running"

    async def test_queues_of_users_are_their_own(self, engine: Engine, user: User) -> None:
        other = await engine.database.transact(lambda tx: users.ensure_user(tx, "grace", "user", new_id()))
        mine = await submit(engine, user, ["sleep", new_tag()])
        theirs = await submit(engine, other, ["true"])
        assert (await ended(engine, theirs))["status"] == "completed", "one user's queue holds no other's up"
        with pytest.raises(JobNotFound):
            await engine.cancel_job(other, mine)
        await engine.cancel_job(user, mine)

    async def test_a_queue_that_is_not_there_is_told(self, engine: Engine, user: User) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await submit(engine, user, ["true"], queue="nope")
        assert refused.value.errors[0].pointer == "/queue"


class TestCancel:
    async def test_before_the_start_nothing_is_started(self, engine: Engine, user: User) -> None:
        """Again and again, at all moments between the claim and the start."""
        await limit(engine, user, 20)
        tag = new_tag()
        for pause in range(20):
            job = await submit(engine, user, ["sleep", tag])
            for _ in range(pause):
                await asyncio.sleep(0.001)
            found, done = await engine.cancel_job(user, job)
            assert done
            assert found.previous in ("queued", "running")
            assert (await shown(engine, job))["status"] == "cancelled"
        assert not alive(tag)

    async def test_a_cancel_that_only_the_store_knows_is_enforced(self, engine: Engine, user: User) -> None:
        job = await submit(engine, user, ["sleep", tag := new_tag()])
        await until(lambda: alive(tag))
        await engine.database.transact(lambda tx: jobs.cancel(tx, user, job, "elsewhere"))
        found = await ended(engine, job)
        assert (found["status"], found["cancelled_by"]) == ("cancelled", user.id)
        assert not alive(tag)

    async def test_another_node_waits_for_the_end_too(self, make_engine: MakeEngine, user: User) -> None:
        worker = await make_engine(demo, own_database=True, **GRACE)
        asked = await make_engine(demo, own_database=True, role="web", **GRACE)
        job = await submit(asked, user, ["sleep", tag := new_tag()])
        await when(worker, job, "running")
        await until(lambda: alive(tag))
        _, done = await asked.cancel_job(user, job)
        assert done
        assert not alive(tag)

    async def test_one_that_forks_while_it_is_killed_is_gone(self, engine: Engine, user: User) -> None:
        tag = new_tag()
        command = f"trap '' TERM; while :; do (trap '' TERM; setsid sleep {tag} &) ; done"
        job = await submit(engine, user, ["timeout", "60", "bash", "-c", command])
        await until(lambda: len(alive(tag)) > 5)
        _, done = await engine.cancel_job(user, job)
        assert done
        assert not alive(tag)

    async def test_a_thousand_at_once(self, engine: Engine, user: User) -> None:
        await limit(engine, user, 16)
        tag = new_tag()
        made = [await submit(engine, user, ["sleep", tag]) for _ in range(1000)]
        await asyncio.gather(*(engine.cancel_job(user, job) for job in made))
        for job in made:  # Sixteen may run when they are asked; on a busy machine their ends come a little later.
            assert (await ended(engine, job))["status"] == "cancelled"
        assert not alive(tag)
        async with engine.database.read() as conn:
            states = set(await conn.scalars(select(tasks.c.state).where(tasks.c.executor == "process")))
            left = (await conn.execute(select(processes.c.mark))).all()
        assert states == {"Canceled"}
        assert left == []

    async def test_a_whole_queue_at_once(self, engine: Engine, user: User) -> None:
        await limit(engine, user, 4)
        await limit(engine, user, 1, "other")
        tag = new_tag()
        other = await submit(engine, user, ["sleep", tag], queue="other")
        made = [await submit(engine, user, ["sleep", tag]) for _ in range(200)]
        await when(engine, made[3], "running")
        removed, stopping = await engine.cancel_queue(user, "default", "enough")
        assert (removed, stopping) == (196, 4)
        for job in made:
            found = await ended(engine, job)
            assert (found["status"], found["error"]) == ("cancelled", "Cancelled by user")
        assert (await shown(engine, other))["status"] == "running"
        await engine.cancel_job(user, other)
        assert not alive(tag)


async def die(engine: Engine) -> None:
    """What `kill -9` leaves: a node that is dead in the store, and its processes, of which nobody here knows."""
    for worker in engine.workers.values():
        worker.stop_claiming()
    live = list(engine.jobs._live.values())
    for one in live:
        if one.process is not None:
            one.detached.set()
            one.process.detach()
    for loop in engine._loops:
        loop.cancel()
    await asyncio.gather(*engine._loops, return_exceptions=True)
    engine._loops = []
    await until(lambda: not engine.job_worker.running)
    dead = update(nodes_table).where(nodes_table.c.id == engine.lease.node.id).values(dead_at=datetime.now(UTC))
    await engine.database.transact(lambda tx: tx.conn.execute(dead))
    await engine.journal.stop()


class TestRestart:
    async def test_a_job_is_ended_with_its_processes_and_fails(self, make_engine: MakeEngine, user: User) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        job = await submit(first, user, f"echo ready; sleep {(tag := new_tag())}")
        await said(first, job, b"ready")
        await die(first)
        second = await make_engine(demo, own_database=True, **GRACE)
        found = await ended(second, job)
        assert (found["status"], found["error"]) == ("failed", "The service that ran it has ended")
        assert not alive(tag)

    async def test_a_job_with_tries_left_is_tried_again(self, make_engine: MakeEngine, user: User) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        command = (
            f"test -e /work/seen && echo again && exit 0; touch /work/seen; echo first; sleep {(tag := new_tag())}"
        )
        job = await submit(first, user, command, retries=1, retry_backoff_s=0.01)
        await said(first, job, b"first")
        await die(first)
        second = await make_engine(demo, own_database=True, **GRACE)
        found = await ended(second, job)
        assert (found["status"], output(second, job)) == ("completed", b"first\nagain\n")
        assert not alive(tag)

    async def test_a_kept_job_is_adopted_with_its_output_uninterrupted(
        self, make_engine: MakeEngine, user: User
    ) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        command = "for n in $(seq 1 12); do echo $n; sleep 0.1; done; exit 7"
        job = await submit(first, user, command, on_restart="keep")
        await said(first, job, b"2\n")
        await die(first)
        second = await make_engine(demo, own_database=True, **GRACE)
        assert (await shown(second, job))["status"] == "running"
        found = await ended(second, job)
        assert (found["status"], found["exit_code"], found["attempt"]) == ("failed", 7, 2)
        assert output(second, job) == "".join(f"{n}\n" for n in range(1, 13)).encode()
        assert found["max_rss_bytes"] > 0

    async def test_a_kept_job_that_ended_while_no_service_looked_is_known_by_its_keeper(
        self, make_engine: MakeEngine, user: User
    ) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        job = await submit(first, user, "echo begun; sleep 0.5; echo done", on_restart="keep")
        await said(first, job, b"begun")
        await die(first)
        await said(first, job, b"done")
        await until(first.jobs.log_of(job).record.exists)
        second = await make_engine(demo, own_database=True, **GRACE)
        found = await ended(second, job)
        assert (found["status"], found["exit_code"]) == ("completed", 0)

    @pytest.mark.parametrize("how", ["obeys", "resists"])
    async def test_an_adopted_job_is_cancelled_down_to_its_last_process(
        self, make_engine: MakeEngine, user: User, how: str
    ) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        tag = new_tag()
        trap = "trap '' TERM; " if how == "resists" else ""
        command = f"{trap}setsid sleep {tag} & echo ready; while :; do sleep {tag} & wait; done"
        job = await submit(first, user, command, on_restart="keep")
        await said(first, job, b"ready")
        await die(first)
        second = await make_engine(demo, own_database=True, **GRACE)
        _, done = await second.cancel_job(user, job)
        assert done
        assert (await shown(second, job))["status"] == "cancelled"
        assert not alive(tag)

    async def test_an_adopted_job_keeps_its_time(self, make_engine: MakeEngine, user: User) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        job = await submit(first, user, f"echo ready; sleep {(tag := new_tag())}", on_restart="keep", timeout_s=4.0)
        await said(first, job, b"ready")
        await die(first)
        second = await make_engine(demo, own_database=True, **GRACE)
        found = await ended(second, job)
        assert (found["status"], found["error"]) == ("failed", "Timed out after 4 s")
        assert not alive(tag)

    async def test_a_cancel_asked_for_while_no_service_lived_is_carried_out(
        self, make_engine: MakeEngine, user: User
    ) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        job = await submit(first, user, f"echo ready; sleep {(tag := new_tag())}", on_restart="keep")
        await said(first, job, b"ready")
        await die(first)
        await first.database.transact(lambda tx: jobs.cancel(tx, user, job, None))
        second = await make_engine(demo, own_database=True, **GRACE)
        assert (await ended(second, job))["status"] == "cancelled"
        assert not alive(tag)

    async def test_a_kept_job_goes_on_through_an_orderly_stop(self, make_engine: MakeEngine, user: User) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        job = await submit(first, user, "for n in $(seq 1 12); do echo $n; sleep 0.1; done", on_restart="keep")
        await said(first, job, b"2\n")
        async with asyncio.timeout(1):
            await first.stop(drain_s=20)
        second = await make_engine(demo, own_database=True, **GRACE)
        assert (await ended(second, job))["status"] == "completed"
        assert output(second, job).endswith(b"11\n12\n")

    async def test_any_other_job_is_ended_by_an_orderly_stop(self, make_engine: MakeEngine, user: User) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        job = await submit(first, user, f"echo ready; sleep {(tag := new_tag())}")
        await said(first, job, b"ready")
        await first.stop(drain_s=0.2)
        assert not alive(tag)
        second = await make_engine(demo, own_database=True, role="web")
        found = await shown(second, job)
        assert (found["status"], found["error"]) == ("failed", "The service that ran it has ended")

    async def test_a_job_of_another_host_is_left_to_that_host(self, make_engine: MakeEngine, user: User) -> None:
        first = await make_engine(demo, own_database=True, **GRACE)
        job = await submit(first, user, f"echo ready; sleep {(tag := new_tag())}", on_restart="keep")
        await said(first, job, b"ready")
        await die(first)
        second = await make_engine(demo, own_database=True, role="web", **GRACE)
        second.workshop.host = "elsewhere"
        second.workshop.boot_id = "another boot"
        await second.lease.recover()
        assert (await shown(second, job))["status"] == "running"
        assert alive(tag)
        third = await make_engine(demo, own_database=True, **GRACE)
        await third.cancel_job(user, job)
        assert not alive(tag)


async def test_a_stopped_process_is_cancelled(engine: Engine, user: User) -> None:
    job = await submit(engine, user, ["sleep", tag := new_tag()])
    await until(lambda: alive(tag))
    for pid in alive(tag):
        os.kill(pid, signal.SIGSTOP)
    _, done = await engine.cancel_job(user, job)
    assert done
    assert not alive(tag)


async def test_idle_executors_leave_no_task_and_no_row(engine: Engine, user: User, database: Database) -> None:
    for _ in range(3):
        await ended(engine, await submit(engine, user, ["true"]))
    assert isinstance(engine.jobs, Jobs)
    assert engine.job_worker.running == set()
    assert not engine.jobs._live
    async with database.read() as conn:
        assert (await conn.execute(select(processes.c.mark))).all() == []
