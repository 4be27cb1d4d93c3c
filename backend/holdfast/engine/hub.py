"""Live fan-out: a subscription is a cursor and a wake-up, and nothing else.

What is committed goes to the recent window of its session, if anybody follows it. A subscriber is
served from the window when its cursor is there and from the journal when it is not, so a lost
notification, a slow client and a fresh resume are one code path.
"""

from collections.abc import Callable

from holdfast.domain import frames
from holdfast.domain.events import Recorded
from holdfast.store.journal import Journal

WINDOW_EVENTS = 512
WINDOW_BYTES = 96 * 1024
"""The most that is held for one session; what a slower follower needs is read from the journal."""

FRAME_BYTES = 48 * 1024
FRAME_EVENTS = 512
"""The most of one frame: also what a follower that has stopped reading holds, twice."""


class Subscription:
    """One follower of one session: `seq` is the last event that it was given.

    `live` once it has caught up; `parked` while its peer does not read, so that nothing is kept for it.
    """

    __slots__ = ("channel", "dirty", "live", "parked", "seq", "wake")

    def __init__(self, channel: "Channel", seq: int, wake: Callable[["Subscription"], None]) -> None:
        self.channel = channel
        self.seq = seq
        self.wake = wake
        self.dirty = False
        self.live = False
        self.parked = False

    @property
    def session(self) -> str:
        """The session that is followed."""
        return self.channel.session

    def poke(self) -> None:
        """There may be something new."""
        if not self.dirty:
            self.dirty = True
            self.wake(self)

    def park(self) -> None:
        """Keep nothing for this follower until it asks again: it will be served from the journal."""
        self.parked = True
        self.channel.trim()


class Channel:
    """The recent window of one session, as items ready for a frame, and who follows it."""

    __slots__ = ("bytes", "first", "head", "items", "session", "subscribers")

    def __init__(self, session: str) -> None:
        self.session = session
        self.items: list[str] = []
        self.first = 1
        self.head = 0
        self.bytes = 0
        self.subscribers: set[Subscription] = set()

    def publish(self, records: list[Recorded]) -> None:
        """Take committed events in. After a gap the window starts anew; what is known is skipped."""
        records = [record for record in records if record.seq > self.head]
        if not records:
            return
        if not self.items or records[0].seq != self.head + 1:
            self.items, self.bytes, self.first = [], 0, records[0].seq
        for record in records:
            text = frames.item(record)
            self.items.append(text)
            self.bytes += len(text)
        self.head = records[-1].seq
        self.trim()
        self.poke()

    def poke(self) -> None:
        """Wake every follower."""
        for subscription in self.subscribers:
            subscription.poke()

    def after(self, seq: int) -> list[str] | None:
        """The next frame's items after `seq`: empty when there is nothing, None when the window begins later."""
        if seq >= self.head:
            return []
        if not self.items or seq + 1 < self.first:
            return None
        start = seq + 1 - self.first
        return bounded(self.items[start : start + FRAME_EVENTS])

    def trim(self) -> None:
        """Drop what every follower that keeps up has seen, and what is beyond the bounds."""
        ahead = [one.seq for one in self.subscribers if one.live and not one.parked and one.seq + 1 >= self.first]
        drop = min(ahead, default=self.head) + 1 - self.first
        beyond = len(self.items) - WINDOW_EVENTS
        over = self.bytes - WINDOW_BYTES
        place = 0
        while place < len(self.items) and (place < drop or place < beyond or over > 0):
            size = len(self.items[place])
            self.bytes -= size
            over -= size
            place += 1
        if place:
            del self.items[:place]
            self.first += place


def bounded(items: list[str]) -> list[str]:
    """As many of the items as one frame may carry, at least one."""
    size = 0
    for count, text in enumerate(items):
        size += len(text)
        if size > FRAME_BYTES:
            return items[: max(count, 1)]
    return items


class Hub:
    """The channels of the sessions that somebody follows on this node."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._channels: dict[str, Channel] = {}
        journal.on_commit = self.publish

    @property
    def sessions(self) -> list[str]:
        """The sessions that are followed here."""
        return list(self._channels)

    def publish(self, session: str, records: list[Recorded]) -> None:
        """Committed events of a session; called after the commit and never before."""
        if (channel := self._channels.get(session)) is not None:
            channel.publish(records)

    def hint(self, heads: dict[str, int]) -> None:
        """Another process may have committed: wake who is behind these heads."""
        for session, head in heads.items():
            channel = self._channels.get(session)
            if channel is not None and head > channel.head:
                channel.items, channel.bytes = [], 0
                channel.first, channel.head = head + 1, head
                channel.poke()

    def subscribe(self, session: str, seq: int, wake: Callable[[Subscription], None]) -> Subscription:
        """Follow a session after `seq`; the follower is woken at once."""
        channel = self._channels.setdefault(session, Channel(session))
        subscription = Subscription(channel, seq, wake)
        channel.subscribers.add(subscription)
        subscription.poke()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop following; a channel that nobody follows is forgotten."""
        channel = subscription.channel
        channel.subscribers.discard(subscription)
        if not channel.subscribers:
            self._channels.pop(channel.session, None)

    async def next_items(self, subscription: Subscription) -> list[str]:
        """The items of the next frame, and the cursor moved behind them; empty when it is caught up.

        Raises:
            Unavailable: the journal cannot be read.
        """
        subscription.dirty = subscription.parked = False
        items = subscription.channel.after(subscription.seq) if subscription.live else None
        if items is None:
            records = await self._journal.read(subscription.session, subscription.seq, FRAME_EVENTS)
            items = bounded([frames.item(record) for record in records])
        subscription.seq += len(items)
        return items
