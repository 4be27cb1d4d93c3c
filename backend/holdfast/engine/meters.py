"""What a node counts of its tasks, for whoever asks; nothing here knows who that is."""

from bisect import bisect_left
from collections import Counter

BOUNDS_S = (0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
"""The upper bounds of the buckets, in seconds; the last one is infinite."""


class Durations:
    """Durations, counted in buckets."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """How many are at most so long, as Prometheus wants it."""
        total, found = 0, list[tuple[str, int]]()
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found


class Meters:
    """Waits by executor, run times and ends by executor and status, kills by how they went."""

    def __init__(self) -> None:
        self.waits: dict[str, Durations] = {}
        self.runs: dict[str, Durations] = {}
        self.ends: Counter[tuple[str, str]] = Counter()
        self.kills: Counter[str] = Counter()
        self.kill_failures = 0
        self.leases_lost = 0

    def waited(self, executor: str, seconds: float) -> None:
        """A task was claimed so long after it was due."""
        self.waits.setdefault(executor, Durations()).add(seconds)

    def ran(self, executor: str, seconds: float, status: str) -> None:
        """A task has ended, or a try of it, after so long."""
        self.runs.setdefault(executor, Durations()).add(seconds)
        self.ends[executor, status] += 1

    def killed(self, how: str) -> None:
        """A process was stopped: `terminated` by SIGTERM, or `killed`."""
        self.kills[how] += 1
