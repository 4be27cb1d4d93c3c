"""How a job ends, in words."""

import signal
from typing import Any

import msgspec

from holdfast.store.job_steps import JobEnd

INTERRUPTED = "The service that ran it has ended"


def with_(end: JobEnd, **changes: Any) -> JobEnd:
    """`end` with other values."""
    return msgspec.structs.replace(end, **changes)


def end_of(
    exit_code: int | None, number: int | None, cpu_s: float | None, memory: int | None, *, too_much: bool = False
) -> JobEnd:
    """How a process ended that nobody stopped: `memory` in bytes, `too_much` when it said more than is kept."""
    error = None
    if too_much:
        error = "It was stopped: it said more than is kept"
    elif number is not None:
        error = f"Ended by signal {number} ({_name_of(number)})"
    elif exit_code is None:
        error = "It was killed"
    elif exit_code != 0:
        error = f"Exited with code {exit_code}"
    outcome = "success" if error is None else "failed"
    return JobEnd(outcome=outcome, error=error, exit_code=exit_code, signal=number, cpu_s=cpu_s, max_rss_bytes=memory)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "?"
