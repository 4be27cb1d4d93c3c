"""How the work of a run learns that it is to stop."""

import asyncio
from collections.abc import Callable


class CancelToken:
    """Tells the work of one run that it is to stop; safe to set from any thread of its loop.

    Setting it twice is the same as once.
    """

    __slots__ = ("_callbacks", "_event", "reason")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._callbacks: list[Callable[[], object]] = []
        self.reason: str | None = None

    @property
    def is_set(self) -> bool:
        """True once a cancel was asked for."""
        return self._event.is_set()

    def set(self, reason: str | None = None) -> None:
        """Ask for the stop, and run the callbacks once."""
        if self._event.is_set():
            return
        self.reason = reason
        self._event.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_set(self, callback: Callable[[], object]) -> None:
        """Run `callback` when the token is set; at once when it is set already."""
        if self._event.is_set():
            callback()
        else:
            self._callbacks.append(callback)

    async def wait(self) -> None:
        """Return when the token is set."""
        await self._event.wait()
