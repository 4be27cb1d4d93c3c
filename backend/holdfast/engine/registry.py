"""The live runs of this process, by session: how a cancel finds what it is to stop."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from holdfast.agents.turn import CancelToken

_REMEMBERED = 1024


@dataclass(slots=True)
class LiveRun:
    """A run of this process. Times are monotonic seconds."""

    session: str
    run: str
    message: str
    token: CancelToken
    state: Literal["running", "completed"] = "running"
    started_at: float = field(default_factory=time.monotonic)
    completed_at: float | None = None


class AgentTaskRegistry:
    """Keeps, per session, the live run: at most one, safe from several threads.

    `wake` is called with each token that is to be set; the default sets it at once. A cancel that
    comes before its run is registered is remembered and carried out at the registration.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._runs: dict[str, LiveRun] = {}
        self._early: dict[str, str | None] = {}

    def register(self, session: str, message: str, token: CancelToken, *, run: str | None = None) -> LiveRun:
        """Enter a run; one that the session has already is cancelled first."""
        with self._lock:
            entry = LiveRun(session, run or message, message, token)
            before = self._runs.get(session)
            self._runs[session] = entry
            early = entry.run in self._early
            reason = self._early.pop(entry.run, None)
        if before is not None and before.state == "running":
            before.token.set("replaced by another run")
        if early:
            token.set(reason)
        return entry

    def get(self, session: str) -> LiveRun | None:
        """The run of a session, running or completed, or None."""
        with self._lock:
            return self._runs.get(session)

    def cancel(self, session: str, reason: str | None = None) -> bool:
        """Ask the session's running run to stop; False where there is none."""
        with self._lock:
            entry = self._runs.get(session)
        if entry is None or entry.state != "running":
            return False
        entry.token.set(reason)
        return True

    def cancel_run(self, session: str, run: str, reason: str | None = None) -> bool:
        """Ask this very run to stop; when it is not here yet, as soon as it is registered."""
        with self._lock:
            entry = self._runs.get(session)
            if entry is None or entry.run != run:
                self._early[run] = reason
                while len(self._early) > _REMEMBERED:
                    self._early.pop(next(iter(self._early)))
                return False
        return self.cancel(session, reason)

    def cancel_task(self, run: str, reason: str | None = None) -> bool:
        """Ask a run to stop of which only its own id is known; see `cancel_run`."""
        with self._lock:
            session = next((entry.session for entry in self._runs.values() if entry.run == run), "")
        return self.cancel_run(session, run, reason)

    def mark_completed(self, session: str, run: str | None = None) -> None:
        """The session's run has ended."""
        with self._lock:
            entry = self._runs.get(session)
            if entry is not None and run in (None, entry.run):
                entry.state = "completed"
                entry.completed_at = time.monotonic()

    def cleanup(self, session: str, run: str | None = None) -> None:
        """Forget the session's run."""
        with self._lock:
            entry = self._runs.get(session)
            if entry is not None and run in (None, entry.run):
                del self._runs[session]

    def cleanup_old(self, max_age_s: float, now: Callable[[], float] = time.monotonic) -> int:
        """Forget runs that completed at least `max_age_s` ago, never a running one; how many."""
        limit = now() - max_age_s
        with self._lock:
            old = [
                session
                for session, entry in self._runs.items()
                if entry.completed_at is not None and entry.completed_at <= limit
            ]
            for session in old:
                del self._runs[session]
        return len(old)

    def running(self) -> list[LiveRun]:
        """All runs that have not completed."""
        with self._lock:
            return [entry for entry in self._runs.values() if entry.state == "running"]


_registry = AgentTaskRegistry()


def get_agent_task_registry() -> AgentTaskRegistry:
    """The one registry of this process."""
    return _registry
