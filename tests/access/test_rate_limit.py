from __future__ import annotations

import copy
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.access.rate_limit import REFUSED, FailureLimit, SlidingWindow, network_of
from tests.support.memory import allocated_bytes

# Times are eighths of a second: exact in a float, so that a test can use the time just before.
TICK = 0.125
gaps = st.integers(0, 240).map(lambda eighths: eighths * TICK)


def room_in(window: SlidingWindow, now: float) -> int:
    """How many requests at *now* would be admitted."""
    window = copy.deepcopy(window)
    return sum(window.hit(now) != REFUSED for _ in range(window.limit + 1))


# The window ---------------------------------------------------------------------------------------


@given(gaps=st.lists(gaps, max_size=60), limit=st.integers(1, 6))
def test_no_window_ever_holds_more_than_the_limit(gaps: list[float], limit: int) -> None:
    window = SlidingWindow(limit=limit)
    admitted = [t for t in itertools.accumulate(gaps) if window.hit(t) != REFUSED]

    for start in admitted:
        assert sum(start <= t < start + 60 for t in admitted) <= limit


@given(gaps=st.lists(gaps, max_size=60), limit=st.integers(1, 6))
def test_no_request_is_refused_while_there_is_room(gaps: list[float], limit: int) -> None:
    window = SlidingWindow(limit=limit)
    admitted: list[float] = []
    for now in itertools.accumulate(gaps):
        has_room = sum(now - 60 < t for t in admitted) < limit

        is_admitted = window.hit(now) != REFUSED

        assert is_admitted == has_room
        if is_admitted:
            admitted.append(now)


steps = st.lists(st.tuples(gaps, st.none() | st.integers(1, 6)), max_size=60)
"""Seconds until a request, and the limit from then on, if it changes."""


@given(steps=steps, limit=st.integers(1, 6))
def test_the_wait_is_exact_even_when_the_limit_changes(
    steps: list[tuple[float, int | None]], limit: int
) -> None:
    window = SlidingWindow(limit=limit)
    now = 0.0
    for gap, new_limit in steps:
        now += gap
        window.limit = new_limit or window.limit

        is_refused = window.hit(now) == REFUSED

        wait = window.retry_after(now)
        assert (wait > 0) == (room_in(window, now) == 0)
        assert wait or not is_refused
        if wait:
            assert room_in(window, now + wait)
            assert not room_in(window, now + wait - TICK)


def test_a_refused_request_does_not_push_the_window() -> None:
    window = SlidingWindow(limit=1)
    window.hit(0.0)
    window.hit(59.0)

    assert window.hit(60.0) == 0


def test_computing_the_wait_counts_nothing() -> None:
    window = SlidingWindow(limit=1)

    assert [window.retry_after(0.0) for _ in range(3)] == [0.0] * 3
    assert window.hit(0.0) == 0


def test_requests_admitted_under_a_higher_limit_count_against_a_lower_one() -> None:
    window = SlidingWindow(limit=4)
    for now in (0.0, 1.0, 2.0, 3.0):
        window.hit(now)

    window.limit = 2

    assert window.hit(10.0) == REFUSED
    assert window.retry_after(10.0) == 52.0  # until the request at 2.0 leaves the window
    assert window.hit(62.0) == 0


def test_a_raised_limit_applies_at_once() -> None:
    window = SlidingWindow(limit=1)
    window.hit(0.0)

    window.limit = 2

    assert (window.hit(1.0), window.hit(2.0)) == (0, REFUSED)
    assert window.retry_after(2.0) == 58.0


@given(steps=steps, limit=st.integers(1, 6))
def test_a_hit_returns_how_many_more_would_be_admitted(
    steps: list[tuple[float, int | None]], limit: int
) -> None:
    window = SlidingWindow(limit=limit)
    now = 0.0
    for gap, new_limit in steps:
        now += gap
        window.limit = new_limit or window.limit

        promised = window.hit(now)

        assert promised >= REFUSED
        assert room_in(window, now) == max(promised, 0)


@given(gaps=st.lists(gaps, min_size=1, max_size=30), limit=st.integers(1, 6))
def test_the_window_is_empty_at_the_reset_and_not_before(gaps: list[float], limit: int) -> None:
    window = SlidingWindow(limit=limit)
    for now in itertools.accumulate(gaps):
        window.hit(now)

    clear_at = now + window.reset(now)

    assert room_in(window, clear_at - TICK) < limit
    assert room_in(window, clear_at) == limit
    assert window.reset(clear_at) == 0.0


def test_directly_after_a_hit_the_reset_is_a_whole_window_away() -> None:
    window = SlidingWindow(limit=3)
    assert window.reset(5.0) == 0.0
    window.hit(5.0)
    window.hit(7.0)

    assert window.reset(7.0) == window.window == 60.0


@given(gaps=st.lists(gaps, max_size=20), limit=st.integers(1, 4), wait=gaps)
def test_remaining_is_the_number_that_would_be_admitted(
    gaps: list[float], limit: int, wait: float
) -> None:
    window = SlidingWindow(limit=limit)
    now = 0.0
    for now in itertools.accumulate(gaps):
        window.hit(now)

    room = room_in(window, now + wait)
    assert window.remaining(now + wait) == room


def test_remaining_is_never_negative_after_the_limit_was_lowered() -> None:
    window = SlidingWindow(limit=3)
    for _ in range(3):
        window.hit(0.0)
    window.limit = 1

    assert window.remaining(1.0) == 0


@given(
    times=st.lists(gaps, min_size=1, max_size=20).map(lambda g: [*itertools.accumulate(g)]),
    data=st.data(),
)
def test_a_hit_that_is_taken_back_has_no_effect(times: list[float], data: st.DataObject) -> None:
    taken = data.draw(st.sampled_from(times))
    with_it, without = SlidingWindow(limit=100), SlidingWindow(limit=100)
    for now in times:
        with_it.hit(now)
    others = list(times)
    others.remove(taken)
    for now in others:
        without.hit(now)
    with_it.take_back(taken)

    end = times[-1]
    assert with_it.remaining(end) == without.remaining(end)
    assert with_it.reset(end) == pytest.approx(without.reset(end))


def test_taking_back_a_hit_that_has_left_the_window_changes_nothing() -> None:
    window = SlidingWindow(limit=2)
    window.hit(0.0)
    window.hit(70.0)
    window.take_back(0.0)

    assert window.remaining(70.0) == 1


def test_the_memory_of_a_window_is_bounded_by_its_limit() -> None:
    window = SlidingWindow(limit=5)

    def hit_often() -> None:
        for tick in range(10_000):
            window.hit(tick * TICK)

    assert allocated_bytes(hit_often) < 10_000


@pytest.mark.parametrize(("limit", "length"), [(0, 60.0), (-1, 60.0), (1, 0.0), (1, -1.0)])
def test_a_window_that_admits_nothing_cannot_be_created(limit: int, length: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        SlidingWindow(limit=limit, window=length)


# Invalid keys -------------------------------------------------------------------------------------


class SmallFailureLimit(FailureLimit):
    MAX_ADDRESSES = 3


def test_an_address_at_its_failure_limit_has_to_wait() -> None:
    failures = FailureLimit(per_minute=2)
    failures.failed("a", 0.0)
    assert failures.retry_after("a", 1.0) == 0.0
    failures.failed("a", 1.0)

    assert failures.retry_after("a", 2.0) == 58.0
    assert failures.retry_after("a", 60.0) == 0.0


def test_failures_of_one_address_do_not_affect_another() -> None:
    failures = FailureLimit(per_minute=1)
    failures.failed("a", 0.0)

    assert failures.retry_after("b", 0.0) == 0.0


def test_failures_during_the_wait_do_not_prolong_it() -> None:
    failures = FailureLimit(per_minute=1)
    for now in (0.0, 30.0, 59.0):
        failures.failed("a", now)

    assert failures.retry_after("a", 60.0) == 0.0


def test_checking_an_address_does_not_count_as_a_failure() -> None:
    failures = FailureLimit(per_minute=1)

    assert [failures.retry_after("a", 0.0) for _ in range(3)] == [0.0] * 3


def test_zero_failures_per_minute_means_no_limit() -> None:
    failures = FailureLimit(per_minute=0)
    for _ in range(100):
        failures.failed("a", 0.0)

    assert failures.retry_after("a", 0.0) == 0.0
    assert not failures.addresses


def test_only_addresses_with_failures_are_stored() -> None:
    failures = FailureLimit(per_minute=2)
    failures.retry_after("b", 0.0)
    failures.failed("a", 0.0)

    assert failures.addresses.keys() == {"a"}


def test_a_flood_of_addresses_evicts_the_oldest_and_memory_is_bounded() -> None:
    failures = SmallFailureLimit(per_minute=1)
    for address in ("a", "b", "c", "d"):
        failures.failed(address, 0.0)

    waits = [failures.retry_after(address, 0.0) for address in ("a", "b", "c", "d")]
    for n in range(1000):
        failures.failed(f"10.0.0.{n}", 0.0)

    assert waits == [0.0, 60.0, 60.0, 60.0]
    assert len(failures.addresses) == 3


def test_an_address_is_removed_when_its_failures_no_longer_count() -> None:
    failures = FailureLimit(per_minute=1)
    failures.failed("a", 0.0)

    assert failures.retry_after("a", 60.0) == 0.0
    assert not failures.addresses


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("unix", "unix"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network
