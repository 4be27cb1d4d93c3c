"""The state machine of tasks."""

import itertools

from holdfast.domain.tasks import (
    JOB_STATUSES,
    TERMINAL,
    TRANSITIONS,
    TaskState,
    job_states,
    job_status,
    may_move,
    run_status,
)


def test_nothing_leaves_a_terminal_state() -> None:
    for state, after in itertools.product(TERMINAL, TaskState):
        assert not may_move(state, after)


def test_every_state_that_is_not_terminal_can_be_cancelled() -> None:
    for state in set(TaskState) - TERMINAL:
        assert may_move(state, TaskState.CANCELED)


def test_every_state_can_be_reached_from_waiting() -> None:
    reached, todo = {TaskState.WAITING}, [TaskState.WAITING]
    while todo:
        for after in TRANSITIONS[todo.pop()] - reached:
            reached.add(after)
            todo.append(after)
    assert reached == set(TaskState)


def test_every_state_has_a_status_for_clients() -> None:
    assert {run_status(state) for state in TaskState} == {
        "queued",
        "running",
        "waiting",
        "success",
        "failed",
        "cancelled",
    }


def test_every_state_has_a_job_status_and_every_status_its_states() -> None:
    assert {job_status(state) for state in TaskState} == set(JOB_STATUSES)
    for status in JOB_STATUSES:
        assert all(job_status(state) == status for state in job_states(status))
    ended = {"completed", "failed", "cancelled"}
    assert {state for state in TaskState if job_status(state) in ended} == set(TERMINAL)
