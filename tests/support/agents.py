"""Agents whose every step a test decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from holdfast.agents.tools import ToolResult
from holdfast.agents.turn import AgentEvent, Text, Turn


class Deed:
    """Something that an agent does in its turn; `outcome` is what comes of it."""

    def __init__(self, work: Callable[[Turn], Awaitable[Any]]) -> None:
        self._work = work
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def do(self, turn: Turn) -> None:
        """Do it; whatever it raises is raised."""
        try:
            result = await self._work(turn)
        except asyncio.CancelledError:
            self.outcome.cancel()
            raise
        except BaseException as error:
            if not self.outcome.done():
                self.outcome.set_exception(error)
            raise
        if not self.outcome.done():
            self.outcome.set_result(result)


class Puppet:
    """An agent that says and does what it is told, when it is told; `turns` are those that it was given."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.words: asyncio.Queue[AgentEvent | Deed | BaseException | None] = asyncio.Queue()
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.turns.append(turn)
        self.started.set()
        try:
            while (word := await self.words.get()) is not None:
                if isinstance(word, BaseException):
                    raise word
                if isinstance(word, Deed):
                    await word.do(turn)
                else:
                    yield word
        finally:
            self.closed.set()

    def say(self, *words: str) -> None:
        """Say words, one event each."""
        for word in words:
            self.words.put_nowait(Text(word))

    def call(self, name: str, *, id: str | None = None, ask: bool = False, **args: Any) -> asyncio.Future[ToolResult]:
        """Call a tool; the result comes in the future."""
        return self.do(lambda turn: turn.tools.call(name, args, id=id, ask=ask))

    def bash(
        self, command: str, *, id: str | None = None, ask: bool = False, **args: Any
    ) -> asyncio.Future[ToolResult]:
        """Run a command."""
        return self.call("bash", id=id, ask=ask, command=command, **args)

    def do(self, work: Callable[[Turn], Awaitable[Any]]) -> asyncio.Future[Any]:
        """Do something with the turn; what it gives comes in the future."""
        deed = Deed(work)
        self.words.put_nowait(deed)
        return deed.outcome

    def end(self) -> None:
        """End the turn."""
        self.words.put_nowait(None)

    def fail(self, error: BaseException) -> None:
        """Fail."""
        self.words.put_nowait(error)
