"""The conversation: what is said, what a person is asked, how it ends.

Ctrl-C cancels the run that goes on, or that waits for an answer, and ends the chat when there is none.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from typing import Literal

import httpx2

from holdfast.clock import new_id
from holdfast.terminal.connection import Connection, Frame, Refused
from holdfast.terminal.display import Display, gist

Approve = Literal["ask", "always", "never"]
"""What is answered when an agent wants an approval: what the person says, yes, or no."""

CANCELLED = 130
_ANSWERS = {"y": "yes", "yes": "yes", "a": "always", "always": "always", "n": "no", "no": "no", "": "no"}


class Chat:
    """One session in one terminal. `code` is how the last run of its own ended, as an exit code."""

    def __init__(self, url: str, token: str | None, session: str, approve: Approve) -> None:
        self.connection = Connection(url, token, session, self._take)
        self.code = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.running: str | None = None
        self.questions: asyncio.Queue[tuple[str, Frame]] = asyncio.Queue()
        """What is to be answered: the run that asks, and the interrupt."""
        self._approve: Approve = approve
        self._display = Display()
        self._sent: str | None = None
        self._own: str | None = None
        self._ends: dict[str, int] = {}
        self._went_on: dict[str, str] = {}
        """By run, the one that went on from it; both since the message was sent, whose answer may come later."""
        self._open: dict[str, asyncio.Event] = {}

    async def say(self, content: str) -> None:
        """Send a message, and wait for the end of its run."""
        self.idle.clear()
        self._sent = new_id()
        await self.connection.send({"type": "send", "content": content, "key": self._sent})
        await self.idle.wait()

    async def cancel(self) -> None:
        """Ask all that goes on in the session to stop."""
        await self.connection.send({"type": "cancel", "reason": "Ctrl-C"})

    async def answer(self, run: str, asked: Frame, said: str, reason: str | None = None) -> None:
        """Answer a question: `yes`, `always` or `no`."""
        decision: Frame = {"interruptId": asked["id"], "approved": said != "no"}
        decision |= {"always": True} if said == "always" else {}
        decision |= {"reason": reason} if reason else {}
        await self.connection.send({"type": "approve", "run": run, "decisions": [decision], "key": new_id()})

    def resolved(self, interrupt: str) -> asyncio.Event:
        """Set when a question is answered, here or elsewhere."""
        return self._open.setdefault(interrupt, asyncio.Event())

    async def decide(self, lines: "asyncio.Queue[str | None] | None") -> None:
        """Answer what is asked, for ever; `lines` is where a person types, None when there is none."""
        while True:
            run, asked = await self.questions.get()
            if self.resolved(asked["id"]).is_set():
                continue
            if self._approve != "ask":
                await self.answer(run, asked, "yes" if self._approve == "always" else "no", "holdfast chat --approve")
            elif lines is None:
                await self.answer(run, asked, "no", "Nobody is there to be asked")
            else:
                await self._ask(run, asked, lines)

    async def _ask(self, run: str, asked: Frame, lines: "asyncio.Queue[str | None]") -> None:
        call = asked.get("metadata", asked)  # A question in a snapshot has tool and args itself.
        self._display.note(f"? {call['tool']} {gist(call['args'])}")
        elsewhere = asyncio.ensure_future(self.resolved(asked["id"]).wait())
        try:
            while not elsewhere.done():
                print("  allow? [y]es, [a]lways in this session, [N]o: ", end="", file=sys.stderr, flush=True)
                typed = asyncio.ensure_future(lines.get())
                await asyncio.wait({typed, elsewhere}, return_when=asyncio.FIRST_COMPLETED)
                if not typed.done():
                    typed.cancel()
                    self._display.note("\n  answered elsewhere")
                    return
                line = typed.result()
                said = _ANSWERS.get("no" if line is None else line.strip().lower())
                if said is not None:
                    await self.answer(run, asked, said)
                    return
        finally:
            elsewhere.cancel()

    def _take(self, frame: Frame) -> None:
        match frame["type"]:
            case "ack" if frame["re"] == self._sent:
                self._own = (frame.get("result") or {}).get("run")
                self._settle()
            case "error":
                self._display.note(f"[{frame['code']}: {frame['message']}]")
                if frame["re"] == self._sent:
                    self._end(1)
            case "snapshot":
                self._display.snapshot(frame["messages"])
                self.running = frame["activeRun"]["run"] if frame["activeRun"] else None
                for asked in frame["interrupts"]:
                    self.questions.put_nowait((asked["run"], asked))
            case "events":
                for record in frame["events"]:
                    self._display.event(record["event"])
                    self._follow(record["run"], record["event"])
            case _:
                pass

    def _follow(self, run: str | None, event: Frame) -> None:
        match event["type"]:
            case "RUN_STARTED":
                self.running = run
                if (parent := event.get("parentRunId")) and run:
                    self._went_on[parent] = run
            case "CUSTOM" if event["name"] == "interrupt.resolved":
                self.resolved(event["value"]["id"]).set()
            case "CUSTOM" if event["name"] == "queue.changed":
                self._ends |= dict.fromkeys(event["value"].get("removed") or [], CANCELLED)
                self._settle()
            case "RUN_FINISHED":
                outcome = event.get("outcome") or {}
                if outcome.get("type") == "interrupt":
                    for asked in outcome["interrupts"]:
                        self.questions.put_nowait((str(run), asked))
                    return
                self._ended(run, *_how(event))
            case "RUN_ERROR":
                self._ended(run, 1, f"[{event['code']}: {event['message']}]")
            case _:
                pass

    def _ended(self, run: str | None, code: int, words: str) -> None:
        self._display.end_line()
        if words:
            self._display.note(words)
        if self.running == run:
            self.running = None
        self._ends[run or ""] = code
        self._settle()

    def _settle(self) -> None:
        """See whether the run of the message that was sent has ended, itself or where it went on."""
        last = self._own
        while last in self._went_on:
            last = self._went_on[last]
        if last in self._ends:
            self._end(self._ends[last])

    def _end(self, code: int) -> None:
        self.code = code
        self._own = self._sent = None
        self._ends, self._went_on = {}, {}
        self.idle.set()


def _how(event: Frame) -> tuple[int, str]:
    """The exit code of a run that has ended in order, and what is said about its end."""
    cancel = (event.get("metadata") or {}).get("cancel")
    if not cancel:
        return 0, ""
    ended = cancel.get("processes") or []
    more = f", {len(ended)} {'process' if len(ended) == 1 else 'processes'} ended" if ended else ""
    return CANCELLED, f"[stopped in {cancel['took_ms']} ms{more}]"


async def chat(url: str, token: str | None, session: str | None, message: str | None, approve: Approve) -> int:
    """Chat until the end of the input; with `message`, say that and end after the answer. The exit code."""
    try:
        session = session or await _new_session(url, token)
    except (httpx2.HTTPError, OSError, KeyError) as error:
        print(f"holdfast: {url} cannot be used: {error}", file=sys.stderr)
        return 1
    one = Chat(url, token, session, approve)
    lines = _lines_of_input() if message is None or sys.stdin.isatty() else None
    connection = asyncio.create_task(one.connection.run())
    deciding = asyncio.create_task(one.decide(lines))
    talk = asyncio.create_task(one.say(message) if message is not None else _talk(one, session, lines))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, _interrupted, one, talk)
    try:
        await asyncio.wait({connection, talk}, return_when=asyncio.FIRST_COMPLETED)
        if connection.done():
            with contextlib.suppress(asyncio.CancelledError):
                await connection
    except Refused as error:
        print(f"holdfast: {error}", file=sys.stderr)
        return 1
    finally:
        for task in (connection, talk, deciding):
            task.cancel()
        await asyncio.gather(connection, talk, deciding, return_exceptions=True)
    return one.code if message is not None else 0


async def _new_session(url: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        response = await client.post("/api/sessions", json={})
        response.raise_for_status()
        return str(response.json()["id"])


async def _talk(one: Chat, session: str, lines: "asyncio.Queue[str | None] | None") -> None:
    print(f"[session {session}; end with Ctrl-D]", file=sys.stderr)
    assert lines is not None
    while (line := await lines.get()) is not None:
        if line.strip():
            await one.say(line)


def _lines_of_input() -> "asyncio.Queue[str | None]":
    """The lines of standard input, then None; read by a thread that does not keep the process from ending."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        rest = b""
        with contextlib.suppress(OSError, RuntimeError):  # The loop is closed when the chat has ended.
            while block := os.read(0, 65536):
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    loop.call_soon_threadsafe(lines.put_nowait, line.decode(errors="replace"))
            if rest:
                loop.call_soon_threadsafe(lines.put_nowait, rest.decode(errors="replace"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _interrupted(one: Chat, talk: "asyncio.Task[None]") -> None:
    if one.running or not one.idle.is_set():
        _cancels.add(task := asyncio.ensure_future(one.cancel()))
        task.add_done_callback(_cancels.discard)
    else:
        talk.cancel()


_cancels: set["asyncio.Future[None]"] = set()
