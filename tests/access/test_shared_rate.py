"""Windows of shared rates with a fake clock and one gateway: the same as the local ones."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.access.rate_limit import REFUSED, SlidingWindow
from llama_gguf.access.share import LOCAL, OPEN, Share, StoreState
from llama_gguf.access.shared_limits import RATE_SECONDS
from llama_gguf.access.shared_rate import SHORTEST_WAIT, SharedRate

TICK = 0.125
gaps = st.integers(0, 240).map(lambda eighths: eighths * TICK)


def rate_of(limit: int, *, offset: float = 1000.5, is_up: bool = True) -> SharedRate:
    """A rate of the only gateway, whose share is always all that is left."""
    state = StoreState(LOCAL, offset)
    state.is_up = is_up
    share = Share("w", limit=limit, length=RATE_SECONDS, kept_seconds=1, state=state, counts={})
    return SharedRate(limit, share)


def synchronise(rate: SharedRate, now: float) -> None:
    """As a store would that has everything."""
    share = rate.share
    rate.remaining(now)  # removes what has left the window
    known = [number for pair in share.counts.items() for number in pair]
    share.begin()
    share.apply(max(rate.limit - sum(share.counts.values()), 0), known)


def hits(rate: SharedRate, now: float, attempts: int) -> int:
    found = 0
    for _ in range(attempts):
        synchronise(rate, now)
        found += rate.hit(now) != REFUSED
    return found


@given(gaps=st.lists(gaps, max_size=60), limit=st.integers(1, 6))
def test_no_window_ever_holds_more_than_the_limit(gaps: list[float], limit: int) -> None:
    rate = rate_of(limit)
    admitted = [t for t in itertools.accumulate(gaps) if hits(rate, t, 1)]

    for start in admitted:
        assert sum(start <= t < start + 60 for t in admitted) <= limit


@given(gaps=st.lists(gaps, max_size=60), limit=st.integers(1, 6))
def test_a_request_counts_at_most_a_second_longer_than_locally(
    gaps: list[float], limit: int
) -> None:
    rate = rate_of(limit)
    admitted: list[float] = []
    for now in itertools.accumulate(gaps):
        is_admitted = hits(rate, now, 1)
        if sum(now - 61 < t for t in admitted) < limit:
            assert is_admitted
        if is_admitted:
            admitted.append(now)


@given(gaps=st.lists(gaps, min_size=1, max_size=30), limit=st.integers(1, 4))
def test_the_wait_is_exact(gaps: list[float], limit: int) -> None:
    rate = rate_of(limit)
    now = 0.0
    for gap in gaps:
        now += gap
        hits(rate, now, 1)
    wait = rate.retry_after(now)

    if wait:
        assert not hits(rate, now + wait - TICK / 2, 1)
    assert hits(rate, now + wait, 1)


def test_limits_remaining_and_reset_are_those_of_the_local_window_but_for_a_second() -> None:
    rate, local = rate_of(5), SlidingWindow(limit=5)
    for now in (0.25, 3.5, 3.75):
        synchronise(rate, now)
        assert rate.hit(now) == local.hit(now)

    assert rate.remaining(10.0) == local.remaining(10.0) == 2
    assert 0 <= rate.reset(10.0) - local.reset(10.0) <= 1
    assert rate.reset(3.75) <= 60


def test_a_request_that_is_refused_elsewhere_is_given_back() -> None:
    rate = rate_of(1)
    assert hits(rate, 5.0, 2) == 1

    rate.take_back(5.0)

    assert hits(rate, 5.0, 2) == 1


def test_a_request_is_given_back_after_it_was_reported() -> None:
    rate = rate_of(1)
    assert hits(rate, 5.0, 1) == 1
    synchronise(rate, 5.5)

    rate.take_back(5.0)

    assert rate.share.pending == {1005: -1}
    assert hits(rate, 6.0, 1) == 1


def test_a_limit_that_is_raised_applies_and_admitted_requests_still_count() -> None:
    rate = rate_of(1)
    assert hits(rate, 5.0, 2) == 1

    rate.limit = 3

    assert hits(rate, 5.0, 5) == 2


def test_a_client_that_only_lacks_a_share_may_try_again_soon() -> None:
    rate = rate_of(60)
    rate.share.held = 0

    assert rate.hit(5.0) == REFUSED
    assert rate.retry_after(5.0) == SHORTEST_WAIT


def test_what_other_gateways_have_used_counts() -> None:
    rate = rate_of(5)
    rate.share.begin()
    rate.share.apply(5, [1003, 5])

    assert rate.hit(3.0) == REFUSED
    assert rate.remaining(3.0) == 0
    assert rate.retry_after(3.0) == pytest.approx(60.5)


def test_a_clock_of_the_store_that_is_set_back_lets_nothing_through() -> None:
    rate = rate_of(1)
    assert hits(rate, 100.0, 1) == 1

    rate.share.state.offset -= 50

    assert rate.hit(100.0) == REFUSED
    assert 0 < rate.retry_after(100.0) <= 61


def test_without_limits_in_an_outage_nothing_has_to_wait() -> None:
    rate = rate_of(1, is_up=False)
    rate.share.state.outage = OPEN

    assert [rate.hit(5.0) for _ in range(3)] == [0, 0, 0]
