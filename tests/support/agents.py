"""Agents whose every step a test decides."""

import asyncio
from collections.abc import AsyncIterator

from holdfast.agents.turn import AgentEvent, Text, Turn


class Puppet:
    """An agent that says what it is told, when it is told; `turns` are those that it was given."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.words: asyncio.Queue[AgentEvent | BaseException | None] = asyncio.Queue()
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.turns.append(turn)
        self.started.set()
        try:
            while (word := await self.words.get()) is not None:
                if isinstance(word, BaseException):
                    raise word
                yield word
        finally:
            self.closed.set()

    def say(self, *words: str) -> None:
        """Say words, one event each."""
        for word in words:
            self.words.put_nowait(Text(word))

    def end(self) -> None:
        """End the turn."""
        self.words.put_nowait(None)

    def fail(self, error: BaseException) -> None:
        """Fail."""
        self.words.put_nowait(error)
