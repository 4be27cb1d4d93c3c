"""Long conversations: what is left out first, what is never left out, and what is told of it."""

from typing import Any

from holdfast.agents.shortening import DROPPED, shortened, tokens_of
from holdfast.agents.turn import HistoryAction, HistoryMessage
from hypothesis import given
from hypothesis import strategies as st

ACTIONS = st.builds(
    HistoryAction,
    id=st.text(max_size=4),
    name=st.sampled_from(["read_file", "shell"]),
    input=st.dictionaries(st.text("ab", max_size=2), st.text("xyz", max_size=40), max_size=2),
    output=st.text("o\n", max_size=400),
    outcome=st.just("success"),
    offset=st.integers(0, 10),
)
MESSAGES = st.lists(
    st.one_of(
        st.builds(HistoryMessage, role=st.just("user"), content=st.text("u", max_size=200)),
        st.builds(
            HistoryMessage,
            role=st.just("assistant"),
            content=st.text("a", max_size=200),
            actions=st.lists(ACTIONS, max_size=3).map(tuple),
        ),
    ),
    max_size=12,
)
BUDGETS = st.integers(0, 800)


def action(output: str) -> HistoryAction:
    return HistoryAction("c", "shell", {"command": "x"}, output, "success")


def user(content: str) -> HistoryMessage:
    return HistoryMessage("user", content)


def assistant(content: str, *outputs: str) -> HistoryMessage:
    return HistoryMessage("assistant", content, actions=tuple(map(action, outputs)))


def outputs_of(messages: Any) -> list[str]:
    return [each.output for message in messages for each in message.actions]


def test_what_fits_is_left_as_it_is() -> None:
    messages = (user("a"), assistant("b", "c" * 400))
    assert shortened(messages, 1000) == (messages, 0, sum(map(tokens_of, messages)))


def test_the_oldest_output_goes_first_and_says_how_long_it_was() -> None:
    messages = [user("a"), assistant("b", "x" * 4000, "y" * 4000), user("c"), assistant("d", "z" * 4000)]
    kept, omitted, tokens = shortened(messages, 2200)
    assert outputs_of(kept) == ["(output of 4000 characters left out)", "y" * 4000, "z" * 4000]
    assert (omitted, tokens <= 2200) == (1, True)


def test_then_the_oldest_exchanges_go_and_a_note_says_so() -> None:
    messages = [user("1" * 400), assistant("2" * 400), user("3" * 400), assistant("4" * 400), user("5" * 400)]
    kept, omitted, tokens = shortened(messages, 350)
    assert kept == (user(DROPPED), *messages[2:])
    assert (omitted, tokens) == (2, sum(map(tokens_of, kept)))


def test_the_last_messages_outputs_stay_even_when_they_are_too_long() -> None:
    messages = [user("a"), assistant("b", "x" * 4000)]
    kept, omitted, _ = shortened(messages, 10)
    assert (kept, omitted) == (tuple(messages), 0)


def test_an_output_that_is_as_short_as_the_note_stays() -> None:
    messages = [user("a"), assistant("b", "short"), user("c" * 4000)]
    kept, _, _ = shortened(messages, 1025)
    assert outputs_of(kept) in ([], ["short"])


@given(MESSAGES, BUDGETS)
def test_the_estimate_is_that_of_what_stays(messages: list[HistoryMessage], budget: int) -> None:
    kept, _, tokens = shortened(messages, budget)
    assert tokens == sum(map(tokens_of, kept))


@given(MESSAGES, BUDGETS)
def test_it_fits_or_nothing_more_may_go(messages: list[HistoryMessage], budget: int) -> None:
    kept, _, tokens = shortened(messages, budget)
    exchanges = [n for n, each in enumerate(kept) if each.role == "user" and (not n or kept[n - 1].role != "user")]
    assert tokens <= budget or exchanges in ([], [0])


@given(MESSAGES, BUDGETS)
def test_the_end_stays_as_it_was(messages: list[HistoryMessage], budget: int) -> None:
    kept, _, _ = shortened(messages, budget)
    assert kept[-1:] == tuple(messages[-1:])
    newest = [each for each in messages if each.role == "user"][-1:]
    assert [each for each in kept if each.role == "user"][-1:] == newest


@given(MESSAGES, BUDGETS)
def test_omitted_counts_outputs_and_messages(messages: list[HistoryMessage], budget: int) -> None:
    kept, omitted, _ = shortened(messages, budget)
    dropped = len(messages) - (len(kept) - 1) if kept[:1] == (user(DROPPED),) else 0
    replaced = sum(output.startswith("(output of") for output in outputs_of(kept))
    assert omitted == dropped + replaced
    assert dropped or len(kept) == len(messages)


@given(MESSAGES, BUDGETS)
def test_a_smaller_budget_never_keeps_more(messages: list[HistoryMessage], budget: int) -> None:
    assert shortened(messages, budget)[1] <= shortened(messages, budget // 2)[1]


@given(MESSAGES, BUDGETS)
def test_what_was_shortened_fits_as_it_is(messages: list[HistoryMessage], budget: int) -> None:
    kept, _, tokens = shortened(messages, budget)
    if tokens <= budget:
        assert shortened(kept, budget) == (kept, 0, tokens)
