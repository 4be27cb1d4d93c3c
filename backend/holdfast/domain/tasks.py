"""The states of a task and the moves between them.

```
Waiting -> Pending -> Claimed -> Running -> Success | Failure
Waiting, Pending <-> Paused          every state but the last three -> Canceled
Claimed -> Pending (stale claim)     Running -> Pending (retry, hand-over) | Failure
Running -> Paused (a run waits for approval) -> Success (another run goes on from it)
```

`cancellation_status` stands beside the state: a running task whose cancel is requested stays
`Running`, and holds its limits, until nothing of it lives.
"""

from enum import StrEnum
from typing import Literal


class TaskState(StrEnum):
    """Where a task stands. The CHECK constraint of the table lists the same words."""

    WAITING = "Waiting"
    PENDING = "Pending"
    PAUSED = "Paused"
    CLAIMED = "Claimed"
    RUNNING = "Running"
    SUCCESS = "Success"
    FAILURE = "Failure"
    CANCELED = "Canceled"


class CancellationStatus(StrEnum):
    """How far a cancel has come; no value means that none was asked for."""

    REQUESTED = "Requested"
    CANCELLED = "Cancelled"


class UiStatus(StrEnum):
    """What a person sees of a session in a list."""

    IDLE = "Idle"
    IN_PROGRESS = "InProgress"
    NEEDS_REVIEW = "NeedsReview"
    ARCHIVED = "Archived"


TERMINAL = frozenset({TaskState.SUCCESS, TaskState.FAILURE, TaskState.CANCELED})
"""A task that is here stays here."""

ACTIVE = frozenset({TaskState.CLAIMED, TaskState.RUNNING})
"""States in which a node owns the task and its limits are held."""

TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.WAITING: frozenset({TaskState.PENDING, TaskState.PAUSED, TaskState.FAILURE, TaskState.CANCELED}),
    TaskState.PENDING: frozenset({TaskState.CLAIMED, TaskState.PAUSED, TaskState.CANCELED}),
    TaskState.PAUSED: frozenset({TaskState.WAITING, TaskState.PENDING, TaskState.SUCCESS, TaskState.CANCELED}),
    TaskState.CLAIMED: frozenset({TaskState.RUNNING, TaskState.PENDING, TaskState.FAILURE, TaskState.CANCELED}),
    TaskState.RUNNING: frozenset(
        {TaskState.SUCCESS, TaskState.FAILURE, TaskState.CANCELED, TaskState.PENDING, TaskState.PAUSED}
    ),
    TaskState.SUCCESS: frozenset(),
    TaskState.FAILURE: frozenset(),
    TaskState.CANCELED: frozenset(),
}


def may_move(before: TaskState, after: TaskState) -> bool:
    """Whether the diagram has an arrow from `before` to `after`."""
    return after in TRANSITIONS[before]


RunStatus = Literal["queued", "running", "waiting", "success", "failed", "cancelled"]

_RUN_STATUS: dict[TaskState, RunStatus] = {
    TaskState.WAITING: "queued",
    TaskState.PENDING: "queued",
    TaskState.PAUSED: "waiting",
    TaskState.CLAIMED: "running",
    TaskState.RUNNING: "running",
    TaskState.SUCCESS: "success",
    TaskState.FAILURE: "failed",
    TaskState.CANCELED: "cancelled",
}


def run_status(state: TaskState) -> RunStatus:
    """The status of a run, as clients see it, from the state of its task."""
    return _RUN_STATUS[state]


JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]

JOB_STATUSES: tuple[JobStatus, ...] = ("queued", "running", "completed", "failed", "cancelled")

_JOB_STATUS: dict[TaskState, JobStatus] = {
    TaskState.WAITING: "queued",
    TaskState.PENDING: "queued",
    TaskState.PAUSED: "queued",
    TaskState.CLAIMED: "running",
    TaskState.RUNNING: "running",
    TaskState.SUCCESS: "completed",
    TaskState.FAILURE: "failed",
    TaskState.CANCELED: "cancelled",
}


def job_status(state: TaskState) -> JobStatus:
    """The status of a job, as clients see it, from the state of its task."""
    return _JOB_STATUS[state]


def job_states(status: JobStatus) -> list[TaskState]:
    """The states of tasks that clients see as `status`."""
    return [state for state, shown in _JOB_STATUS.items() if shown == status]
