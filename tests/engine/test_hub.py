"""Fan-out: a subscription is a cursor; whoever is behind is served from the journal."""

import json
from typing import Any, cast

import pytest
from holdfast.domain.events import Recorded
from holdfast.engine import hub as hub_module
from holdfast.engine.hub import Channel, Hub, Subscription, bounded
from holdfast.store.journal import Journal
from hypothesis import given
from hypothesis import strategies as st


def record(seq: int) -> Recorded:
    return Recorded(seq, None, "t", '{"type":"CUSTOM","name":"x","value":{}}')


class Log:
    """A journal in memory."""

    def __init__(self) -> None:
        self.records: list[Recorded] = []
        self.on_commit: Any = None
        self.reads = 0

    async def read(self, session: str, after: int, limit: int) -> list[Recorded]:
        self.reads += 1
        return self.records[after : after + limit]

    def commit(self, count: int, *, tell: bool = True) -> None:
        new = [record(len(self.records) + n) for n in range(1, count + 1)]
        self.records += new
        if tell:
            self.on_commit("s", new)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 700)),
        st.tuples(st.just("unheard"), st.integers(1, 50)),
        st.tuples(st.just("hint"), st.just(0)),
        st.tuples(st.sampled_from(["read", "read all"]), st.integers(0, 2)),
    ),
    max_size=30,
)


@given(steps)
async def test_every_follower_gets_every_event_once_whatever_is_lost(steps: list[tuple[str, int]]) -> None:
    log = Log()
    hub = Hub(cast("Journal", log))
    followers = [hub.subscribe("s", 0, lambda _: None) for _ in range(3)]
    seen: list[list[int]] = [[], [], []]

    async def serve(place: int, *, rounds: int) -> None:
        for _ in range(rounds):
            items = await hub.next_items(followers[place])
            seen[place] += [json.loads(item)["seq"] for item in items]
            if not items:
                followers[place].live = True
                return

    for step, number in steps:
        match step:
            case "commit":
                log.commit(number)
            case "unheard":
                log.commit(number, tell=False)
            case "hint":
                hub.hint({"s": len(log.records)})
            case "read":
                await serve(number, rounds=1)
            case _:
                await serve(number, rounds=100)
    hub.hint({"s": len(log.records)})
    for place in range(3):
        await serve(place, rounds=100)
        assert seen[place] == list(range(1, len(log.records) + 1))


def live(channel: Channel, seq: int) -> Subscription:
    subscription = Subscription(channel, seq, lambda _: None)
    subscription.live = True
    channel.subscribers.add(subscription)
    return subscription


def test_the_window_is_bounded_however_slow_its_followers() -> None:
    channel = Channel("s")
    live(channel, 0)
    for seq in range(1, 5001):
        channel.publish([record(seq)])
    assert len(channel.items) <= hub_module.WINDOW_EVENTS
    assert channel.bytes <= hub_module.WINDOW_BYTES
    assert channel.bytes == sum(map(len, channel.items))
    assert channel.after(0) is None
    assert channel.after(channel.head) == []


def test_nothing_is_held_for_those_who_have_seen_it() -> None:
    channel = Channel("s")
    follower = live(channel, 0)
    for seq in range(1, 100):
        channel.publish([record(seq)])
        follower.seq = seq
    assert len(channel.items) <= 1


def test_a_frame_is_bounded_but_never_empty() -> None:
    assert len(bounded(["x" * 100_000, "y"])) == 1
    assert sum(map(len, bounded(["x" * 1000] * 1000))) <= hub_module.FRAME_BYTES


@pytest.mark.parametrize("seqs", [[1, 2, 5], [1, 3], [2, 1]])
def test_a_gap_or_a_repetition_does_not_confuse_the_window(seqs: list[int]) -> None:
    channel = Channel("s")
    live(channel, 0)
    for seq in seqs:
        channel.publish([record(seq)])
    assert channel.head == max(seqs)
    for place, item in enumerate(channel.items):
        assert json.loads(item)["seq"] == channel.first + place


async def test_nothing_is_kept_for_a_peer_that_does_not_read_and_it_misses_nothing() -> None:
    log = Log()
    hub = Hub(cast("Journal", log))
    slow = hub.subscribe("s", 0, lambda _: None)
    slow.live = True
    log.commit(300)
    assert len(slow.channel.items) == 300
    slow.park()
    assert slow.channel.items == []
    log.commit(300)
    assert slow.channel.items == []
    given_out: list[int] = []
    while items := await hub.next_items(slow):
        given_out += [json.loads(item)["seq"] for item in items]
    assert given_out == list(range(1, 601))
    log.commit(1)
    reads = log.reads
    assert [json.loads(item)["seq"] for item in await hub.next_items(slow)] == [601]
    assert log.reads == reads
