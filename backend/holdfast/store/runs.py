"""Runs: a message is sent, claimed, ended; each step is one transaction that also tells the journal.

Lock order: gates by id, the session, tasks; the journal's events come last.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import RowMapping, and_, func, insert, not_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from holdfast.clock import new_id, rfc3339
from holdfast.domain import events as ev
from holdfast.domain.errors import Conflict, InterruptsPending, LeaseLost, Overloaded, RunActive, RunNotFound
from holdfast.domain.tasks import ACTIVE, TERMINAL, CancellationStatus, TaskState, UiStatus, run_status
from holdfast.domain.transcript import fresh_metadata
from holdfast.domain.users import User, access
from holdfast.store import actions, idempotency, queue, sessions
from holdfast.store.actions import Owner
from holdfast.store.database import Tx, Written
from holdfast.store.tables import events, gates, interrupts, messages, tasks
from holdfast.store.tables import sessions as sessions_table

MAX_QUEUED = 100
"""The most messages that may wait in one session."""

CancelEffect = Literal["requested", "already_terminal", "nothing_to_cancel"]


class Sent(msgspec.Struct, frozen=True):
    """The answer to a message: its run, the message, and whether something stands before it."""

    run: str
    message: str
    state: Literal["running", "queued"]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A run that this node may carry out: `prompt` is empty when it continues another run."""

    run: str
    session: str
    user: str
    attempt: int
    message: str
    prompt: str
    parent: str | None
    resumed: bool
    head: int


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ends. `error` {code, id, message} goes with `failed` and `interrupted`.

    `tail` is what of the content is not yet in the message's row; None: take it from the journal.
    `processes` are those that a cancel has ended: {pid, how}.
    """

    outcome: Literal["success", "cancelled", "failed", "interrupted"]
    metadata: dict[str, Any] = {}
    error: dict[str, str] | None = None
    tail: str | None = None
    closing: tuple[ev.Event, ...] = ()
    usage: tuple[ev.TokenUsage, ...] = ()
    processes: tuple[dict[str, Any], ...] = ()


async def visible(conn: AsyncConnection, user: User, run: str) -> RowMapping:
    """The task of a run that `user` may see.

    Raises:
        RunNotFound: there is none, or it is somebody else's.
    """
    statement = (
        select(tasks, sessions_table.c.owner, sessions_table.c.assignee)
        .join(sessions_table, sessions_table.c.id == tasks.c.session_id)
        .where(tasks.c.id == run, tasks.c.executor == "agent")
    )
    row = (await conn.execute(statement)).mappings().first()
    if row is None or access(user, owner=row["owner"], assignee=row["assignee"]) is None:
        raise RunNotFound
    return row


def body(row: RowMapping) -> dict[str, Any]:
    """A run as HTTP gives it."""
    times = {name: row[name] for name in ("created_at", "started_at", "ended_at")}
    return {
        "id": row["id"],
        "session": row["session_id"],
        "message": row["message_id"],
        "status": run_status(TaskState(row["state"])),
        "attempt": row["attempt"],
        **{name: rfc3339(moment) if moment else None for name, moment in times.items()},
        "error": row["error"],
    }


async def send(
    tx: Tx,
    user: User,
    session: str,
    content: str,
    *,
    key: str | None,
    if_busy: str,
    ids: tuple[str, str, str],
) -> tuple[Sent, bool]:
    """Accept a user's message: the message, its run, and the queue's event. (result, dup).

    `ids` are new ids for the run, the user's message and the assistant's. With `if_busy` "interrupt"
    the active run's cancel is requested in the same transaction.

    Raises:
        SessionNotFound, RunActive, Overloaded, IdempotencyConflict.
    """
    row = await sessions.lock(tx, user, session)
    wanted = idempotency.request_hash(content, if_busy)
    if (known := await idempotency.recall(tx, user.id, session, "send", key, wanted)) is not None:
        return msgspec.convert(known, Sent), True
    waiting, active = await _standing(tx, session)
    if (waiting or active) and if_busy == "reject":
        raise InterruptsPending if any(task["state"] == TaskState.PAUSED for task in waiting) else RunActive
    if if_busy == "interrupt":
        for task in active:
            await request_cancel(tx, task, user.id, "interrupted by a new message")
        for task in [task for task in waiting if task["started_at"] or task["input_message_id"] is None]:
            await _cancel_waiting(tx, task, user.id, "interrupted by a new message", nested=False)
            waiting.remove(task)
    run, message, reply = ids
    first = if_busy == "interrupt"
    values = {"id": run, "input_message_id": message, "message_id": reply, "place": _place(waiting, first=first)}
    await _insert_message(tx, session, run, message, "user", content)
    await _enqueue(tx, user, row, values, content, waiting)
    sent = Sent(run, message, "queued" if active or (waiting and not first) else "running")
    await idempotency.remember(tx, user.id, session, "send", key, wanted, sent)
    return sent, False


async def continue_run(tx: Tx, user: User, run: str, *, key: str | None, ids: tuple[str, str]) -> tuple[Sent, bool]:
    """A new run that goes on from what `run` said before it was cut short. (result, dup).

    Raises:
        RunNotFound: no such run of this user.
        Conflict: it ended by itself, has not ended, or is not the last of its session.
    """
    session = str((await visible(tx.conn, user, run))["session_id"])
    row = await sessions.lock(tx, user, session)
    wanted = idempotency.request_hash(run)
    if (known := await idempotency.recall(tx, user.id, session, "continue", key, wanted)) is not None:
        return msgspec.convert(known, Sent), True
    task = await visible(tx.conn, user, run)
    if task["state"] not in (TaskState.FAILURE, TaskState.CANCELED) or task["started_at"] is None:
        raise Conflict("Only a run that was cut short can be continued", current=body(task))
    waiting, active = await _standing(tx, session)
    last = await tx.conn.scalar(
        select(tasks.c.id)
        .where(tasks.c.session_id == session, tasks.c.started_at.is_not(None))
        .order_by(tasks.c.started_at.desc(), tasks.c.id.desc())
        .limit(1)
    )
    if active or waiting or last != run:
        raise Conflict("The conversation has gone on since that run", current=body(task))
    values = {"id": ids[0], "message_id": ids[1], "parent_task_id": run, "place": 0}
    await _enqueue(tx, user, row, values, "", [])
    sent = Sent(ids[0], ids[1], "running")
    await idempotency.remember(tx, user.id, session, "continue", key, wanted, sent)
    return sent, False


async def request_cancel(tx: Tx, task: RowMapping, by: str, reason: str | None) -> None:
    """Write down that an active run is to stop; once is enough."""
    if task["cancellation_status"] is not None:
        return
    await tx.conn.execute(
        update(tasks)
        .where(tasks.c.id == task["id"])
        .values(
            cancellation_status=CancellationStatus.REQUESTED,
            cancel_requested_at=tx.now,
            cancel_requested_by=by,
            cancel_reason=reason,
        )
    )
    value = {"by": by, **({"reason": reason} if reason else {})}
    told = ev.Custom(name="run.cancel_requested", value=value)
    await tx.append(task["session_id"], [(task["id"], task["attempt"], told)])


async def cancel(
    tx: Tx, user: User, session: str, run: str | None, reason: str | None
) -> tuple[CancelEffect, list[str]]:
    """Stop a run, or all that is active or waiting in a session: (effect, the runs concerned).

    What waits is cancelled at once; what is active is asked to stop, and its end tells how it went.

    Raises:
        SessionNotFound, RunNotFound.
    """
    await sessions.lock(tx, user, session, assignee_may=True)
    waiting, active = await _standing(tx, session)
    if run is not None:
        waiting = [task for task in waiting if task["id"] == run]
        active = [task for task in active if task["id"] == run]
        if not waiting and not active:
            known = select(tasks.c.id).where(tasks.c.id == run, tasks.c.session_id == session)
            if await tx.conn.scalar(known) is None:
                raise RunNotFound
            return "already_terminal", []
    for task in active:
        await request_cancel(tx, task, user.id, reason)
    for task in sorted(waiting, key=lambda task: task["state"] != TaskState.PAUSED):
        await _cancel_waiting(tx, task, user.id, reason, nested=await _has_open_run(tx, session, task["id"]))
    await _mark_session_cancelled(tx, user, session, run, stopped=bool(waiting), active=bool(active))
    concerned = [task["id"] for task in (*active, *waiting)]
    return ("requested" if concerned else "nothing_to_cancel"), concerned


async def claim(tx: Tx, node: str, agent: str, *, limit: int, per_user: int) -> list[Claim]:
    """Take up to `limit` runs whose turn it is, for `node`: at most one a session, `per_user` a user.

    The limits are kept by locking their gates and counting under the lock.
    """
    candidates = (await tx.conn.execute(_turn().limit(limit))).mappings().all()
    if not candidates:
        return []
    locked = await _lock_gates(tx, candidates)
    mine = [row["id"] for row in candidates if _gates(row) <= locked]
    rows = (await tx.conn.execute(_turn().where(tasks.c.id.in_(mine)))).mappings().all()
    used = await _running_by_user(tx, {row["user_id"] for row in rows})
    claims: list[Claim] = []
    for row in sorted(rows, key=lambda row: row["session_id"]):
        if used.get(row["user_id"], 0) < per_user:
            used[row["user_id"]] = used.get(row["user_id"], 0) + 1
            claims.append(await _start(tx, row, node, agent))
    return claims


async def end(tx: Tx, run: str, attempt: int, end: End) -> str:
    """End a run that is active, or was handed back: close what is open, fold, tell. The final outcome.

    A success whose cancel was requested before is a cancel: what was promised is kept.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    task = (await tx.conn.execute(select(tasks).filter_by(id=run))).mappings().first()
    if task is None:
        raise LeaseLost(f"run {run} is gone")
    await tx.conn.execute(select(sessions_table.c.id).filter_by(id=task["session_id"]).with_for_update())
    task = (await tx.conn.execute(select(tasks).filter_by(id=run).with_for_update())).mappings().one()
    if task["attempt"] != attempt or task["state"] in TERMINAL or task["started_at"] is None:
        raise LeaseLost(f"run {run} attempt {attempt} is over")
    if task["cancellation_status"] is not None and end.outcome in ("success", "interrupted"):
        end = msgspec.structs.replace(end, outcome="cancelled", error=None)
    metadata = await close_message(tx, task, end)
    await _end_task(tx, task, end)
    closing: list[Written] = [(run, attempt, event) for event in end.closing]
    closing += [(run, attempt, event) for event in await actions.close_open(tx, task["session_id"], end.outcome)]
    closing.append((run, attempt, ev.TextMessageEnd(message_id=task["message_id"], metadata=metadata)))
    closing.append((run, attempt, _end_event(tx, task, end)))
    await _settle_session(tx, task, end.outcome)
    await tx.append(task["session_id"], closing)
    await _tell_cancelled(tx, task["session_id"])
    return end.outcome


async def requeue(tx: Tx, run: str, attempt: int, node: str, reason: str) -> None:
    """Hand a run back with its content kept; the next node goes on with it. Spends no attempt.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    task = (await tx.conn.execute(select(tasks).filter_by(id=run).with_for_update())).mappings().first()
    if task is None or (task["attempt"], task["node_id"]) != (attempt, node) or task["state"] in TERMINAL:
        raise LeaseLost(f"run {run} attempt {attempt} is over")
    if task["cancellation_status"] is not None:
        await end(tx, run, attempt, End(outcome="cancelled"))
        return
    place = await tx.conn.scalar(
        select(func.min(tasks.c.place)).where(
            tasks.c.session_id == task["session_id"], tasks.c.state == TaskState.PENDING
        )
    )
    await tx.conn.execute(
        update(tasks)
        .where(tasks.c.id == run)
        .values(state=TaskState.PENDING, node_id=None, place=(place or 0) - 1, last_updated=tx.now)
    )
    told = ev.Custom(name="run.requeued", value={"reason": reason})
    await tx.append(task["session_id"], [(run, attempt, told)])


async def checkpoint(
    tx: Tx, run: str, attempt: int, message: str, tail: str, metadata: dict[str, Any], seq: int
) -> None:
    """Fold what was said through `seq` into the message's row, so that a read stays cheap.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    owned = select(tasks.c.id).where(tasks.c.id == run, tasks.c.attempt == attempt, tasks.c.state.in_(ACTIVE))
    done = await tx.conn.execute(
        update(messages)
        .where(messages.c.id == message, messages.c.content_seq < seq, owned.exists())
        .values(content=messages.c.content + tail, content_seq=seq, metadata=metadata)
    )
    if done.rowcount == 0:
        folded = await tx.conn.scalar(select(messages.c.content_seq).where(messages.c.id == message))
        if folded != seq:  # Else an earlier try was committed after all.
            raise LeaseLost(f"run {run} attempt {attempt} is over")


async def note(tx: Tx, owner: Owner, message: str, event: ev.Custom, key: str) -> list[ev.Recorded]:
    """Tell something of an active run, and keep it as `key` in the metadata of its message.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    await actions.own(tx, owner)
    known = await tx.conn.scalar(select(messages.c.metadata).where(messages.c.id == message))
    await tx.conn.execute(
        update(messages).where(messages.c.id == message).values(metadata={**(known or {}), key: event.value})
    )
    return await tx.append(owner.session, [(owner.run, owner.attempt, event)])


async def _standing(tx: Tx, session: str) -> tuple[list[RowMapping], list[RowMapping]]:
    """The session's tasks that wait, first in line first, and those that are active."""
    statement = (
        select(tasks)
        .where(tasks.c.session_id == session, tasks.c.state.not_in(TERMINAL))
        .order_by(tasks.c.place, tasks.c.id)
        .with_for_update()
    )
    rows = (await tx.conn.execute(statement)).mappings().all()
    return [row for row in rows if row["node_id"] is None], [row for row in rows if row["node_id"] is not None]


def _place(waiting: list[RowMapping], *, first: bool) -> int:
    fresh = [row["place"] for row in waiting if row["started_at"] is None]
    if not fresh:
        return 0
    return min(fresh) - 1 if first else max(fresh) + 1


async def _insert_message(
    tx: Tx, session: str, run: str, message: str, role: str, content: str, seq: int | None = None
) -> None:
    streaming = role == "assistant"
    await tx.conn.execute(
        insert(messages).values(
            id=message,
            session_id=session,
            task_id=run,
            role=role,
            content=content,
            content_seq=0,
            streaming=int(streaming),
            metadata=fresh_metadata(streaming=streaming),
            seq=seq,
            created_at=tx.now,
        )
    )


async def _enqueue(
    tx: Tx, user: User, session: RowMapping, values: dict[str, Any], content: str, waiting: list[RowMapping]
) -> None:
    fresh = [row for row in waiting if row["started_at"] is None]
    if len(fresh) >= MAX_QUEUED:
        raise Overloaded(f"At most {MAX_QUEUED} messages may wait in a session", retry_after_s=1.0)
    task = {
        "executor": "agent",
        "session_id": session["id"],
        "user_id": user.id,
        "state": TaskState.PENDING,
        "priority": 0,
        "attempt": 0,
        "version": 1,
        "created_at": tx.now,
        "last_updated": tx.now,
        **values,
    }
    await tx.conn.execute(insert(tasks).values(**task))
    await _ensure_gate(tx, f"user:{task['user_id']}")
    told = await _touch_session(tx, session, content)
    if values.get("input_message_id") is not None:
        told.insert(0, _queue_changed(tx, user, values, content, fresh))
    if told:
        await tx.append(session["id"], told)


async def enqueue_first(tx: Tx, user: User, session: RowMapping, values: dict[str, Any], owner: str) -> None:
    """A run without a message of its own, of the user `owner`, before all that wait."""
    waiting, _ = await _standing(tx, session["id"])
    first = {**values, "user_id": owner, "place": _place(waiting, first=True)}
    await _enqueue(tx, user, session, first, "", [])


def _queue_changed(tx: Tx, user: User, values: dict[str, Any], content: str, fresh: list[RowMapping]) -> Written:
    line = [(row["place"], row["id"], row["version"]) for row in fresh if row["input_message_id"] is not None]
    order = sorted([*line, (values["place"], values["id"], 1)])
    item = {
        "task": values["id"],
        "version": 1,
        "content": content,
        "by": user.id,
        "created_at": rfc3339(tx.now),
    }
    value = {"items": [item], "order": [{"task": task, "version": version} for _, task, version in order]}
    return None, 0, ev.Custom(name="queue.changed", value=value)


async def _touch_session(tx: Tx, session: RowMapping, content: str) -> list[Written]:
    """A new message: the session is in progress, its cancel is forgotten, an untitled one is named."""
    values: dict[str, Any] = {
        "ui_status": UiStatus.IN_PROGRESS,
        "cancellation_status": None,
        "cancelled_at": None,
        "cancelled_by": None,
        "updated_at": tx.now,
    }
    told: list[Written] = []
    if not session["title"] and (title := " ".join(content.split())[:80]):
        values |= {"title": title, "version": session["version"] + 1}
        changed = ev.Custom(name="session.updated", value={"title": title, "version": values["version"]})
        told = [(None, 0, changed)]
    await tx.conn.execute(update(sessions_table).where(sessions_table.c.id == session["id"]).values(**values))
    return told


async def _ensure_gate(tx: Tx, gate: str) -> None:
    dialect = sqlite if tx.dialect == "sqlite" else postgresql
    await tx.conn.execute(dialect.insert(gates).values(id=gate).on_conflict_do_nothing())


async def _cancel_waiting(tx: Tx, task: RowMapping, by: str, reason: str | None, *, nested: bool) -> None:
    """End what waits. What the user wrote stays in the conversation; a run handed back is closed.

    Runs never lie inside one another: while another one is open (`nested`), the journal only hears
    that the queue is shorter, and the end of that run tells the rest.
    """
    values = {"cancellation_status": CancellationStatus.REQUESTED, "cancel_requested_at": tx.now}
    values |= {"cancel_requested_by": by, "cancel_reason": reason}
    await tx.conn.execute(update(tasks).where(tasks.c.id == task["id"]).values(**values))
    if task["state"] == TaskState.PAUSED:
        await _cancel_paused(tx, task["id"])
        return
    if task["started_at"] is not None:
        closing = await open_spans(tx.conn, task)
        await end(tx, task["id"], task["attempt"], End(outcome="cancelled", closing=closing))
        return
    task = (await tx.conn.execute(select(tasks).filter_by(id=task["id"]))).mappings().one()
    await _end_task(tx, task, End(outcome="cancelled"))
    if nested and task["input_message_id"] is not None:
        left = await queue.read(tx.conn, task["session_id"])
        order = [{"task": item.task, "version": item.version} for item in left]
        told = ev.Custom(name="queue.changed", value={"removed": [task["id"]], "order": order})
        await tx.append(task["session_id"], [(None, 0, told)])
    elif task["input_message_id"] is None:
        await _tell_started_and_ended(tx, task)
    else:
        await _tell_cancelled(tx, task["session_id"])


async def _cancel_paused(tx: Tx, run: str) -> None:
    """End a run that waits for approval: its end was told, so another run tells that it is cancelled."""
    task = (await tx.conn.execute(select(tasks).filter_by(id=run))).mappings().one()
    await tx.conn.execute(
        update(interrupts)
        .where(interrupts.c.task_id == run, interrupts.c.resolved_at.is_(None))
        .values(resolved_at=tx.now, resolved_by=task["cancel_requested_by"], approved=0, note="cancelled")
    )
    await _end_task(tx, task, End(outcome="cancelled"))
    kept = ("executor", "session_id", "user_id", "priority", "place", "cancellation_status", "cancel_reason")
    closing = {name: task[name] for name in (*kept, "cancel_requested_at", "cancel_requested_by")}
    closing |= {"id": new_id(), "parent_task_id": run, "attempt": 0, "version": 1, "state": TaskState.CANCELED}
    closing |= {"cancellation_status": CancellationStatus.CANCELLED}
    moments = ("created_at", "started_at", "ended_at", "last_updated")
    await tx.conn.execute(insert(tasks).values(**closing, **dict.fromkeys(moments, tx.now)))
    task = (await tx.conn.execute(select(tasks).filter_by(id=closing["id"]))).mappings().one()
    await _settle_session(tx, task, "cancelled")
    await _tell_started_and_ended(tx, task)
    await _tell_cancelled(tx, task["session_id"])


async def _has_open_run(tx: Tx, session: str, but: str) -> bool:
    """Whether a run of the session has started and not ended, other than `but`."""
    statement = select(tasks.c.id).where(
        tasks.c.session_id == session,
        tasks.c.id != but,
        tasks.c.started_at.is_not(None),
        tasks.c.state.not_in(TERMINAL),
    )
    return (await tx.conn.execute(statement)).first() is not None


async def _tell_cancelled(tx: Tx, session: str) -> None:
    """Give each message that was cancelled while it waited its place, and its run its start and end."""
    statement = (
        select(tasks)
        .join(messages, messages.c.id == tasks.c.input_message_id)
        .where(
            tasks.c.session_id == session,
            tasks.c.state == TaskState.CANCELED,
            tasks.c.started_at.is_(None),
            messages.c.seq.is_(None),
        )
        .order_by(tasks.c.place, tasks.c.id)
    )
    for task in (await tx.conn.execute(statement)).mappings().all():
        await _tell_started_and_ended(tx, task)


async def _tell_started_and_ended(tx: Tx, task: RowMapping) -> None:
    told: list[ev.Event] = [await _started_event(tx, task, None)]
    if task["input_message_id"] is None:
        told += await actions.close_open(tx, task["session_id"], "cancelled")
    told.append(_end_event(tx, task, End(outcome="cancelled")))
    records = await tx.append(task["session_id"], [(task["id"], 0, event) for event in told])
    await _place_message(tx, task, records[0].seq)


async def _mark_session_cancelled(
    tx: Tx, user: User, session: str, run: str | None, *, stopped: bool, active: bool
) -> None:
    """What a person sees: Requested while something runs, Cancelled when nothing does."""
    if run is not None and not active:
        left = (await tx.conn.execute(_unfinished(session))).first()
        if left is None:
            values = {"ui_status": UiStatus.NEEDS_REVIEW, "updated_at": tx.now}
            await tx.conn.execute(update(sessions_table).filter_by(id=session).values(**values))
        return
    status = CancellationStatus.REQUESTED if active else CancellationStatus.CANCELLED
    row = (await tx.conn.execute(select(sessions_table).filter_by(id=session))).mappings().one()
    if row["cancellation_status"] == status and not stopped:
        return
    values: dict[str, Any] = {"cancellation_status": status, "cancelled_at": tx.now, "cancelled_by": user.id}
    values["updated_at"] = tx.now
    if stopped and not active:
        values["ui_status"] = UiStatus.NEEDS_REVIEW
    await tx.conn.execute(update(sessions_table).filter_by(id=session).values(**values))


def _unfinished(session: str) -> Any:
    return select(tasks.c.id).where(tasks.c.session_id == session, tasks.c.state.not_in(TERMINAL)).limit(1)


def _turn() -> Any:
    """Runs whose turn it is: pending, first of their session, and nothing active before them."""
    other = tasks.alias("other")
    before = or_(other.c.place < tasks.c.place, and_(other.c.place == tasks.c.place, other.c.id < tasks.c.id))
    blocked = (
        select(other.c.id)
        .where(other.c.session_id == tasks.c.session_id)
        .where(
            or_(
                other.c.state.in_(ACTIVE),
                other.c.state == TaskState.PAUSED,
                and_(other.c.state == TaskState.PENDING, before),
            )
        )
    )
    return (
        select(tasks)
        .where(tasks.c.executor == "agent", tasks.c.state == TaskState.PENDING, not_(blocked.exists()))
        .order_by(tasks.c.priority.desc(), tasks.c.id)
    )


def _gates(task: RowMapping) -> set[str]:
    return {f"session:{task['session_id']}", f"user:{task['user_id']}"}


async def _lock_gates(tx: Tx, candidates: Sequence[RowMapping]) -> set[str]:
    """Lock the candidates' gates; those that somebody else holds are left out."""
    wanted = set[str]().union(*(_gates(row) for row in candidates))
    statement = select(gates.c.id).where(gates.c.id.in_(wanted)).order_by(gates.c.id)
    if tx.dialect == "postgresql":
        statement = statement.with_for_update(skip_locked=True, key_share=True)
    return set(await tx.conn.scalars(statement))


async def _running_by_user(tx: Tx, wanted: set[str]) -> dict[str, int]:
    statement = (
        select(tasks.c.user_id, func.count())
        .where(tasks.c.user_id.in_(wanted), tasks.c.node_id.is_not(None), tasks.c.executor == "agent")
        .group_by(tasks.c.user_id)
    )
    return {row[0]: row[1] for row in await tx.conn.execute(statement)}


async def _start(tx: Tx, task: RowMapping, node: str, agent: str) -> Claim:
    """Pending to Claimed to Running, with the events that tell it, in the claim's own transaction."""
    attempt, session, run = task["attempt"] + 1, task["session_id"], task["id"]
    resumed = task["started_at"] is not None
    values = {"state": TaskState.RUNNING, "attempt": attempt, "node_id": node, "last_updated": tx.now}
    if not resumed:
        values["started_at"] = tx.now
    await tx.conn.execute(update(tasks).where(tasks.c.id == run).values(**values))
    if resumed:
        told = ev.Custom(name="run.resumed", value={"attempt": attempt})
        records = await tx.append(session, [(run, attempt, told)])
    else:
        started = await _started_event(tx, task, agent)
        opened = ev.TextMessageStart(
            message_id=task["message_id"], role="assistant", metadata=fresh_metadata(streaming=True)
        )
        records = await tx.append(session, [(run, attempt, started), (run, attempt, opened)])
        await _place_message(tx, task, records[0].seq)
        await _insert_message(tx, session, run, task["message_id"], "assistant", "", records[1].seq)
    return Claim(
        run=run,
        session=session,
        user=task["user_id"],
        attempt=attempt,
        message=task["message_id"],
        prompt=await _prompt(tx, task),
        parent=task["parent_task_id"],
        resumed=resumed,
        head=records[-1].seq,
    )


async def _prompt(tx: Tx, task: RowMapping) -> str:
    if task["input_message_id"] is None:
        return ""
    content = select(messages.c.content).where(messages.c.id == task["input_message_id"])
    return await tx.conn.scalar(content) or ""


async def _started_event(tx: Tx, task: RowMapping, agent: str | None) -> ev.RunStarted:
    session, run = task["session_id"], task["id"]
    said: tuple[ev.UserMessage, ...] = ()
    if task["input_message_id"] is not None:
        said = (ev.UserMessage(task["input_message_id"], await _prompt(tx, task)),)
    metadata: dict[str, Any] = {"attempt": task["attempt"] + 1}
    if agent is not None:
        metadata |= {"message": task["message_id"], "agent": agent}
    return ev.RunStarted(
        thread_id=session,
        run_id=run,
        input=ev.RunInput(session, run, said),
        parent_run_id=task["parent_task_id"] or msgspec.UNSET,
        metadata=metadata,
    )


async def _place_message(tx: Tx, task: RowMapping, seq: int) -> None:
    """Put the user's message into the conversation, at the event that did so."""
    if task["input_message_id"] is not None:
        await tx.conn.execute(
            update(messages)
            .where(messages.c.id == task["input_message_id"])
            .values(seq=seq, created_at=tx.now, task_id=task["id"])
        )


async def close_message(tx: Tx, task: RowMapping, end: End) -> dict[str, Any]:
    """Fold the rest of the content into the row, set the final metadata, and return it."""
    row = (await tx.conn.execute(select(messages).filter_by(id=task["message_id"]))).mappings().one()
    metadata: dict[str, Any] = {**row["metadata"], **end.metadata}
    metadata |= {
        "streaming": False,
        "cancelled": end.outcome == "cancelled",
        "has_error": end.outcome == "failed",
        "interrupted": end.outcome == "interrupted",
    }
    if end.error is not None:
        metadata["error"] = {"code": end.error["code"], "id": end.error["id"]}
    if end.outcome == "cancelled":
        metadata["cancel"] = _cancel_of(tx, task, end)
    tail = end.tail if end.tail is not None else await said_since(tx.conn, row)
    await tx.conn.execute(
        update(messages)
        .where(messages.c.id == row["id"])
        .values(
            content=messages.c.content + tail,
            content_seq=await tx.head(task["session_id"]),
            streaming=0,
            metadata=metadata,
        )
    )
    return metadata


async def said_since(conn: AsyncConnection, message: RowMapping) -> str:
    """The deltas of a message that its row does not hold yet."""
    statement = (
        select(events.c.data)
        .where(
            events.c.session_id == message["session_id"],
            events.c.seq > message["content_seq"],
            events.c.task_id == message["task_id"],
            events.c.type == "TEXT_MESSAGE_CONTENT",
        )
        .order_by(events.c.seq)
    )
    deltas: list[str] = []
    for data in await conn.scalars(statement):
        event = ev.decode(data)
        if isinstance(event, ev.TextMessageContent):
            deltas.append(event.delta)
    return "".join(deltas)


async def open_spans(conn: AsyncConnection, task: RowMapping) -> tuple[ev.Event, ...]:
    """What closes the reasoning span that a run left open, from its journal."""
    statement = (
        select(events.c.data)
        .where(
            events.c.session_id == task["session_id"],
            events.c.task_id == task["id"],
            events.c.type.in_(["REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_END", "REASONING_END"]),
        )
        .order_by(events.c.seq.desc())
        .limit(1)
    )
    data = await conn.scalar(statement)
    match ev.decode(data) if data is not None else None:
        case ev.ReasoningStart(message_id=span) | ev.ReasoningMessageEnd(message_id=span):
            return (ev.ReasoningEnd(message_id=span),)
        case ev.ReasoningMessageStart(message_id=span):
            return ev.ReasoningMessageEnd(message_id=span), ev.ReasoningEnd(message_id=span)
        case _:
            return ()


_END_STATE = {
    "success": TaskState.SUCCESS,
    "cancelled": TaskState.CANCELED,
    "failed": TaskState.FAILURE,
    "interrupted": TaskState.FAILURE,
}


async def _end_task(tx: Tx, task: RowMapping, end: End) -> None:
    values: dict[str, Any] = {
        "state": _END_STATE[end.outcome],
        "node_id": None,
        "ended_at": tx.now,
        "last_updated": tx.now,
    }
    if end.error is not None:
        values |= {"error": {"code": end.error["code"], "id": end.error["id"]}}
        values["failure_reason"] = end.error["message"]
    if end.outcome == "cancelled":
        values["cancellation_status"] = CancellationStatus.CANCELLED
    done = await tx.conn.execute(
        update(tasks)
        .where(tasks.c.id == task["id"], tasks.c.attempt == task["attempt"], tasks.c.state == task["state"])
        .values(**values)
    )
    if done.rowcount == 0:
        raise LeaseLost(f"run {task['id']} attempt {task['attempt']} is over")


def _end_event(tx: Tx, task: RowMapping, end: End) -> ev.RunFinished | ev.RunError:
    if end.outcome in ("failed", "interrupted"):
        error = end.error or {"code": "interrupted", "id": task["id"], "message": "The run was interrupted"}
        told = {"error": {"code": error["code"], "id": error["id"]}}
        return ev.RunError(message=error["message"], code=error["code"], metadata=told)
    metadata: dict[str, Any] = {}
    if end.outcome == "cancelled":
        metadata["cancel"] = _cancel_of(tx, task, end)
    return ev.RunFinished(
        thread_id=task["session_id"],
        run_id=task["id"],
        outcome=ev.Outcome("cancelled" if end.outcome == "cancelled" else "success"),
        usage=end.usage,
        metadata=metadata or msgspec.UNSET,
    )


def _cancel_of(tx: Tx, task: RowMapping, end: End) -> dict[str, Any]:
    """What is told of a cancel: who, why, how long it took, which processes were ended."""
    asked_at = task["cancel_requested_at"]
    took_ms = max(0, round((tx.now - asked_at).total_seconds() * 1000)) if asked_at else 0
    told: dict[str, Any] = {"took_ms": took_ms, "processes": list(end.processes)}
    told |= {"by": task["cancel_requested_by"], "reason": task["cancel_reason"]}
    return {name: value for name, value in told.items() if value is not None}


async def _settle_session(tx: Tx, task: RowMapping, outcome: str) -> None:
    """What a person sees of the session now that a run of it has ended."""
    row = (await tx.conn.execute(select(sessions_table).filter_by(id=task["session_id"]))).mappings().one()
    left = (await tx.conn.execute(_unfinished(task["session_id"]))).first()
    values: dict[str, Any] = {"updated_at": tx.now, "process_pid": None}
    if left is None:
        values["ui_status"] = UiStatus.IDLE if outcome == "success" else UiStatus.NEEDS_REVIEW
    if row["cancellation_status"] == CancellationStatus.REQUESTED:
        values["cancellation_status"] = CancellationStatus.CANCELLED
    await tx.conn.execute(update(sessions_table).filter_by(id=task["session_id"]).values(**values))
