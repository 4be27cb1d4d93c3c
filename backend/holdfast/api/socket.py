"""One WebSocket: reads commands, writes what its subscriptions are behind.

An idle socket is one waiting task. Commands are carried out in order by a second task that lives
while there are any, and a third writes while there is something to write: control frames first, then
from each subscription that was woken what lies after its cursor.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from holdfast import tracing
from holdfast.api import problems
from holdfast.api.auth import Authenticator, offered
from holdfast.api.bodies import unstorable
from holdfast.api.bucket import Bucket
from holdfast.clock import is_id, new_id
from holdfast.config import Settings
from holdfast.context import about
from holdfast.domain import frames
from holdfast.domain.cursors import Cursor, snapshot_reason
from holdfast.domain.errors import (
    Forbidden,
    HelloRequired,
    HoldfastError,
    InvalidFrame,
    Overloaded,
    RateLimited,
    SessionNotFound,
    TooLarge,
    Unavailable,
    UnsupportedVersion,
)
from holdfast.domain.users import User
from holdfast.engine.engine import Engine
from holdfast.engine.hub import Subscription
from holdfast.store import sessions, transcripts
from holdfast.store.approvals import Decision

log = logging.getLogger("holdfast.socket")

HEARTBEAT_MS = 25_000
_PATIENCE_S = 0.5
"""How long a peer may not read before the recent windows keep nothing for it."""

_ABUSE = 10
"""How many seconds' worth of refused commands in a row close the socket."""


class Closed(Exception):
    """The socket is to be closed with this code."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True, frozen=True, eq=False)
class _Snapshot:
    """One that a subscription still needs: why, and when it has been read."""

    reason: str
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class Sockets:
    """All sockets of this process: how many a user has, and how they are told of a restart."""

    def __init__(self, engine: Engine, authenticator: Authenticator, settings: Settings) -> None:
        self.engine = engine
        self.authenticator = authenticator
        self.settings = settings
        self._open: dict[str, set[Connection]] = {}
        self.count = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI endpoint of `/ws`."""
        websocket = WebSocket(scope, receive, send)
        await websocket.receive()  # websocket.connect
        protocol = offered(websocket)
        if protocol is None:
            await _refuse(send)
            return
        await websocket.accept(protocol or None)
        try:
            user = await self.authenticator.identify(websocket)
        except HoldfastError as error:
            code = {"unauthenticated": 4401, "forbidden": 4403}.get(error.code, problems.CLOSE_RESTART)
            await _close(websocket, code, error.message)
            return
        connection = Connection(self, user, scope, receive, send)
        mine = self._open.setdefault(user.id, set())
        if len(mine) >= self.settings.sockets or self.draining:
            code = problems.CLOSE_RESTART if self.draining else problems.CLOSE_TOO_FAST
            await _close(websocket, code, "too many sockets")
            return
        mine.add(connection)
        self.count += 1
        try:
            await connection.run()
        finally:
            self.count -= 1
            mine.discard(connection)
            if not mine:
                self._open.pop(user.id, None)

    async def drain(self) -> None:
        """Tell every client that this node restarts, and close."""
        self.draining = True
        everyone = [connection for mine in self._open.values() for connection in mine]
        await asyncio.gather(*(connection.go_away() for connection in everyone), return_exceptions=True)


class Connection:
    """One accepted socket of one user."""

    __slots__ = (
        "__weakref__",
        "_abort",
        "_bucket",
        "_closing",
        "_commands",
        "_engine",
        "_outbox",
        "_processor",
        "_ready",
        "_receive",
        "_send",
        "_settings",
        "_snapshots",
        "_subscriptions",
        "_user",
        "_writable",
        "_writer",
        "id",
    )

    def __init__(self, sockets: Sockets, user: User, scope: Scope, receive: Receive, send: Send) -> None:
        self.id = new_id()
        self._engine = sockets.engine
        self._settings = sockets.settings
        self._user = user
        self._receive = receive
        self._send = send
        self._abort: Any = scope.get("state", {}).get("abort")
        self._writable: asyncio.Event | None = scope.get("state", {}).get("writable")
        self._bucket = Bucket(self._settings.commands_per_second, self._engine.clock.monotonic())
        self._subscriptions: dict[str, Subscription] = {}
        self._snapshots: dict[Subscription, _Snapshot] = {}
        self._ready: dict[Subscription, None] = {}
        self._outbox: deque[str] = deque()
        self._commands: deque[frames.ClientFrame] = deque()
        self._processor: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._closing: Closed | None = None

    async def run(self) -> None:
        """Serve the socket until it ends; leaves nothing behind."""
        try:
            await self._greet()
            while True:
                self._take(await self._text())
        except Closed as closed:
            await self._say_goodbye(closed)
        except _Gone:
            pass
        except Exception as error:
            fault = problems.internal(error)
            self._put(frames.error(None, fault))
            await self._say_goodbye(Closed(problems.CLOSE_INTERNAL, fault.message))
        finally:
            for subscription in self._subscriptions.values():
                self._engine.hub.unsubscribe(subscription)
            tasks = [task for task in (self._processor, self._writer) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def go_away(self) -> None:
        """Tell the client to come back, and close with 1012."""
        self._put(frames.goaway("restart", 500))
        await self._say_goodbye(Closed(problems.CLOSE_RESTART, "restart"))

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(self._settings.hello_timeout_s):
                text = await self._text()
        except TimeoutError:
            raise Closed(problems.CLOSE_HELLO_TIMEOUT, "no hello") from None
        try:
            frame = frames.decode(text)
        except frames.BadFrame as error:
            raise Closed(problems.CLOSE_BAD_FRAME, str(error)) from None
        except HoldfastError as error:
            self._put(frames.error(frames.frame_id(text), error))
            raise Closed(problems.CLOSE_BAD_FRAME, error.code) from None
        if not isinstance(frame, frames.Hello):
            self._put(frames.error(frame.id, HelloRequired()))
            raise Closed(problems.CLOSE_BAD_FRAME, "hello_required")
        if frame.protocol.partition(".")[0] != "1":
            self._put(frames.error(frame.id, UnsupportedVersion("This server speaks protocol 1.0", field="protocol")))
            raise Closed(problems.CLOSE_VERSION, "unsupported_version")
        settings = self._settings
        limits = {
            "frameBytes": settings.frame_bytes,
            "contentBytes": settings.content_bytes,
            "subscriptions": settings.subscriptions,
            "commandsPerSecond": settings.commands_per_second,
            "inFlight": settings.in_flight,
            "sockets": settings.sockets,
        }
        self._put(frames.welcome(frame.id, self.id, HEARTBEAT_MS, limits))

    def _take(self, text: str) -> None:
        """One frame: answer it at once when it is refused or a ping, else put it in line."""
        try:
            frame = frames.decode(text)
        except frames.BadFrame as error:
            raise Closed(problems.CLOSE_BAD_FRAME, str(error)) from None
        except HoldfastError as error:
            self._refuse(frames.frame_id(text), error)
            return
        wait_s = self._bucket.take(self._engine.clock.monotonic())
        if wait_s:
            if self._bucket.refused > self._settings.commands_per_second * _ABUSE:
                raise Closed(problems.CLOSE_TOO_FAST, "too many commands")
            self._refuse(frame.id, RateLimited(retry_after_s=wait_s))
        elif isinstance(frame, frames.Ping):
            self._put(frames.pong(frame.id))
        elif len(self._commands) >= self._settings.in_flight:
            self._refuse(frame.id, Overloaded("Too many commands in flight", retry_after_s=1.0))
        else:
            self._commands.append(frame)
            if self._processor is None:
                self._processor = asyncio.create_task(self._process())

    def _refuse(self, re: str | None, error: HoldfastError) -> None:
        if len(self._outbox) > self._settings.in_flight * 4:
            raise Closed(problems.CLOSE_TOO_FAST, "answers are not read")
        self._put(frames.error(re, error))

    async def _process(self) -> None:
        """Carry out the commands in line, in order."""
        try:
            while self._commands:
                frame = self._commands[0]
                kind = str(frame.__struct_config__.tag)
                session = getattr(frame, "session", None)
                names = {"session": session, "user": self._user.id}
                try:
                    with about(**names), tracing.span(f"frame {kind}", **names):
                        self._put(await self._answer(frame))
                except HoldfastError as error:
                    self._put(frames.error(frame.id, error))
                except Exception as error:
                    self._put(frames.error(frame.id, problems.internal(error)))
                self._commands.popleft()
        finally:
            self._processor = None

    async def _answer(self, frame: frames.ClientFrame) -> str:
        engine, user = self._engine, self._user
        match frame:
            case frames.Subscribe():
                return await self._subscribe(frame)
            case frames.Unsubscribe(session=session):
                self._unsubscribe(session)
                return frames.ack(frame.id, {})
            case frames.Send():
                content = checked_content(frame.content, self._settings.content_bytes)
                await self._follows(frame.session)
                sent, dup, at = await engine.send(user, frame.session, content, key=frame.key, if_busy=frame.if_busy)
                return frames.ack(frame.id, sent, dup=dup, at=at)
            case frames.Cancel():
                effect, runs, at = await engine.cancel(user, frame.session, frame.run, frame.reason)
                return frames.ack(frame.id, {"effect": effect, "runs": runs}, at=at)
            case frames.Queue():
                items, at = await self._change_queue(frame)
                return frames.ack(frame.id, {"queue": items}, at=at)
            case frames.Approve():
                decisions = [checked_decision(decision) for decision in frame.decisions]
                run, dup, at = await engine.decide(user, frame.session, frame.run, decisions, key=frame.key)
                return frames.ack(frame.id, {"run": run}, dup=dup, at=at)
            case frames.Hello():
                raise InvalidFrame("There was a hello already", field="type")
            case frames.Ping():
                return frames.pong(frame.id)

    async def _change_queue(self, frame: frames.Queue) -> tuple[Any, Cursor]:
        content = frame.content
        if content is not None:
            content = checked_content(content, self._settings.content_bytes)
        return await self._engine.change_queue(
            self._user,
            frame.session,
            frame.op,
            frame.task,
            frame.version,
            position=frame.position or 1,
            content=content or "",
            other=frame.other or "",
            other_version=frame.with_version or 0,
        )

    async def _visible(self, conn: Any, session: str) -> Any:
        if not is_id(session):
            raise SessionNotFound
        return await sessions.visible(conn, self._user, session)

    async def _subscribe(self, frame: frames.Subscribe) -> str:
        engine, session = self._engine, frame.session
        if session not in self._subscriptions and len(self._subscriptions) >= self._settings.subscriptions:
            raise Overloaded(f"At most {self._settings.subscriptions} subscriptions a socket", field="session")
        async with engine.database.read() as conn:
            row = await self._visible(conn, session)
        head, epoch = await engine.journal.head(session), engine.database.epoch
        self._unsubscribe(session)
        reason = snapshot_reason(frame.cursor, epoch=epoch, oldest=row["oldest_seq"], head=head)
        seq = frame.cursor.seq if frame.cursor is not None and reason is None else 0
        mode = "replay" if reason is None else "snapshot"
        self._put(frames.ack(frame.id, {"mode": mode, "head": head}, at=Cursor(epoch, head)))
        subscription = engine.hub.subscribe(session, seq, self._woken)
        self._subscriptions[session] = subscription
        if reason is not None:
            self._snapshots[subscription] = _Snapshot(reason)
        return ""

    def _unsubscribe(self, session: str) -> None:
        subscription = self._subscriptions.pop(session, None)
        if subscription is not None:
            self._engine.hub.unsubscribe(subscription)
            self._ready.pop(subscription, None)
            self._snapshot_taken(subscription)

    async def _follows(self, session: str) -> None:
        """Wait for a snapshot that was asked for before: what is sent behind it comes as events, not in it."""
        subscription = self._subscriptions.get(session)
        if subscription is not None and (snapshot := self._snapshots.get(subscription)) is not None:
            await snapshot.taken.wait()

    def _snapshot_taken(self, subscription: Subscription) -> None:
        if (snapshot := self._snapshots.pop(subscription, None)) is not None:
            snapshot.taken.set()

    def _woken(self, subscription: Subscription) -> None:
        self._ready[subscription] = None
        self._start_writer()

    def _put(self, text: str) -> None:
        if text:
            self._outbox.append(text)
            self._start_writer()

    def _start_writer(self) -> None:
        if self._writer is None and self._closing is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Write until there is nothing more to write."""
        try:
            while self._outbox or self._ready:
                while self._outbox:
                    await self._transmit(self._outbox.popleft())
                if self._ready:
                    await self._keep_pace()
                if self._ready:
                    subscription = next(iter(self._ready))
                    del self._ready[subscription]
                    await self._serve(subscription)
        except _Gone:
            pass
        except Exception as error:
            log.error("socket %s: its writer failed", self.id, exc_info=error)
            self._drop()
        finally:
            self._writer = None

    async def _serve(self, subscription: Subscription) -> None:
        """One frame of one subscription; it goes to the end of the line when there is more."""
        engine, epoch, session = self._engine, self._engine.database.epoch, subscription.session
        try:
            if (snapshot := self._snapshots.get(subscription)) is not None:
                text = await self._snapshot(subscription, snapshot)
            elif items := await engine.hub.next_items(subscription):
                text = frames.events(session, epoch, items)
            elif not subscription.live:
                subscription.live = True
                text = frames.caught_up(session, epoch, subscription.seq)
            else:
                return
        except Unavailable:
            await asyncio.sleep(0.5)
            text = ""
        if self._subscriptions.get(session) is not subscription:
            return
        self._ready[subscription] = None
        if text:
            await self._transmit(text)

    async def _snapshot(self, subscription: Subscription, snapshot: "_Snapshot") -> str:
        database, session = self._engine.database, subscription.session
        try:
            async with database.read() as conn:
                row = await sessions.row_of(conn, session)
            stored = await transcripts.load(database, session, row["oldest_seq"])
        except Unavailable:
            snapshot.taken.set()  # Who waits for it is to hear of that, too.
            raise
        state = stored.transcript.snapshot()
        if stored.earlier:
            state["earlier"] = True
        self._snapshot_taken(subscription)
        subscription.seq = stored.transcript.seq
        return frames.snapshot(session, database.epoch, subscription.seq, snapshot.reason, state)

    async def _keep_pace(self) -> None:
        """Wait until the peer has taken what it was sent, so that none holds more than one frame."""
        if self._writable is None or self._writable.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._writable.wait()
                return
        for subscription in self._subscriptions.values():
            subscription.park()
        await self._in_time(self._writable.wait())

    async def _transmit(self, text: str) -> None:
        """Send one frame."""
        await self._in_time(self._send({"type": "websocket.send", "text": text}))

    async def _in_time(self, sending: Awaitable[Any]) -> None:
        """Await what the peer must let happen; one that does not in time is dropped."""
        try:
            async with asyncio.timeout(self._settings.send_timeout_s):
                await sending
        except TimeoutError:
            log.info("socket %s: the peer does not read", self.id)
            self._drop()
            raise _Gone from None
        except (OSError, RuntimeError) as error:
            raise _Gone from error

    async def _text(self) -> str:
        message: Message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise _Gone
        text: str | None = message.get("text")
        if text is None:
            raise Closed(problems.CLOSE_BAD_FRAME, "frames are text")
        return text

    async def _say_goodbye(self, closed: Closed) -> None:
        """Write what is left in the outbox, then close; bounded in time."""
        self._closing = closed
        try:
            async with asyncio.timeout(2.0):
                if self._writer is not None:
                    self._ready.clear()
                    await asyncio.wait({self._writer})
                while self._outbox:
                    await self._send({"type": "websocket.send", "text": self._outbox.popleft()})
                close = {"type": "websocket.close", "code": closed.code, "reason": closed.reason[:100]}
                await self._send(close)
        except (TimeoutError, OSError, RuntimeError):
            self._drop()

    def _drop(self) -> None:
        """Cut the connection: `send` and `close` both wait for a peer that may never read."""
        if self._abort is not None:
            self._abort()


class _Gone(Exception):
    """The peer is gone."""


def checked_content(content: str, limit: int) -> str:
    """A user's message that every store can hold.

    Raises:
        TooLarge: more than `limit` bytes.
        InvalidFrame: U+0000 or half a surrogate pair.
    """
    if "\x00" in content:
        raise InvalidFrame("U+0000 is not allowed", field="content")
    try:
        size = len(content.encode())
    except UnicodeEncodeError:
        raise InvalidFrame("half a surrogate pair is not allowed", field="content") from None
    if size > limit:
        raise TooLarge(f"A message may have at most {limit} bytes", field="content")
    if not content.strip():
        raise InvalidFrame("The message is empty", field="content")
    return content


def checked_decision(decision: frames.Decision) -> Decision:
    """A decision that every store can hold.

    Raises:
        InvalidFrame: it has U+0000 or half a surrogate pair.
    """
    for name, value in (("reason", decision.reason), ("editedArgs", decision.edited_args)):
        if fault := unstorable(value):
            raise InvalidFrame(fault.detail, field=f"decisions.{name}")
    return Decision(decision.interrupt_id, decision.approved, decision.edited_args, decision.reason, decision.always)


async def _refuse(send: Send) -> None:
    """HTTP 400 instead of an upgrade."""
    error = Forbidden("Offer the subprotocol holdfast.v1")
    body = error.message.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "websocket.http.response.start", "status": 400, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        await websocket.close(code, reason[:100])
