"""Runs are claimed: the next of each session, within the limits (see `gates`).

Lock order: see `runs`.
"""

from typing import NamedTuple

import msgspec
from sqlalchemy import RowMapping

from holdfast.domain import events as ev
from holdfast.domain.transcript import fresh_metadata
from holdfast.store import gates, texts
from holdfast.store.database import Tx


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
    node: str = ""
    waited_s: float = 0.0
    traceparent: str | None = None

    @property
    def task(self) -> str:
        """The run as the engine knows all its tasks."""
        return self.run


class Claims(NamedTuple):
    """Runs that were claimed, and whether to come again at once."""

    runs: list[Claim]
    again: bool


async def claim(tx: Tx, node: str, agent: str, *, limit: int, per_user: int) -> Claims:
    """Take up to `limit` runs whose turn it is, for `node`: at most one a session, `per_user` a user."""
    taken = await gates.take(tx, "agent", node, limit=limit, default=per_user)
    in_order = sorted(taken.tasks, key=lambda row: row["session_id"])
    return Claims([await _start(tx, row, node, agent) for row in in_order], taken.again)


async def _start(tx: Tx, task: RowMapping, node: str, agent: str) -> Claim:
    """Tell that a run has started, or goes on, in the claim's own transaction; `task` is its row before."""
    attempt, session, run = task["attempt"] + 1, task["session_id"], task["id"]
    resumed = task["started_at"] is not None
    prompt = await texts.prompt_of(tx, task)
    if resumed:
        told = ev.Custom(name="run.resumed", value={"attempt": attempt})
        records = await tx.append(session, [(run, attempt, told)])
    else:
        started = texts.started_event(task, prompt, agent)
        opened = ev.TextMessageStart(
            message_id=task["message_id"], role="assistant", metadata=fresh_metadata(streaming=True)
        )
        records = await tx.append(session, [(run, attempt, started), (run, attempt, opened)])
        await texts.take_place(tx, task, records[0].seq)
        await texts.insert_one(tx, session, run, task["message_id"], "assistant", "", records[1].seq)
    return Claim(
        run=run,
        session=session,
        user=task["user_id"],
        attempt=attempt,
        message=task["message_id"],
        prompt=prompt,
        parent=task["parent_task_id"],
        resumed=resumed,
        head=records[-1].seq,
        node=node,
        waited_s=max(0.0, (tx.now - task["last_updated"]).total_seconds()),
        traceparent=task["traceparent"],
    )
