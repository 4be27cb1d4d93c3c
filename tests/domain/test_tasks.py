"""The state machine of tasks."""

import itertools

from holdfast.domain.tasks import TERMINAL, TRANSITIONS, TaskState, may_move, run_status


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
