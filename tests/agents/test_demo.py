"""The demo agent: what it says, that it says the same each time, and how it stops and goes on."""

import asyncio
import time
from itertools import islice
from typing import Any

import pytest
from holdfast.agents.demo import GO_ON, SLOW_S, WORDS, DemoFailure, demo, make_demo, script
from holdfast.agents.turn import (
    AgentEvent,
    CancelToken,
    HistoryAction,
    HistoryMessage,
    Reasoning,
    Text,
    Turn,
    TurnUser,
    Usage,
)


class Pauses:
    """Remembers the pauses instead of waiting them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, cancelled: CancelToken, seconds: float) -> None:
        if seconds:
            self.seconds.append(seconds)


def turn_of(prompt: str, *history: HistoryMessage, **more: Any) -> Turn:
    return Turn(session="s", run="r", user=TurnUser("u", "u"), prompt=prompt, history=history, **more)


async def hear(turn: Turn, pauses: Pauses | None = None) -> tuple[list[AgentEvent], DemoFailure | None]:
    events: list[AgentEvent] = []
    try:
        async for event in make_demo(pause=pauses or Pauses())(turn):
            events.append(event)
    except DemoFailure as failure:
        return events, failure
    return events, None


def deltas(events: list[AgentEvent]) -> list[str]:
    return [event.delta for event in events if isinstance(event, Text)]


async def answer(prompt: str, *history: HistoryMessage, **more: Any) -> str:
    events, _ = await hear(turn_of(prompt, *history, **more))
    return "".join(deltas(events))


@pytest.mark.parametrize("n", [0, 1, 2, 36, 37, 100])
@pytest.mark.parametrize("command", ["slow", "fast"])
async def test_exactly_n_deltas_the_same_each_time(command: str, n: int) -> None:
    first, _ = await hear(turn_of(f"{command} {n}"))
    second, _ = await hear(turn_of(f"{command} {n}"))
    assert len(deltas(first)) == n
    assert first == second
    assert deltas(first)[: len(WORDS)] == [f"{word} " for word in WORDS[:n]]


async def test_slow_is_about_twenty_a_second_and_fast_never_waits() -> None:
    pauses = Pauses()
    await hear(turn_of("slow 7"), pauses)
    assert pauses.seconds == [SLOW_S] * 7
    assert pytest.approx(20) == 1 / SLOW_S
    pauses = Pauses()
    await hear(turn_of("fast 700"), pauses)
    assert pauses.seconds == []


async def test_fail_after_says_n_words_and_raises_an_ordinary_exception() -> None:
    events, failure = await hear(turn_of("fail after 3"))
    assert len(deltas(events)) == 3
    assert failure is not None


async def test_think_reasons_word_by_word_before_it_answers() -> None:
    events, _ = await hear(turn_of("think about the sea"))
    assert [event.delta for event in events if isinstance(event, Reasoning)] == ["about ", "the ", "sea"]
    assert "".join(deltas(events)) == "Thought about: about the sea\n"
    kinds = [type(event) for event in events]
    assert kinds.index(Text) > max(place for place, kind in enumerate(kinds) if kind is Reasoning)


async def test_commands_are_done_in_order_and_nothing_else_is_said() -> None:
    both = await answer("fast 2\n\n  think of it \r\nslow 3\n")
    assert both == "The tide " + "Thought about: of it\n" + "The tide comes "


async def test_what_follows_a_failure_is_not_done() -> None:
    events, failure = await hear(turn_of("fail after 1\nfast 5"))
    assert (len(deltas(events)), failure is not None) == (1, True)


@pytest.mark.parametrize(
    "prompt",
    [
        "hello",
        "slow",
        "slow -1",
        "slow x",
        "slow 1.5",
        "slow 1 2",
        "fast \u0663",
        "fast 1\nand then?",
        "",
        "think",
        "run",
        "write one",
        "read a b",
    ],
)
async def test_anything_else_gets_the_help_and_an_echo(prompt: str) -> None:
    said = await answer(prompt) if prompt else "".join(deltas([e for e, _ in script("") if isinstance(e, Text)]))
    assert "demo agent" in said
    assert "no model" in said
    for command in ("slow", "fast", "think", "fail after", "run", "write", "read", "ask"):
        assert f"`{command} <" in said
    assert said.endswith("\n".join(f"> {line}" for line in (prompt or "(nothing)").splitlines()) + "\n")


async def test_a_long_echo_is_cut_and_says_so() -> None:
    said = await answer("x" * 1_000_000)
    assert len(said) < 10_000
    assert "characters more" in said


async def test_a_huge_number_is_not_built_in_memory() -> None:
    steps = list(islice(script("fast 999999999999"), 3))
    assert [event for event, _ in steps] == [Text("The "), Text("tide "), Text("comes ")]
    heard = 0
    turn = turn_of("fast 1000000")
    async for event in demo(turn):
        heard += isinstance(event, Text)
        if heard == 100_000:
            turn.cancelled.set()
    assert heard == 100_000


async def test_fast_lets_others_on_the_event_loop() -> None:
    turn = turn_of("fast 1000000")
    asyncio.get_running_loop().call_soon(turn.cancelled.set)
    events = [event async for event in demo(turn)]
    assert len(events) < 10_000


async def test_cancel_ends_a_pause_at_once() -> None:
    turn = turn_of("slow 1000")
    begun = asyncio.Event()

    async def pause(cancelled: CancelToken, seconds: float) -> None:
        begun.set()
        await asyncio.wait_for(cancelled.wait(), 600)

    async def listen() -> list[AgentEvent]:
        return [event async for event in make_demo(pause=pause)(turn)]

    task = asyncio.create_task(listen())
    await begun.wait()
    turn.cancelled.set()
    assert await asyncio.wait_for(task, 1) == [Text("The ")]


async def test_the_real_pause_ends_at_its_time_and_at_a_cancel() -> None:
    started = time.monotonic()
    assert len(deltas([event async for event in demo(turn_of("slow 4"))])) == 4
    assert time.monotonic() - started >= 3 * SLOW_S
    turn = turn_of("slow 100000")
    asyncio.get_running_loop().call_later(0.01, turn.cancelled.set)
    await asyncio.wait_for(anext_all(turn), 1)


async def anext_all(turn: Turn) -> None:
    async for _ in demo(turn):
        pass


PROMPTS = ["slow 40", "fast 5\nthink a b\nslow 3", "think of me", "hello *world*\nsecond line"]


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_a_turn_that_is_handed_over_goes_on_at_every_place(prompt: str) -> None:
    whole = await answer(prompt)
    for place in range(len(whole) + 1):
        assert whole[:place] + await answer(prompt, said=whole[:place]) == whole


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_an_answer_that_was_cut_is_continued_at_every_place(prompt: str) -> None:
    whole = await answer(prompt)
    for place in range(len(whole)):
        cut = HistoryMessage("assistant", whole[:place], "cancelled")
        assert whole[:place] + await answer("", HistoryMessage("user", prompt), cut) == whole


async def test_continuing_twice_and_handed_over_goes_on() -> None:
    whole = await answer("slow 40")
    history = (
        HistoryMessage("user", "something else"),
        HistoryMessage("assistant", "an answer"),
        HistoryMessage("user", "slow 40"),
        HistoryMessage("assistant", whole[:10], "cancelled"),
        HistoryMessage("assistant", whole[10:13], "interrupted"),
    )
    assert await answer("", *history) == whole[13:]
    assert await answer("", *history, said=whole[13:50]) == whole[50:]


async def test_a_failure_is_met_again_on_a_hand_over_but_passed_when_continued() -> None:
    _, failure = await hear(turn_of("fail after 2", said="The tide "))
    assert failure is not None
    history = (HistoryMessage("user", "fail after 2\nfast 1"), HistoryMessage("assistant", "The tide ", "error"))
    assert await answer("", *history) == "The "
    events, failure = await hear(turn_of("", history[0], HistoryMessage("assistant", "The ", "cancelled")))
    assert (deltas(events), failure is not None) == (["tide "], True)


async def test_continuing_with_nothing_left_says_so() -> None:
    history = (HistoryMessage("user", "fail after 1"), HistoryMessage("assistant", "The ", "error"))
    assert await answer("", *history) == GO_ON


async def test_nothing_more_is_said_when_all_that_was_left_was_decided() -> None:
    done = HistoryAction("a", "bash", {"command": "ls"}, "denied", "denied")
    history = [HistoryMessage("user", "ask ls"), HistoryMessage("assistant", "", None, (done,))]
    assert await answer("", *history) == ""


async def test_usage_comes_last() -> None:
    events, _ = await hear(turn_of("fast 5"))
    assert events[-1] == Usage(2, 5, "demo")
