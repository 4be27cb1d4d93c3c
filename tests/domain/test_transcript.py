"""The fold: what a person sees is the same, however and from wherever the events are applied."""

import msgspec
import pytest
from holdfast.domain import events as ev
from holdfast.domain.actions import LONGEST_LIVE
from holdfast.domain.transcript import ActiveRun, Message, QueueItem, Transcript

from tests.support.golden import FOLDER, SESSION, Story, golden, state_of, stories

STORIES = stories()


@pytest.mark.parametrize("name", STORIES)
def test_golden_files_are_what_this_fold_gives(name: str) -> None:
    """When this fails on purpose, run `python -m tests.support.golden` and look at the difference."""
    assert (FOLDER / f"{name}.json").read_text() == golden(name, STORIES[name])


@pytest.mark.parametrize("name", STORIES)
def test_resuming_from_a_snapshot_at_any_event_gives_the_same(name: str) -> None:
    records = STORIES[name]
    whole = Transcript(SESSION)
    whole.apply_all(records)
    for cut in range(len(records) + 1):
        before = Transcript(SESSION)
        before.apply_all(records[:cut])
        state = state_of(before)
        after = Transcript(
            SESSION,
            cut,
            msgspec.convert(state["messages"], list[Message]),
            msgspec.convert(state["activeRun"], ActiveRun | None),
            msgspec.convert(state["queue"], list[QueueItem]),
        )
        after.arguments = dict(before.arguments)
        after.apply_all(records[cut:])
        assert state_of(after) == state_of(whole), f"cut at {cut}"


def test_content_is_the_deltas_joined() -> None:
    transcript = Transcript(SESSION)
    seen: list[str] = []
    for record in STORIES["plain"]:
        transcript.apply(record)
        transcript.settle()
        if transcript.messages and transcript.messages[-1].role == "assistant":
            seen.append(transcript.messages[-1].content)
    assert seen[:4] == ["", "First ", "First second ", "First second third"]


def test_what_is_not_known_changes_nothing() -> None:
    transcript = Transcript(SESSION)
    transcript.apply(ev.Recorded(1, None, "t", '{"type":"FROM_THE_FUTURE"}'))
    assert transcript.seq == 1
    assert state_of(transcript)["messages"] == []


def test_a_fold_of_a_long_message_is_not_quadratic() -> None:
    transcript = Transcript(SESSION)
    story = STORIES["plain"][:3]
    transcript.apply_all(story)
    chunk = ev.encode(ev.TextMessageContent(message_id="a-reply", delta="x" * 50))
    for seq in range(4, 100_004):
        transcript.apply(ev.Recorded(seq, "a", "t", chunk))
    transcript.settle()
    assert len(transcript.messages[-1].content) == 50 * 100_000


def test_live_output_is_bounded_and_the_newest_is_kept() -> None:
    story = Story().start("a", "x").begin("a", "c1", "bash", "{}").hear("a", "c1", "old", *(["😀" * 10_000] * 7))
    transcript = Transcript(SESSION)
    transcript.apply_all(story.records)
    (action,) = transcript.messages[-1].actions
    assert action.live == "😀" * LONGEST_LIVE
