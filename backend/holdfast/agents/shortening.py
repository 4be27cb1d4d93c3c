"""A conversation that is too long for a model, made shorter: old outputs of tools first, then old exchanges.

What stays is the newest: the last user message and all after it are never dropped, and the outputs of
the last message never replaced, even when that is more than the budget.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from holdfast.agents.turn import HistoryAction, HistoryMessage, Turn

CHARS_PER_TOKEN = 4
MESSAGE_TOKENS = 4
"""What a message takes beside its text."""
ACTION_TOKENS = 8
"""What a call and its result take beside their text."""

DROPPED = "[The beginning of this conversation is left out: it is too long.]"


def shorten_history(turn: Turn, budget_tokens: int) -> tuple[tuple[HistoryMessage, ...], int, int]:
    """The history of a turn so that it and the turn fit; see `shortened` for the other two."""
    own = [HistoryMessage("user", turn.prompt)] if turn.prompt else []
    own += [HistoryMessage("assistant", turn.said, actions=turn.done)] if turn.said or turn.done else []
    kept, omitted, tokens = shortened([*turn.history, *own], budget_tokens)
    return kept[: len(kept) - len(own)], omitted, tokens


def shortened(messages: Sequence[HistoryMessage], budget_tokens: int) -> tuple[tuple[HistoryMessage, ...], int, int]:
    """The messages within a budget if possible; how many outputs and messages were left out; the tokens after.

    Tokens are estimated, see `tokens_of`. First the outputs of tools are replaced by a note, oldest
    first; then exchanges (a user message and what answers it) are dropped, oldest first, and a message
    at the front says so. An output that is dropped with its message is not counted by itself.
    """
    total = sum(map(tokens_of, messages))
    if total <= budget_tokens:
        return tuple(messages), 0, total
    kept, replaced, total = _without_outputs(messages, budget_tokens, total)
    first = 0
    for start in _starts(messages):
        if not start:
            continue
        if total <= budget_tokens:
            break
        total += 0 if first else tokens_of(_front())
        total -= sum(map(tokens_of, kept[first:start]))
        first = start
    front = [_front()] if first else []
    return (*front, *kept[first:]), sum(replaced[first:]) + first, total


def tokens_of(message: HistoryMessage) -> int:
    """About how many tokens a message takes: its characters and those of its actions, divided by four."""
    return MESSAGE_TOKENS + _tokens(len(message.content)) + sum(map(_tokens_of_action, message.actions))


def _without_outputs(
    messages: Sequence[HistoryMessage], budget_tokens: int, total: int
) -> tuple[list[HistoryMessage], list[int], int]:
    """The messages with as many outputs replaced as the budget needs, how many in each, and the tokens."""
    kept, replaced = list(messages), [0] * len(messages)
    for place, message in enumerate(messages[:-1]):
        actions = list(message.actions)
        for number, action in enumerate(actions):
            shorter = _noted(action)
            saved = _tokens_of_action(action) - _tokens_of_action(shorter)
            if total <= budget_tokens or saved <= 0:
                continue
            actions[number] = shorter
            replaced[place] += 1
            total -= saved
        kept[place] = replace(message, actions=tuple(actions))
    return kept, replaced, total


def _starts(messages: Sequence[HistoryMessage]) -> list[int]:
    """Where exchanges begin: at each user message that follows none."""
    return [
        place
        for place, message in enumerate(messages)
        if message.role == "user" and (place == 0 or messages[place - 1].role != "user")
    ]


def _front() -> HistoryMessage:
    return HistoryMessage("user", DROPPED)


def _noted(action: HistoryAction) -> HistoryAction:
    return replace(action, output=f"(output of {len(action.output)} characters left out)")


def _tokens_of_action(action: HistoryAction) -> int:
    written = len(msgspec.json.encode(action.input))
    return ACTION_TOKENS + _tokens(len(action.name) + written + len(action.output))


def _tokens(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)
