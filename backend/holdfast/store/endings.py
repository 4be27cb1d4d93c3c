"""Runs end: by themselves, with an error, cancelled, interrupted; or they are handed back.

Lock order: see `runs`.
"""

from typing import Any, Literal

import msgspec
from sqlalchemy import RowMapping, case, func, select, update

from holdfast.domain import events as ev
from holdfast.domain.errors import LeaseLost
from holdfast.domain.tasks import TERMINAL, CancellationStatus, TaskState, UiStatus
from holdfast.store import actions, texts
from holdfast.store.connection import Connection
from holdfast.store.database import Tx, Written
from holdfast.store.tables import events, messages, tasks
from holdfast.store.tables import sessions as sessions_table


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


async def end(tx: Tx, run: str, attempt: int, end: End) -> str:
    """End a run that is active, or was handed back: close what is open, fold, tell. The final outcome.

    A success whose cancel was requested before is a cancel: what was promised is kept.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    task = (await tx.conn.execute(select(tasks).filter_by(id=run))).mappings().first()
    if task is None:
        raise LeaseLost(f"run {run} is gone")
    if tx.dialect == "postgresql":  # On SQLite nobody else can write before this transaction is over.
        await tx.conn.execute(select(sessions_table.c.id).filter_by(id=task["session_id"]).with_for_update())
        task = (await tx.conn.execute(select(tasks).filter_by(id=run).with_for_update())).mappings().one()
    if task["attempt"] != attempt or task["state"] in TERMINAL or task["started_at"] is None:
        raise LeaseLost(f"run {run} attempt {attempt} is over")
    if task["cancellation_status"] is not None and end.outcome in ("success", "interrupted"):
        end = msgspec.structs.replace(end, outcome="cancelled", error=None)
    metadata = await close_message(tx, task, end)
    await end_task(tx, task, end)
    closing: list[Written] = [(run, attempt, event) for event in end.closing]
    closing += [(run, attempt, event) for event in await actions.close_open(tx, task["session_id"], end.outcome)]
    closing.append((run, attempt, ev.TextMessageEnd(message_id=task["message_id"], metadata=metadata)))
    closing.append((run, attempt, _end_event(tx, task, end)))
    await settle_session(tx, task, end.outcome)
    await tx.append(task["session_id"], closing)
    await tell_cancelled(tx, task["session_id"])
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


async def tell_cancelled(tx: Tx, session: str) -> None:
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
        await tell_started_and_ended(tx, task)


async def tell_started_and_ended(tx: Tx, task: RowMapping) -> None:
    """The start and the cancelled end of a run that never ran, and the results of what it was to carry out."""
    told: list[ev.Event] = [texts.started_event(task, await texts.prompt_of(tx, task), None)]
    if task["input_message_id"] is None:
        told += await actions.close_open(tx, task["session_id"], "cancelled")
    told.append(_end_event(tx, task, End(outcome="cancelled")))
    records = await tx.append(task["session_id"], [(task["id"], 0, event) for event in told])
    await texts.take_place(tx, task, records[0].seq)


def unfinished(session: str) -> Any:
    """A query that finds one task of a session that has not ended."""
    return select(tasks.c.id).where(tasks.c.session_id == session, tasks.c.state.not_in(TERMINAL)).limit(1)


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
    tail = end.tail if end.tail is not None else await texts.tail(tx.conn, row["id"])
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


async def open_spans(conn: Connection, task: RowMapping) -> tuple[ev.Event, ...]:
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


async def end_task(tx: Tx, task: RowMapping, end: End) -> None:
    """The end in the row of the task.

    Raises:
        LeaseLost: the task is not in the state and attempt that `task` has.
    """
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


async def settle_session(tx: Tx, task: RowMapping, outcome: str) -> None:
    """What a person sees of the session now that a run of it has ended."""
    status = sessions_table.c.cancellation_status
    requested = status == CancellationStatus.REQUESTED
    rests = UiStatus.IDLE if outcome == "success" else UiStatus.NEEDS_REVIEW
    values: dict[str, Any] = {
        "updated_at": tx.now,
        "process_pid": None,
        "kill_failures": 0,
        "ui_status": case((unfinished(task["session_id"]).exists(), sessions_table.c.ui_status), else_=rests),
        "cancellation_status": case((requested, CancellationStatus.CANCELLED), else_=status),
    }
    await tx.conn.execute(update(sessions_table).filter_by(id=task["session_id"]).values(**values))
