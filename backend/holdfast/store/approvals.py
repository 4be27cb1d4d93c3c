"""Approvals: a run ends with questions, a person answers, another run carries the answers out."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import RowMapping, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.clock import new_id, rfc3339
from holdfast.domain import events as ev
from holdfast.domain.actions import Interrupt
from holdfast.domain.errors import AlreadyResolved, LeaseLost, NoOpenInterrupt
from holdfast.domain.tasks import TaskState
from holdfast.domain.users import User
from holdfast.store import actions, endings, idempotency, processes, runs, sessions
from holdfast.store.actions import Begun, Owner
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.endings import End
from holdfast.store.tables import grants, interrupts, tasks
from holdfast.store.tables import sessions as sessions_table


class Decision(msgspec.Struct, frozen=True):
    """The answer to one question; `always` asks no more for this tool in this session."""

    interrupt: str
    approved: bool
    edited_args: dict[str, Any] | None = None
    reason: str | None = None
    always: bool = False


class Answer(msgspec.Struct, frozen=True):
    """An answer that is to be carried out: `args` are what the person has left of them."""

    interrupt: str
    action: str
    message: str
    tool: str
    args: dict[str, Any]
    approved: bool
    edited: bool
    reason: str | None
    by: str | None


async def wait(
    tx: Tx, run: str, attempt: int, end: End, asked: Sequence[tuple[Begun, str]], timeout_s: float | None
) -> str:
    """End a run with questions, (action, reason) each; "waiting", or "cancelled" when that was asked for first.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    session = await tx.conn.scalar(select(tasks.c.session_id).where(tasks.c.id == run))
    await tx.conn.execute(select(sessions_table.c.id).filter_by(id=session).with_for_update())
    owner = Owner(str(session), run, attempt)
    if await actions.own(tx, owner):
        return await endings.end(tx, run, attempt, msgspec.structs.replace(end, outcome="cancelled"))
    task = (await tx.conn.execute(select(tasks).filter_by(id=run))).mappings().one()
    names, told = await actions.pending(tx, owner, task["message_id"], [begun for begun, _ in asked])
    expires_at = tx.now + timedelta(seconds=timeout_s) if timeout_s else None
    rows = [
        {
            "id": new_id(),
            "session_id": session,
            "task_id": run,
            "message_id": task["message_id"],
            "action_id": name,
            "tool": begun.name,
            "args": begun.args,
            "reason": reason,
            "position": position,
            "expires_at": expires_at,
            "created_at": tx.now,
        }
        for position, (name, (begun, reason)) in enumerate(zip(names, asked, strict=True))
    ]
    await tx.conn.execute(insert(interrupts), rows)
    metadata = await endings.close_message(tx, task, end)
    await tx.conn.execute(
        update(tasks).where(tasks.c.id == run).values(state=TaskState.PAUSED, node_id=None, last_updated=tx.now)
    )
    await tx.conn.execute(
        update(sessions_table).filter_by(id=session).values(updated_at=tx.now, process_pid=None, kill_failures=0)
    )
    closing: list[ev.Event] = [*end.closing, *told]
    closing.append(ev.TextMessageEnd(message_id=task["message_id"], metadata=metadata))
    outcome = ev.Outcome("interrupt", tuple(_as_told(row) for row in rows))
    closing.append(ev.RunFinished(thread_id=str(session), run_id=run, outcome=outcome, usage=end.usage))
    await tx.append(str(session), [(run, attempt, event) for event in closing])
    return "waiting"


async def decide(
    tx: Tx, user: User, session: str, run: str, decisions: Sequence[Decision], *, key: str | None, ids: tuple[str, str]
) -> tuple[str | None, bool]:
    """Answer questions of a run: (the run that goes on, or None while others are open; dup).

    The same answer twice is the same as once. `ids` are new ids for the run and its message.

    Raises:
        SessionNotFound, RunNotFound, IdempotencyConflict.
        NoOpenInterrupt: the run has never asked this.
        AlreadyResolved: it was answered otherwise, has expired, or was cancelled.
    """
    row = await sessions.lock(tx, user, session)
    wanted = idempotency.request_hash(run, msgspec.json.encode(decisions).decode())
    if (known := await idempotency.recall(tx, user.id, session, "approve", key, wanted)) is not None:
        return known["run"], True
    await runs.visible(tx.conn, user, run)
    asked = await _of(tx, session, run)
    for decision in decisions:
        _check(asked.get(decision.interrupt), decision)
    for decision in decisions:
        if asked[decision.interrupt]["resolved_at"] is None:
            await _resolve(tx, asked[decision.interrupt], decision, user.id)
            if decision.approved and decision.always:
                await _grant(tx, session, asked[decision.interrupt]["tool"], user.id)
    going_on = await _go_on(tx, user, row, run, ids)
    await idempotency.remember(tx, user.id, session, "approve", key, wanted, {"run": going_on})
    return going_on, False


async def expire(tx: Tx, limit: int = 100) -> int:
    """Deny what nobody has answered in time; how many."""
    statement = (
        select(interrupts.c.id, interrupts.c.session_id, sessions_table.c.owner)
        .join(sessions_table, sessions_table.c.id == interrupts.c.session_id)
        .where(interrupts.c.resolved_at.is_(None), interrupts.c.expires_at <= tx.now)
        .order_by(interrupts.c.session_id)
        .limit(limit)
    )
    done = 0
    for name, session, owner in (await tx.conn.execute(statement)).all():
        row = await sessions.lock(tx, User(owner, "", "user"), session)
        found = (await tx.conn.execute(select(interrupts).filter_by(id=name))).mappings().one()
        if found["resolved_at"] is None:
            await _resolve(tx, found, Decision(name, False, reason="Nobody has answered in time"), None)
            await _go_on(tx, User(owner, "", "user"), row, found["task_id"], (new_id(), new_id()))
            done += 1
    return done


async def due(conn: Connection, now: Any) -> bool:
    """Whether something has expired."""
    statement = select(interrupts.c.id).where(interrupts.c.resolved_at.is_(None), interrupts.c.expires_at <= now)
    return (await conn.execute(statement.limit(1))).first() is not None


async def granted(conn: Connection, session: str) -> set[str]:
    """The tools that need no more approval in a session."""
    return set(await conn.scalars(select(grants.c.tool).where(grants.c.session_id == session)))


async def open_of(conn: Connection, session: str) -> list[Interrupt]:
    """What a session waits for, as its fold tells it."""
    statement = select(interrupts).where(interrupts.c.session_id == session, interrupts.c.resolved_at.is_(None))
    rows = (await conn.execute(statement.order_by(interrupts.c.position))).mappings()
    return [
        Interrupt(
            row["id"],
            row["task_id"],
            row["action_id"],
            row["tool"],
            row["args"],
            row["reason"],
            rfc3339(row["expires_at"]) if row["expires_at"] else None,
        )
        for row in rows
    ]


async def answers(conn: Connection, parent: str) -> list[Answer]:
    """What was answered to `parent` and no run has carried out, in the order of the questions."""
    statement = (
        select(interrupts)
        .where(interrupts.c.task_id == parent, interrupts.c.resolved_at.is_not(None), interrupts.c.taken_by.is_(None))
        .order_by(interrupts.c.position)
    )
    return [
        Answer(
            row["id"],
            row["action_id"],
            row["message_id"],
            row["tool"],
            row["args"] if row["edited_args"] is None else row["edited_args"],
            bool(row["approved"]),
            row["edited_args"] is not None,
            row["note"],
            row["resolved_by"],
        )
        for row in (await conn.execute(statement)).mappings()
    ]


async def take(tx: Tx, owner: Owner, answer: Answer, mark: dict[str, Any] | None = None) -> bool:
    """Carry an answer out, once: committed before the tool starts. False when the run is to stop.

    Raises:
        LeaseLost: the run is not active in this attempt, or the answer is taken.
    """
    if await actions.own(tx, owner):
        return False
    done = await tx.conn.execute(
        update(interrupts)
        .where(interrupts.c.id == answer.interrupt, interrupts.c.taken_by.is_(None))
        .values(taken_by=owner.run)
    )
    if done.rowcount == 0:
        raise LeaseLost(f"the answer to {answer.interrupt} is taken")
    if mark is not None:
        await processes.announce(tx, mark, answer.action)
    return True


async def _of(tx: Tx, session: str, run: str) -> dict[str, RowMapping]:
    statement = select(interrupts).where(interrupts.c.session_id == session, interrupts.c.task_id == run)
    return {row["id"]: row for row in (await tx.conn.execute(statement)).mappings()}


def _check(row: RowMapping | None, decision: Decision) -> None:
    if row is None:
        raise NoOpenInterrupt(f"This run does not ask {decision.interrupt[:64]!r}")
    if row["resolved_at"] is not None and (bool(row["approved"]), row["edited_args"]) != (
        decision.approved,
        decision.edited_args if decision.approved else None,
    ):
        current = {"id": row["id"], "approved": bool(row["approved"]), "by": row["resolved_by"], "reason": row["note"]}
        raise AlreadyResolved(current=current)


async def _resolve(tx: Tx, row: RowMapping, decision: Decision, by: str | None) -> None:
    edited = decision.edited_args if decision.approved else None
    values: dict[str, Any] = {"resolved_at": tx.now, "resolved_by": by, "approved": int(decision.approved)}
    values |= {"edited_args": edited, "note": decision.reason}
    await tx.conn.execute(update(interrupts).where(interrupts.c.id == row["id"]).values(**values))
    told: dict[str, Any] = {"id": row["id"], "approved": decision.approved}
    told |= {"by": by} if by else {}
    told |= {"reason": decision.reason} if decision.reason else {}
    told |= {"editedArgs": edited} if edited is not None else {}
    told |= {"always": True} if decision.approved and decision.always else {}
    await tx.append(row["session_id"], [(None, 0, ev.Custom(name="interrupt.resolved", value=told))])


async def _grant(tx: Tx, session: str, tool: str, by: str) -> None:
    dialect = sqlite if tx.dialect == "sqlite" else postgresql
    values = {"session_id": session, "tool": tool, "granted_by": by, "created_at": tx.now}
    await tx.conn.execute(dialect.insert(grants).values(**values).on_conflict_do_nothing())


async def _go_on(tx: Tx, user: User, session: RowMapping, run: str, ids: tuple[str, str]) -> str | None:
    """When all is answered, the run that waited ends and another goes on from it; the other's id."""
    left = select(interrupts.c.id).where(interrupts.c.task_id == run, interrupts.c.resolved_at.is_(None)).limit(1)
    if await tx.conn.scalar(left) is not None:
        return None
    ended = await tx.conn.execute(
        update(tasks)
        .where(tasks.c.id == run, tasks.c.state == TaskState.PAUSED)
        .values(state=TaskState.SUCCESS, ended_at=tx.now, last_updated=tx.now)
    )
    if ended.rowcount == 0:
        return await tx.conn.scalar(select(tasks.c.id).where(tasks.c.parent_task_id == run))
    task = (await tx.conn.execute(select(tasks.c.user_id).filter_by(id=run))).one()
    await runs.enqueue_first(tx, user, session, {"id": ids[0], "message_id": ids[1], "parent_task_id": run}, task[0])
    return ids[0]


def _as_told(row: dict[str, Any]) -> dict[str, Any]:
    told = {
        "id": row["id"],
        "reason": "tool_approval",
        "message": row["reason"],
        "toolCallId": row["action_id"],
        "metadata": {"tool": row["tool"], "args": row["args"]},
    }
    return {**told, "expiresAt": rfc3339(row["expires_at"])} if row["expires_at"] else told
