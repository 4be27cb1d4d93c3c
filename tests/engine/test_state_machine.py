"""Store and leases against a small model: any order of sends, claims, chunks, cancels, crashes and jumps.

After every step: at most one active run a session, in the order in which messages stand in line; a
journal without a gap, in which what was opened is closed once; a past attempt that writes nothing.
Actions begin and end among it all; questions are asked, answered once, and carried out at most once.
"""

import asyncio
import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from holdfast.clock import new_id
from holdfast.domain import events as ev
from holdfast.domain.errors import AlreadyResolved, HoldfastError, LeaseLost
from holdfast.domain.tasks import TERMINAL
from holdfast.domain.transcript import Transcript
from holdfast.domain.users import User
from holdfast.engine.lease import Lease
from holdfast.store import (
    actions,
    approvals,
    cancels,
    claims,
    endings,
    nodes,
    queue,
    runs,
    schema,
    sessions,
    transcripts,
    users,
)
from holdfast.store.actions import Begun, Owner, Result
from holdfast.store.approvals import Decision
from holdfast.store.claims import Claim
from holdfast.store.database import Database
from holdfast.store.endings import End
from holdfast.store.journal import Journal, RunWriter
from holdfast.store.tables import interrupts, tasks
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from tests.support.following import assert_whole
from tests.support.postgres import PostgresServer

LEASE_S = 30.0


class Turned:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class Node:
    """A process: its own connections, what it believes to own, and whether it still runs."""

    def __init__(self, url: str, clock: Turned) -> None:
        self.database = Database(url, clock=clock)
        self.journal = Journal(self.database, clock, patience_s=0)
        self.lease = Lease(self.database, clock, lease_s=LEASE_S, heartbeat_s=10, on_lost=lambda: None)
        self.mine: dict[str, tuple[Claim, RunWriter]] = {}
        self.alive = True


class Machine(RuleBasedStateMachine):
    """Two nodes, two sessions, one user."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Turned()
        self.folder = tempfile.TemporaryDirectory()
        self.said: dict[str, str] = {}
        self.prompts: dict[str, list[str]] = {}
        self.cancelled: set[str] = set()
        self.acting: list[tuple[Claim, str]] = []
        self.answered: dict[str, tuple[bool, str | None]] = {}
        self.carried_out: set[str] = set()

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        self.do(self._begin())

    async def _begin(self) -> None:
        url = self.url or f"sqlite:///{Path(self.folder.name) / 'm.db'}"
        self.nodes = [Node(url, self.clock), Node(url, self.clock)]
        self.database = self.nodes[0].database
        await schema.upgrade(self.database)
        name = new_id()
        self.user: User = await self.database.transact(lambda tx: users.ensure_user(tx, name, "user", new_id()))
        self.sessions = [
            (await self.database.transact(lambda tx: sessions.create(tx, self.user, new_id(), {})))["id"]
            for _ in range(2)
        ]
        for node in self.nodes:
            await node.journal.start()
            await self.database.transact(lambda tx, node=node: nodes.register(tx, node.lease.node, LEASE_S))

    @rule(
        place=st.integers(0, 1),
        key=st.none() | st.integers(0, 2),
        busy=st.sampled_from(["queue", "queue", "interrupt"]),
    )
    def send(self, place: int, key: int | None, busy: str) -> None:
        session = self.sessions[place]
        ids = (new_id(), new_id(), new_id())
        name = f"{session}{key}" if key is not None else None
        content = "same" if key is not None else ids[0]

        async def work(tx: Any) -> Any:
            return await runs.send(tx, self.user, session, content, key=name, if_busy=busy, ids=ids)

        try:
            _, dup = self.do(self.database.transact(work))
        except HoldfastError:
            assert key is not None  # The same key with another ifBusy is another request.
            return
        if busy == "interrupt" and not dup:
            mine = [claim for node in self.nodes for claim, _ in node.mine.values()]
            self.cancelled |= {claim.run for claim in mine if claim.session == session}

    @rule(which=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, which: int, limit: int) -> None:
        node = self.nodes[which]
        if not node.alive:
            return
        found = self.do(
            node.database.transact(lambda tx: claims.claim(tx, node.lease.node.id, "m", limit=limit, per_user=2))
        )
        for claim in found.runs:
            node.mine[claim.run] = (claim, node.journal.open(claim.session, claim.run, claim.attempt, claim.head))
            self.said.setdefault(claim.run, "")

    @rule(which=st.integers(0, 1), words=st.lists(st.text(max_size=3), min_size=1, max_size=4), twice=st.booleans())
    def speak(self, which: int, words: list[str], *, twice: bool) -> None:
        node = self.nodes[which]
        for run, (claim, writer) in list(node.mine.items()):
            try:
                for word in words:
                    data = ev.encode(ev.TextMessageContent(message_id=claim.message, delta=ev.clean_text(word)))
                    writer.put("TEXT_MESSAGE_CONTENT", data)
                self.do(writer.flush())
            except LeaseLost:
                self.forget(node, run)
                assert not self.do(self.owned(claim)), "only who lost the run is told so"
            else:
                assert self.do(self.owned(claim)), "the past cannot write"
                self.said[run] += "".join(map(ev.clean_text, words))

    @rule(which=st.integers(0, 1), count=st.integers(1, 2))
    def act(self, which: int, count: int) -> None:
        node = self.nodes[which]
        for run, (claim, writer) in list(node.mine.items()):
            for number in range(count):
                begun = Begun(f"a{number}", "tool", {"n": number}, len(self.said[run]))
                try:
                    found = self.do(
                        node.database.transact(
                            lambda tx, c=claim, b=begun: actions.begin(tx, owner_of(c), c.message, b)
                        )
                    )
                except LeaseLost:
                    assert not self.do(self.owned(claim))
                    self.forget(node, run)
                    break
                if found is None:
                    assert run in self.cancelled
                    break
                writer.advance(found[1])
                self.acting.append((claim, found[0]))

    @precondition(lambda self: self.acting)
    @rule(which=st.integers(0, 1), place=st.integers(0, 100), again=st.booleans())
    def finish_action(self, which: int, place: int, *, again: bool) -> None:
        claim, action = self.acting.pop(place % len(self.acting))
        node = self.nodes[which]
        told = Result(output="done", status="success", outcome="success")
        for number in range(1 + again):
            try:
                records = self.do(node.database.transact(lambda tx: actions.finish(tx, owner_of(claim), action, told)))
            except LeaseLost:
                continue
            assert number == 0, "one result"
            if claim.run in node.mine:
                node.mine[claim.run][1].advance(records)

    @rule(which=st.integers(0, 1), count=st.integers(1, 3), times_out=st.booleans())
    def ask(self, which: int, count: int, *, times_out: bool) -> None:
        """A run ends with questions; what it has begun has ended before."""
        node = self.nodes[which]
        for run, (claim, _) in list(node.mine.items())[:1]:
            if any(mine.run == run for mine, _ in self.acting):
                continue
            if claim.parent is not None and self.do(self.answers(claim.parent)):
                continue  # What was decided before is carried out before anything else is asked.
            asked = [(Begun(f"q{n}", "tool", {"n": n}, 0), "may I?") for n in range(count)]
            limit = 600.0 if times_out else None
            try:
                how = self.do(
                    node.database.transact(
                        lambda tx, c=claim, q=asked, t=limit: approvals.wait(
                            tx, c.run, c.attempt, End(outcome="success"), q, t
                        )
                    )
                )
                assert how == ("cancelled" if run in self.cancelled else "waiting")
            except LeaseLost:
                assert not self.do(self.owned(claim))
            self.forget(node, run)

    @rule(place=st.integers(0, 1), which=st.integers(0, 1), count=st.integers(1, 2), times_out=st.booleans())
    def a_question(self, place: int, which: int, count: int, *, times_out: bool) -> None:
        """The way there, which single steps hardly ever take."""
        self.send(place, None, "queue")
        self.claim(which, 3)
        self.ask(which, count, times_out=times_out)

    @rule(which=st.integers(0, 1), answers=st.integers(0, 3), approved=st.booleans())
    def going_on(self, which: int, answers: int, *, approved: bool) -> None:
        """The way from questions to what is done about them."""
        for place in (0, 1):
            for number in range(answers):
                self.answer(place, number, approved=approved, edited=False)
        self.claim(which, 3)
        self.carry_out(which)

    @rule(place=st.integers(0, 1), which=st.integers(0, 100), approved=st.booleans(), edited=st.booleans())
    def answer(self, place: int, which: int, *, approved: bool, edited: bool) -> None:
        """Answer any question that was ever asked, again too."""
        session = self.sessions[place]
        asked = self.do(self.questions(session))
        if not asked:
            return
        row = asked[which % len(asked)]
        decision = Decision(row["id"], approved, {"n": 9} if edited and approved else None)
        ids = (new_id(), new_id())

        async def work(tx: Any) -> Any:
            return await approvals.decide(tx, self.user, session, row["task_id"], [decision], key=None, ids=ids)

        try:
            going_on, _ = self.do(self.database.transact(work))
        except AlreadyResolved:
            assert row["resolved_at"] is not None, "only what was answered is refused"
            return
        if row["id"] in self.answered:
            before, run = self.answered[row["id"]]
            assert before == approved
            assert run in (None, going_on), "one run goes on, whoever answers how often"
        self.answered[row["id"]] = (approved, going_on)

    @rule(which=st.integers(0, 1))
    def carry_out(self, which: int) -> None:
        """A run that goes on does what was decided, each once."""
        node = self.nodes[which]
        for run, (claim, writer) in list(node.mine.items()):
            if claim.parent is None:
                continue
            for one in self.do(self.answers(claim.parent)):
                try:
                    taken = self.do(
                        node.database.transact(lambda tx, c=claim, a=one: approvals.take(tx, owner_of(c), a))
                    )
                except LeaseLost:
                    assert not self.do(self.owned(claim))
                    self.forget(node, run)
                    break
                if taken:
                    assert one.interrupt not in self.carried_out
                    self.carried_out.add(one.interrupt)
                    self.acting.append((claim, one.action))
            writer.advance([])

    @rule()
    def expire(self) -> None:
        self.do(self.database.transact(approvals.expire))

    async def questions(self, session: str) -> list[Any]:
        async with self.database.read() as conn:
            found = await conn.execute(select(interrupts).filter_by(session_id=session).order_by(interrupts.c.id))
            return list(found.mappings().all())

    async def answers(self, parent: str) -> list[Any]:
        async with self.database.read() as conn:
            return await approvals.answers(conn, parent)

    @rule(which=st.integers(0, 1), outcome=st.sampled_from(["success", "failed", "cancelled"]), again=st.booleans())
    def end(self, which: int, outcome: Any, *, again: bool) -> None:
        node = self.nodes[which]
        for run, (claim, _) in list(node.mine.items())[:1]:
            error = {"code": "agent_error", "id": "e", "message": "m"} if outcome == "failed" else None
            final = End(outcome=outcome, error=error)
            for _attempt in range(1 + again):  # A duplicate delivery changes nothing.
                try:
                    self.do(node.database.transact(lambda tx, c=claim, f=final: endings.end(tx, c.run, c.attempt, f)))
                except LeaseLost:
                    continue
            self.forget(node, run)

    @rule(place=st.integers(0, 1), times=st.integers(1, 2))
    def cancel(self, place: int, times: int) -> None:
        session = self.sessions[place]
        for _ in range(times):
            _, concerned = self.do(
                self.database.transact(lambda tx: cancels.cancel(tx, self.user, session, None, None))
            )
            self.cancelled |= set(concerned)

    @rule(place=st.integers(0, 1), op=st.sampled_from(["remove", "front"]))
    def reorder(self, place: int, op: str) -> None:
        session = self.sessions[place]

        async def work(tx: Any) -> None:
            items = await queue.read(tx.conn, session)
            if not items:
                return
            last = items[-1]
            if op == "remove":
                await queue.remove(tx, self.user, session, last.task, last.version)
            else:
                await queue.move(tx, self.user, session, last.task, last.version, 1)

        self.do(self.database.transact(work))

    @rule(which=st.integers(0, 1))
    def hand_over(self, which: int) -> None:
        node = self.nodes[which]
        for run, (claim, _) in list(node.mine.items())[:1]:
            if any(mine.run == run for mine, _ in self.acting):
                continue  # What it has begun ends before it is handed over.
            try:
                self.do(
                    node.database.transact(
                        lambda tx, c=claim: endings.requeue(tx, c.run, c.attempt, node.lease.node.id, "drain")
                    )
                )
            except LeaseLost:
                pass
            self.forget(node, run)

    @rule(which=st.integers(0, 1))
    def freeze_or_crash(self, which: int) -> None:
        """It beats no more. What it holds it may still try to write: a zombie."""
        self.nodes[which].alive = False

    @rule(seconds=st.sampled_from([1, 29, 31, 3600, -5]))
    def time_jumps(self, seconds: int) -> None:
        for node in self.nodes:
            if node.alive and seconds > 0:
                self.do(node.lease.beat())
        self.clock.time += timedelta(seconds=seconds)
        for node in self.nodes:
            if node.alive:
                before = node.lease.node.id
                self.do(node.lease.beat())
                if node.lease.node.id != before:
                    for run in list(node.mine):
                        self.forget(node, run)

    @precondition(lambda self: any(not node.alive for node in self.nodes))
    @rule()
    def recover_and_come_back(self) -> None:
        self.do(self.nodes[0].lease.recover())
        for node in self.nodes:
            if not node.alive:
                node.alive = True
                self.do(node.lease.beat())

    def forget(self, node: Node, run: str) -> None:
        _, writer = node.mine.pop(run)
        node.journal.close(writer)

    async def owned(self, claim: Claim) -> bool:
        async with self.database.read() as conn:
            row = (await conn.execute(select(tasks.c.attempt, tasks.c.node_id).filter_by(id=claim.run))).one()
        return row[0] == claim.attempt and row[1] is not None

    @invariant()
    def what_always_holds(self) -> None:
        if hasattr(self, "sessions"):
            self.do(self._check())

    async def _check(self) -> None:
        for session in self.sessions:
            async with self.database.read() as conn:
                rows = (await conn.execute(select(tasks).filter_by(session_id=session))).mappings().all()
            assert len([row for row in rows if row["node_id"] is not None]) <= 1
            records = await self.nodes[0].journal.read(session, 0, 10_000)
            assert [record.seq for record in records] == list(range(1, len(records) + 1))
            folded = Transcript(session)
            folded.apply_all(records)
            kept = (await transcripts.load(self.database, session, 1)).transcript
            assert kept.snapshot() == folded.snapshot()
            for message in kept.messages:
                if message.role == "assistant" and message.run in self.said:
                    assert message.content == self.said[message.run]

    def teardown(self) -> None:
        if hasattr(self, "nodes"):
            self.do(self._finish())
        self.loop.close()
        self.folder.cleanup()

    async def _finish(self) -> None:
        """In the end everything ends: all nodes die, the last recovery closes what is left."""
        self.clock.time += timedelta(days=1)
        await self.nodes[0].lease.recover()
        for session in self.sessions:
            await self.database.transact(lambda tx, one=session: cancels.cancel(tx, self.user, one, None, None))
            async with self.database.read() as conn:
                states = set(await conn.scalars(select(tasks.c.state).filter_by(session_id=session)))
            assert states <= {str(state) for state in TERMINAL}
            records = await self.nodes[0].journal.read(session, 0, 10_000)
            assert_whole([{"seq": r.seq, "run": r.run, "event": _plain(r.data)} for r in records])
        for node in self.nodes:
            await node.journal.stop()
            await node.database.close()


def owner_of(claim: Claim) -> Owner:
    return Owner(claim.session, claim.run, claim.attempt)


def _plain(data: str) -> Any:
    return json.loads(data)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_any_history_keeps_what_always_holds(kind: str, request: pytest.FixtureRequest) -> None:
    url = ""
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = asyncio.run(server.create_database())
    machine = type("Bound", (Machine,), {"url": url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        ),
    )
