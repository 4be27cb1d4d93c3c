"""When something that failed is tried again: later each time, never beyond a bound, not all at once."""

from holdfast.domain.retry import LONGEST_S, backoff_s
from hypothesis import given
from hypothesis import strategies as st

chances = st.floats(0, 1)
firsts = st.floats(0, 3600)


@given(failures=st.integers(0, 10_000), first=firsts, chance=chances)
def test_it_is_bounded_and_never_negative(failures: int, first: float, chance: float) -> None:
    assert 0 <= backoff_s(failures, first, chance) <= LONGEST_S


@given(failures=st.integers(0, 40), first=firsts)
def test_each_wait_is_at_least_as_long_as_the_one_before(failures: int, first: float) -> None:
    assert backoff_s(failures + 1, first, 1.0) >= backoff_s(failures, first, 1.0)


def test_it_doubles_and_is_spread_over_a_half() -> None:
    assert [backoff_s(failures, 1.0, 0.0) for failures in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert backoff_s(3, 1.0, 1.0) == 4.0
