"""The registry of live runs: each scenario of the incremental-saving suite that concerns it, by name."""

import threading

import pytest
from holdfast.agents.turn import CancelToken
from holdfast.engine.registry import AgentTaskRegistry, get_agent_task_registry


@pytest.fixture
def registry() -> AgentTaskRegistry:
    return AgentTaskRegistry()


async def test_register_task(registry: AgentTaskRegistry) -> None:
    token = CancelToken()
    entry = registry.register("s", "m", token)
    assert (entry.session, entry.message, entry.token, entry.state) == ("s", "m", token, "running")


async def test_register_task_cancels_existing(registry: AgentTaskRegistry) -> None:
    first, second = CancelToken(), CancelToken()
    registry.register("s", "m1", first)
    registry.register("s", "m2", second)
    assert (first.is_set, second.is_set) == (True, False)
    found = registry.get("s")
    assert found is not None
    assert found.message == "m2"


async def test_get_task(registry: AgentTaskRegistry) -> None:
    assert registry.get("s") is None
    entry = registry.register("s", "m", CancelToken())
    assert registry.get("s") is entry


async def test_cancel_task(registry: AgentTaskRegistry) -> None:
    token = CancelToken()
    registry.register("s", "m", token)
    assert registry.cancel("s", "why") is True
    assert (token.is_set, token.reason) == (True, "why")


async def test_cancel_nonexistent_task(registry: AgentTaskRegistry) -> None:
    assert registry.cancel("s") is False


async def test_mark_completed(registry: AgentTaskRegistry) -> None:
    entry = registry.register("s", "m", CancelToken())
    registry.mark_completed("s")
    assert entry.state == "completed"
    assert registry.cancel("s") is False
    assert registry.running() == []


async def test_cleanup_task(registry: AgentTaskRegistry) -> None:
    registry.register("s", "m", CancelToken())
    registry.cleanup("s")
    assert registry.get("s") is None


async def test_cleanup_old_tasks(registry: AgentTaskRegistry) -> None:
    entry = registry.register("s", "m", CancelToken())
    registry.mark_completed("s")
    assert entry.completed_at is not None
    assert registry.cleanup_old(60, lambda: entry.completed_at + 59) == 0  # type: ignore[operator]
    assert registry.cleanup_old(60, lambda: entry.completed_at + 60) == 1  # type: ignore[operator]
    assert registry.get("s") is None


async def test_cleanup_old_tasks_only_removes_completed(registry: AgentTaskRegistry) -> None:
    registry.register("s", "m", CancelToken())
    assert registry.cleanup_old(0, lambda: 1e12) == 0
    assert registry.get("s") is not None


def test_get_agent_task_registry_singleton() -> None:
    assert get_agent_task_registry() is get_agent_task_registry()


async def test_a_cancel_that_comes_first_is_remembered_for_its_run_alone(registry: AgentTaskRegistry) -> None:
    assert registry.cancel_run("s", "late", "why") is False
    other, late = CancelToken(), CancelToken()
    registry.register("t", "m", other, run="other")
    registry.register("s", "m", late, run="late")
    assert (other.is_set, late.is_set) == (False, True)


async def test_concurrent_access(registry: AgentTaskRegistry) -> None:
    tokens = [[CancelToken() for _ in range(50)] for _ in range(8)]
    faults: list[BaseException] = []

    def work(mine: list[CancelToken]) -> None:
        try:
            for number, token in enumerate(mine):
                session = f"s{number % 5}"
                registry.register(session, "m", token)
                registry.get(session)
                registry.mark_completed(session)
                registry.cleanup_old(3600)
                registry.running()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len([session for session in (f"s{n}" for n in range(5)) if registry.get(session)]) == 5
