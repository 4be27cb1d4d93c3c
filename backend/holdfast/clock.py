"""Time, ids and random numbers, handed in wherever they are used so that tests can turn them."""

import secrets
import time
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """The time of day, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; for durations."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        """The time of day, aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since boot."""
        return time.monotonic()


def new_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, 12 of their fraction (method 3), 62 random ones.

    Those of one process sort as they were made, to a quarter of a microsecond: what is sent first is first in line.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    return str(UUID(int=milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)))


def is_id(text: str) -> bool:
    """Whether `text` is a UUID in its canonical form, as `new_id` makes them."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def rfc3339(moment: datetime) -> str:
    """RFC 3339 in UTC with `Z` and microseconds, as on the wire."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_rfc3339(text: str) -> datetime:
    """The inverse of `rfc3339`."""
    return datetime.fromisoformat(text)
