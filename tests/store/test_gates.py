"""Limits: whatever the interleaving of claimers, none is exceeded, nobody starves, lines are kept.

What is checked is the history: who was active when, written down by those who claim and end.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from holdfast.clock import new_id
from holdfast.domain.users import User
from holdfast.store import gates, nodes, sessions
from holdfast.store.database import Database, Tx
from holdfast.store.nodes import NodeIdentity
from holdfast.store.tables import tasks
from sqlalchemy import insert, select, update


@dataclass
class History:
    """What has happened, in the order in which it was committed: each is seen under the locks of its gates."""

    capacities: Mapping[str, int]
    active: Counter[str] = field(default_factory=Counter[str])
    most: Counter[str] = field(default_factory=Counter[str])
    order: list[str] = field(default_factory=list[str])
    exceeded: list[str] = field(default_factory=list[str])

    def taken(self, task: str, through: set[str]) -> None:
        self.order.append(task)
        for gate in through:
            self.active[gate] += 1
            self.most[gate] = max(self.most[gate], self.active[gate])
            if self.active[gate] > self.capacities[gate]:
                self.exceeded.append(f"{gate} has {self.active[gate]} of {self.capacities[gate]}")


async def node_of(database: Database) -> str:
    node = NodeIdentity(new_id(), "h", "b", 1, "1")
    await database.transact(lambda tx: nodes.register(tx, node, 3600))
    return node.id


async def add(
    database: Database, user: User, through: list[str], *, session: str | None = None, place: int = 0, priority: int = 0
) -> str:
    """A pending task that must pass these gates."""
    task = new_id()
    values = {
        "id": task,
        "executor": "process",
        "session_id": session,
        "user_id": user.id,
        "state": "Pending",
        "priority": priority,
        "place": place,
        "rank": task,
        "attempt": 0,
        "version": 1,
    }

    async def work(tx: Tx) -> None:
        await tx.conn.execute(insert(tasks).values(**values, created_at=tx.now, last_updated=tx.now))
        await gates.name(tx, task, *through)

    await database.transact(work)
    return task


async def end(database: Database, *ids: str) -> None:
    async def work(tx: Tx) -> None:
        done = {"state": "Success", "node_id": None, "ended_at": tx.now}
        await tx.conn.execute(update(tasks).where(tasks.c.id.in_(ids)).values(**done))

    await database.transact(work)


async def active_now(database: Database) -> dict[str, int]:
    async with database.read() as conn:
        return {row[0]: row[1] for row in await conn.execute(gates._usage())}


async def make_gates(database: Database, capacities: Mapping[str, int]) -> None:
    for gate, capacity in capacities.items():
        await database.transact(lambda tx, g=gate, c=capacity: gates.set_capacity(tx, g, c, None))


async def others(database: Database, count: int) -> list[Database]:
    """Connections of their own, as other processes have them."""
    url = database.url.render_as_string(hide_password=False)
    return [Database(url, pool_size=4) for _ in range(count)]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_limit_is_exceeded_by_eight_claimers(database: Database, user: User, seed: int) -> None:
    """A session gate and two more for each task; every claim and every end is looked at, not how it ended up."""
    chance = random.Random(seed)
    capacities = {f"queue:{n}": n + 1 for n in range(3)} | {f"rule:{n}": 2 for n in range(4)}
    lines = [(await database.transact(lambda tx: sessions.create(tx, user, new_id(), {})))["id"] for _ in range(12)]
    capacities |= {f"session:{line}": 1 for line in lines}
    await make_gates(database, capacities)
    through: dict[str, set[str]] = {}
    line_of: dict[str, tuple[str, int]] = {}
    for place in range(120):
        line = chance.choice(lines)
        names = [f"session:{line}", f"queue:{chance.randrange(3)}", f"rule:{chance.randrange(4)}"]
        task = await add(database, user, names, session=line, place=place, priority=chance.choice([0, 0, 5]))
        through[task], line_of[task] = set(names), (line, place)
    history = History(capacities)
    bases = await others(database, 8)
    lock = asyncio.Lock()

    async def claimer(base: Database) -> None:
        node, mine = await node_of(base), list[str]()
        while len(history.order) < len(through) or mine:
            taken = await base.transact(lambda tx: gates.take(tx, "process", node, limit=chance.randrange(1, 9)))
            async with lock:
                for row in taken.tasks:
                    history.taken(row["id"], through[row["id"]])
                    mine.append(row["id"])
            await asyncio.sleep(chance.random() * 0.004)
            ending = [mine.pop(chance.randrange(len(mine))) for _ in range(chance.randrange(len(mine) + 1))]
            async with lock:  # Told before it is done: what is seen as active is never less than what is.
                for task in ending:
                    history.active.subtract(through[task])
            await end(base, *ending)
            used = await active_now(base)
            history.exceeded += [f"{gate} has {n}" for gate, n in used.items() if n > capacities[gate]]

    async with asyncio.timeout(120):
        await asyncio.gather(*(claimer(base) for base in bases))
    for base in bases:
        await base.close()
    assert history.exceeded == []
    assert sorted(history.order) == sorted(through), "each exactly once"
    assert max(history.most[f"queue:{n}"] for n in range(3)) > 1, "there was a crowd"
    for line in lines:
        mine = [line_of[task][1] for task in history.order if line_of[task][0] == line]
        assert mine == sorted(mine), "a session is a line"


async def test_nobody_starves_behind_those_who_must_wait(database: Database, user: User) -> None:
    """More tasks than one look takes in, all older and more urgent, stand before a gate that is full."""
    await make_gates(database, {"full": 1, "free": 1})
    node = await node_of(database)
    holder = await add(database, user, ["full"], priority=1000)
    assert [row["id"] for row in await take(database, node)] == [holder]
    for _ in range(100):
        await add(database, user, ["full"], priority=1000)
    starving = await add(database, user, ["free"], priority=-1000)
    assert [row["id"] for row in await take(database, node)] == [starving]


async def test_one_that_waits_for_two_gates_holds_up_neither(database: Database, user: User) -> None:
    await make_gates(database, {"a": 1, "b": 1})
    node = await node_of(database)
    holder = await add(database, user, ["a"])
    await take(database, node)
    both = await add(database, user, ["a", "b"], priority=5)
    only_b = await add(database, user, ["b"])
    assert [row["id"] for row in await take(database, node)] == [only_b], "the gate that has room is used"
    await end(database, holder, only_b)
    assert [row["id"] for row in await take(database, node)] == [both]


async def test_a_gate_that_somebody_holds_is_passed_by(database: Database, user: User) -> None:
    """On PostgreSQL other gates go on meanwhile; nobody waits for a lock."""
    if database.dialect == "sqlite":
        pytest.skip("one writer at a time: there is no gate to wait for")
    await make_gates(database, {"held": 5, "free": 5})
    node = await node_of(database)
    held, free = await add(database, user, ["held"]), await add(database, user, ["free"])
    async with database.engine.connect() as conn, conn.begin():
        await conn.execute(select(gates.gates.c.id).where(gates.gates.c.id == "held").with_for_update())
        async with asyncio.timeout(5):
            taken = await database.transact(lambda tx: gates.take(tx, "process", node, limit=9))
        assert [row["id"] for row in taken.tasks] == [free]
        again = await database.transact(lambda tx: gates.take(tx, "process", node, limit=9))
        assert (list(again.tasks), again.again) == ([], True), "come again: somebody only held it for a moment"
    assert [row["id"] for row in await take(database, node)] == [held]


async def test_a_task_that_is_cancelled_while_it_is_claimed_is_not_started(database: Database, user: User) -> None:
    await make_gates(database, {"g": 5})
    node = await node_of(database)
    for _ in range(20):
        task = await add(database, user, ["g"])

        async def cancel(tx: Tx, task: str = task) -> int:
            done = {"state": "Canceled", "ended_at": tx.now}
            asked = update(tasks).where(tasks.c.id == task, tasks.c.state == "Pending").values(**done)
            return (await tx.conn.execute(asked)).rowcount

        taken, cancelled = await asyncio.gather(take(database, node), database.transact(cancel))
        assert len(taken) + cancelled == 1, "one of the two has happened, and only one"
        await end(database, *(row["id"] for row in taken))


async def test_a_gate_without_a_capacity_has_that_of_who_claims(database: Database, user: User) -> None:
    await database.transact(lambda tx: gates.ensure(tx, "open", None))
    node = await node_of(database)
    made = [await add(database, user, ["open"]) for _ in range(5)]
    taken = await database.transact(lambda tx: gates.take(tx, "process", node, limit=9, default=2))
    assert [row["id"] for row in taken.tasks] == made[:2]
    assert [row["id"] for row in await take(database, node)] == made[2:]


async def take(database: Database, node: str) -> list[Any]:
    return list((await database.transact(lambda tx: gates.take(tx, "process", node, limit=9))).tasks)
