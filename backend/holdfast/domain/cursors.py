"""Where a client stands in a session's journal, and what it needs to catch up."""

from typing import Literal

import msgspec


class Cursor(msgspec.Struct, frozen=True):
    """The last event applied: `seq` from 0 (none), valid within one `epoch`."""

    epoch: str
    seq: int


SnapshotReason = Literal["initial", "epoch_changed", "cursor_expired", "cursor_ahead"]


def snapshot_reason(cursor: Cursor | None, *, epoch: str, oldest: int, head: int) -> SnapshotReason | None:
    """Why a client at `cursor` needs a snapshot, or None when the events after it suffice.

    `oldest` is the seq of the first event that the journal still holds (1 without retention), `head`
    the seq of the last one (0 when there is none).
    """
    if cursor is None:
        return "initial"
    if cursor.epoch != epoch:
        return "epoch_changed"
    if cursor.seq > head:
        return "cursor_ahead"
    if cursor.seq < oldest - 1:
        return "cursor_expired"
    return None
