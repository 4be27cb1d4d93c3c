"""Follows sessions of an engine in this process, through the hub, as a socket does."""

import asyncio
import json
from typing import Any

from holdfast.domain.transcript import Transcript
from holdfast.engine.engine import Engine
from holdfast.engine.hub import Subscription
from holdfast.store import transcripts
from holdfast.store.tables import events, tasks
from sqlalchemy import select

Record = dict[str, Any]


class Follower:
    """A subscriber; `records` is what it has seen."""

    def __init__(self, engine: Engine, session: str, after: int = 0) -> None:
        self.engine = engine
        self.session = session
        self.records: list[Record] = []
        self._news = asyncio.Event()
        self.subscription = engine.hub.subscribe(session, after, self._woken)

    def _woken(self, _: Subscription) -> None:
        self._news.set()

    async def until(self, wanted: Any, seconds: float = 20.0) -> Record:
        """Read until a record is wanted; it."""
        seen = 0
        async with asyncio.timeout(seconds):
            while True:
                for record in self.records[seen:]:
                    if wanted(record):
                        return record
                seen = len(self.records)
                self._news.clear()
                items = await self.engine.hub.next_items(self.subscription)
                if items:
                    self.records += [json.loads(item) for item in items]
                elif not self.subscription.live:
                    self.subscription.live = True
                elif not self.subscription.dirty:
                    await self._news.wait()

    async def until_end(self, run: str, seconds: float = 20.0) -> Record:
        """Read until the end of a run."""
        ends = ("RUN_FINISHED", "RUN_ERROR")
        return await self.until(lambda r: r["run"] == run and r["event"]["type"] in ends, seconds)

    async def until_said(self, text: str, seconds: float = 20.0) -> Record:
        """Read until a delta is exactly `text`."""
        return await self.until(lambda r: r["event"].get("delta") == text, seconds)

    def text(self) -> str:
        """All text seen."""
        return "".join(r["event"]["delta"] for r in self.records if r["event"]["type"] == "TEXT_MESSAGE_CONTENT")

    def close(self) -> None:
        """Stop following."""
        self.engine.hub.unsubscribe(self.subscription)


async def stored(engine: Engine, session: str) -> list[Record]:
    """All events of a session, from the store."""
    async with engine.database.read() as conn:
        rows = await conn.execute(
            select(events.c.seq, events.c.task_id, events.c.data)
            .where(events.c.session_id == session)
            .order_by(events.c.seq)
        )
        return [{"seq": row[0], "run": row[1], "event": json.loads(row[2])} for row in rows]


async def state_of(engine: Engine, run: str) -> str:
    """The state of a task."""
    async with engine.database.read() as conn:
        return str(await conn.scalar(select(tasks.c.state).where(tasks.c.id == run)))


def assert_whole(records: list[Record]) -> None:
    """A journal in which everything that was opened is closed, in order, and each run ends once.

    An action has exactly one result, by the end of its run; one that a person is asked about may have it in
    a run that goes on from that one.
    """
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    open_: dict[str, str] = {}
    started: set[str] = set()
    ended: set[str] = set()
    acting: dict[str, str] = {}
    asked: dict[str, str] = {}
    parents: dict[str, str] = {}
    done: set[str] = set()
    pairs = {"TEXT_MESSAGE_END": "TEXT_MESSAGE_START", "REASONING_END": "REASONING_START"}
    pairs["REASONING_MESSAGE_END"] = "REASONING_MESSAGE_START"
    for record in records:
        event, run = record["event"], str(record["run"])
        kind = event["type"]
        if record["run"] is not None:
            assert run not in ended or kind == "CUSTOM", f"{kind} after the end of its run"
        if kind == "RUN_STARTED":
            assert run not in started
            started.add(run)
            parents[run] = str(event.get("parentRunId"))
        elif kind in pairs.values():
            open_[f"{kind} {event['messageId']}"] = run
        elif kind in pairs:
            assert open_.pop(f"{pairs[kind]} {event['messageId']}", None) == run
        elif kind == "TOOL_CALL_START":
            assert event["toolCallId"] not in acting.keys() | done
            acting[event["toolCallId"]] = run
        elif kind == "TOOL_CALL_RESULT":
            owner = acting.pop(event["toolCallId"])
            assert owner in (run, parents.get(run)), "a result of somebody else's action"
            done.add(event["toolCallId"])
            asked.pop(event["toolCallId"], None)
        elif kind in ("RUN_FINISHED", "RUN_ERROR"):
            assert run not in open_.values(), f"{open_} is open at the end"
            questions = [each["toolCallId"] for each in (event.get("outcome") or {}).get("interrupts", [])]
            asked |= dict.fromkeys(questions, run)
            left = {each for each, owner in acting.items() if owner in (run, parents[run])}
            assert left == set(questions), f"{left} have no result at the end of their run"
            ended.add(run)
    assert started == ended, "every run that started has its end"
    assert acting == asked, "an action without a result is one that a person is asked about"


async def same_as_fold(engine: Engine, session: str) -> None:
    """The snapshot that a client is given is the fold of the journal up to the same place."""
    from_rows = (await transcripts.load(engine.database, session, 1)).transcript
    folded = Transcript(session)
    folded.apply_all(await engine.journal.read(session, 0, from_rows.seq))
    assert from_rows.seq == folded.seq
    assert from_rows.snapshot() == folded.snapshot()
