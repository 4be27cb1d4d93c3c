"""Ids: UUIDs of version 7 that sort as they were made."""

import time
from uuid import RFC_4122, UUID

from holdfast.clock import is_id, new_id


def test_ids_are_uuids_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    made = UUID(new_id())
    assert (made.version, made.variant) == (7, RFC_4122)
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000
    assert is_id(str(made))


def test_ids_of_the_same_millisecond_sort_as_they_were_made() -> None:
    made: list[str] = []
    for _ in range(2000):
        made.append(new_id())
        time.sleep(0.000_005)
    assert made == sorted(made)
    assert len({one[:13] for one in made}) < len(made), "many of them within one millisecond"
