"""Runs are cancelled: asked to stop when active, ended at once when they wait.

Lock order: see `runs`.
"""

from typing import Any, Literal

from sqlalchemy import RowMapping, insert, select, update

from holdfast.clock import new_id
from holdfast.domain import events as ev
from holdfast.domain.errors import RunNotFound
from holdfast.domain.tasks import TERMINAL, CancellationStatus, TaskState, UiStatus
from holdfast.domain.users import User
from holdfast.store import endings, queue, sessions
from holdfast.store.database import Tx
from holdfast.store.endings import End
from holdfast.store.tables import interrupts, tasks
from holdfast.store.tables import sessions as sessions_table

CancelEffect = Literal["requested", "already_terminal", "nothing_to_cancel"]


async def request_cancel(tx: Tx, task: RowMapping, by: str, reason: str | None) -> None:
    """Write down that an active task is to stop; once is enough. A run's journal tells it."""
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
    if task["session_id"] is None:
        return
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
    waiting, active = await queue.standing(tx, session)
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
        await cancel_waiting(tx, task, user.id, reason, nested=await _has_open_run(tx, session, task["id"]))
    await _mark_session_cancelled(tx, user, session, run, stopped=bool(waiting), active=bool(active))
    concerned = [task["id"] for task in (*active, *waiting)]
    return ("requested" if concerned else "nothing_to_cancel"), concerned


async def cancel_waiting(tx: Tx, task: RowMapping, by: str, reason: str | None, *, nested: bool) -> None:
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
        closing = await endings.open_spans(tx.conn, task)
        await endings.end(tx, task["id"], task["attempt"], End(outcome="cancelled", closing=closing))
        return
    task = (await tx.conn.execute(select(tasks).filter_by(id=task["id"]))).mappings().one()
    await endings.end_task(tx, task, End(outcome="cancelled"))
    if nested and task["input_message_id"] is not None:
        left = await queue.read(tx.conn, task["session_id"])
        order = [{"task": item.task, "version": item.version} for item in left]
        told = ev.Custom(name="queue.changed", value={"removed": [task["id"]], "order": order})
        await tx.append(task["session_id"], [(None, 0, told)])
    elif task["input_message_id"] is None:
        await endings.tell_started_and_ended(tx, task)
    else:
        await endings.tell_cancelled(tx, task["session_id"])


async def _cancel_paused(tx: Tx, run: str) -> None:
    """End a run that waits for approval: its end was told, so another run tells that it is cancelled."""
    task = (await tx.conn.execute(select(tasks).filter_by(id=run))).mappings().one()
    await tx.conn.execute(
        update(interrupts)
        .where(interrupts.c.task_id == run, interrupts.c.resolved_at.is_(None))
        .values(resolved_at=tx.now, resolved_by=task["cancel_requested_by"], approved=0, note="cancelled")
    )
    await endings.end_task(tx, task, End(outcome="cancelled"))
    kept = ("executor", "session_id", "user_id", "priority", "place", "cancellation_status", "cancel_reason")
    closing = {name: task[name] for name in (*kept, "cancel_requested_at", "cancel_requested_by")}
    closing |= {"id": new_id(), "parent_task_id": run, "attempt": 0, "version": 1, "state": TaskState.CANCELED}
    closing |= {"cancellation_status": CancellationStatus.CANCELLED}
    moments = ("created_at", "started_at", "ended_at", "last_updated")
    await tx.conn.execute(insert(tasks).values(**closing, **dict.fromkeys(moments, tx.now)))
    task = (await tx.conn.execute(select(tasks).filter_by(id=closing["id"]))).mappings().one()
    await endings.settle_session(tx, task, "cancelled")
    await endings.tell_started_and_ended(tx, task)
    await endings.tell_cancelled(tx, task["session_id"])


async def _has_open_run(tx: Tx, session: str, but: str) -> bool:
    """Whether a run of the session has started and not ended, other than `but`."""
    statement = select(tasks.c.id).where(
        tasks.c.session_id == session,
        tasks.c.id != but,
        tasks.c.started_at.is_not(None),
        tasks.c.state.not_in(TERMINAL),
    )
    return (await tx.conn.execute(statement)).first() is not None


async def _mark_session_cancelled(
    tx: Tx, user: User, session: str, run: str | None, *, stopped: bool, active: bool
) -> None:
    """What a person sees: Requested while something runs, Cancelled when nothing does."""
    if run is not None and not active:
        left = (await tx.conn.execute(endings.unfinished(session))).first()
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
