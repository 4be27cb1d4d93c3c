"""Actions: begun, ended, closed; each step is committed with the events that tell it."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import delete, func, insert, select, update

from holdfast.clock import new_id
from holdfast.domain import events as ev
from holdfast.domain.actions import newest
from holdfast.domain.errors import LeaseLost
from holdfast.domain.tasks import ACTIVE
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.tables import actions, events, processes, sessions, tasks

ARGUMENT_CHARS = 16 * 1024
"""The most of an action's arguments that one event carries."""

Status = Literal["success", "error", "cancelled"]
ActionOutcome = Literal["success", "failed", "denied", "cancelled", "interrupted"]


class Begun(msgspec.Struct, frozen=True):
    """An action that is to begin: `offset` characters of its message's text stand before it."""

    id: str
    name: str
    args: dict[str, Any]
    offset: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How an action ended.

    `extra` goes into `metadata.action` (link, diff, exit_code, bytes ...); `args` is what was really called
    when a person has edited it; `live` is all that was told while it ran.
    """

    output: str
    status: Status
    outcome: ActionOutcome
    extra: dict[str, Any] = {}
    args: dict[str, Any] | None = None
    live: str = ""


class Owner(msgspec.Struct, frozen=True):
    """The run that acts, in the attempt that may."""

    session: str
    run: str
    attempt: int


async def begin(
    tx: Tx, owner: Owner, message: str, begun: Begun, mark: dict[str, Any] | None = None
) -> tuple[str, list[ev.Recorded]] | None:
    """A pending action, committed before its tool starts: (its id, the events); None when the run is to stop.

    Its id is the one asked for, unless the session has it already. `mark` is the row of the process that
    it is going to start.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    if await own(tx, owner):
        return None
    name, records = await _insert(tx, owner, message, begun)
    if mark is not None:
        await tx.conn.execute(insert(processes).values(**mark, action_id=name, created_at=tx.now))
    return name, records


async def finish(tx: Tx, owner: Owner, action: str, result: Result) -> list[ev.Recorded]:
    """The one result of an action that is pending; what is known of its processes goes.

    Raises:
        LeaseLost: the run is not active in this attempt, or the action has a result.
    """
    mine = (processes.c.task_id == owner.run, processes.c.action_id == action)
    if (await tx.conn.execute(delete(processes).where(*mine))).rowcount:
        await tx.conn.execute(
            update(sessions).where(sessions.c.id == owner.session).values(process_pid=None, kill_failures=0)
        )
    await own(tx, owner)
    values = _values(tx, result)
    done = await tx.conn.execute(
        update(actions)
        .where(actions.c.session_id == owner.session, actions.c.id == action, actions.c.status == "pending")
        .values(**values)
    )
    if done.rowcount == 0:
        raise LeaseLost(f"action {action} has a result")
    return await tx.append(owner.session, [(owner.run, owner.attempt, result_event(action, result))])


async def record(tx: Tx, owner: Owner, message: str, begun: Begun, result: Result) -> list[ev.Recorded] | None:
    """An action that is over as soon as it begins, such as one that is refused; None when the run is to stop.

    Raises:
        LeaseLost: the run is not active in this attempt.
    """
    if await own(tx, owner):
        return None
    name, records = await _insert(tx, owner, message, begun)
    return records + await finish(tx, owner, name, result)


async def close_open(tx: Tx, session: str, outcome: str) -> list[ev.Event]:
    """Give every action of a session that has no result one, for a run that ends so; the events to tell it.

    What a run has left when it did not stop by itself may have done anything: that is said.
    """
    status: Status = "cancelled" if outcome == "cancelled" else "error"
    told: ActionOutcome = "cancelled" if outcome == "cancelled" else "interrupted"
    words = "It was stopped" if outcome == "cancelled" else "It was cut off; whether it had an effect is not known"
    statement = select(actions).where(actions.c.session_id == session, actions.c.status == "pending")
    found: list[ev.Event] = []
    for row in (await tx.conn.execute(statement.order_by(actions.c.seq, actions.c.position))).mappings().all():
        live = await live_of(tx.conn, session, row["id"], row["seq"])
        said = f"{live.rstrip()}\n({words})" if live else words
        result = Result(output=said, status=status, outcome=told, live=live)
        await tx.conn.execute(
            update(actions)
            .where(actions.c.id == row["id"], actions.c.message_id == row["message_id"])
            .values(**_values(tx, result))
        )
        found.append(result_event(row["id"], result))
    return found


async def pending(tx: Tx, owner: Owner, message: str, begun: Sequence[Begun]) -> tuple[list[str], list[ev.Event]]:
    """Actions that wait for a person, behind what the caller tells: (their ids, the events to tell)."""
    names: list[str] = []
    told: list[ev.Event] = []
    seq = await tx.head(owner.session)
    for one in begun:
        name = await _free_id(tx, owner.session, one.id)
        await _insert_row(tx, owner, message, one, name, seq + 1)
        names.append(name)
        told += _events(message, one, name)
    return names, told


async def live_of(conn: Connection, session: str, action: str, seq: int) -> str:
    """What an action that began at `seq` has told so far, the newest of it."""
    statement = (
        select(events.c.data)
        .where(events.c.session_id == session, events.c.seq > seq, events.c.type == "CUSTOM")
        .order_by(events.c.seq)
    )
    parts: list[str] = []
    for data in await conn.scalars(statement):
        event = ev.decode(data)
        if isinstance(event, ev.Custom) and event.name == "action.output" and event.value.get("toolCallId") == action:
            parts.append(event.value.get("text", ""))
    return newest("".join(parts))


async def find(conn: Connection, session: str, action: str) -> bool:
    """Whether a session has an action of this id."""
    known = select(actions.c.id).where(actions.c.session_id == session, actions.c.id == action)
    return await conn.scalar(known) is not None


async def own(tx: Tx, owner: Owner) -> bool:
    """Make sure that the run may act, for the rest of the transaction; whether it is asked to stop.

    Raises:
        LeaseLost: it is not active in this attempt.
    """
    statement = (
        select(tasks.c.cancellation_status)
        .where(tasks.c.id == owner.run, tasks.c.attempt == owner.attempt, tasks.c.state.in_(ACTIVE))
        .with_for_update(key_share=True)
    )
    row = (await tx.conn.execute(statement)).first()
    if row is None:
        raise LeaseLost(f"run {owner.run} attempt {owner.attempt} is over")
    return row[0] is not None


def result_event(action: str, result: Result) -> ev.ToolCallResult:
    """The event that tells a result."""
    said: dict[str, Any] = {"status": result.status, "outcome": result.outcome, **result.extra}
    if result.args is not None:
        said["input"] = result.args
    return ev.ToolCallResult(
        message_id=f"{action}:result", tool_call_id=action, content=result.output, metadata={"action": said}
    )


def _values(tx: Tx, result: Result) -> dict[str, Any]:
    values: dict[str, Any] = {
        "output": result.output,
        "status": result.status,
        "outcome": result.outcome,
        "extra": result.extra or None,
        "live": result.live,
        "ended_at": tx.now,
    }
    return values if result.args is None else {**values, "input": result.args}


async def _insert(tx: Tx, owner: Owner, message: str, begun: Begun) -> tuple[str, list[ev.Recorded]]:
    name = await _free_id(tx, owner.session, begun.id)
    told = [(owner.run, owner.attempt, event) for event in _events(message, begun, name)]
    records = await tx.append(owner.session, told)
    await _insert_row(tx, owner, message, begun, name, records[0].seq)
    return name, records


async def _insert_row(tx: Tx, owner: Owner, message: str, begun: Begun, name: str, seq: int) -> None:
    position = await tx.conn.scalar(select(func.count()).select_from(actions).where(actions.c.message_id == message))
    await tx.conn.execute(
        insert(actions).values(
            id=name,
            message_id=message,
            session_id=owner.session,
            seq=seq,
            type=begun.name,
            position=position,
            offset=begun.offset,
            input=begun.args,
            live="",
            status="pending",
            started_at=tx.now,
        )
    )


async def _free_id(tx: Tx, session: str, wanted: str) -> str:
    return new_id() if await find(tx.conn, session, wanted) else wanted


def _events(message: str, begun: Begun, name: str) -> list[ev.Event]:
    metadata = {"action": {"status": "pending"}, "offset": begun.offset}
    args = msgspec.json.encode(begun.args).decode()
    pieces = [args[start : start + ARGUMENT_CHARS] for start in range(0, len(args), ARGUMENT_CHARS)]
    return [
        ev.ToolCallStart(tool_call_id=name, tool_call_name=begun.name, parent_message_id=message, metadata=metadata),
        *(ev.ToolCallArgs(tool_call_id=name, delta=piece) for piece in pieces),
        ev.ToolCallEnd(tool_call_id=name),
    ]
