"""Shares between two calls; ``test_shared_limits.py`` has them with a store."""

from __future__ import annotations

import pytest

from llama_gguf.access.share import CLOSED, LOCAL, MAX_PENDING, OPEN, Share, StoreState


def share_of(
    limit: int, *, gateways: int = 2, length: int = 61, is_up: bool = True, outage: int = LOCAL
) -> Share:
    state = StoreState(outage, 0.0)
    state.gateways, state.is_up = gateways, is_up
    return Share("w", limit=limit, length=length, kept_seconds=1, state=state, counts={})


def admitted(share: Share, attempts: int, *, used: int = 0, period: int = 100) -> int:
    """How many of *attempts* are admitted, if *used* was used before."""
    found = 0
    for _ in range(attempts):
        if share.admits(used + found, period - 60):
            share.add(period, 1)
            found += 1
    return found


def test_a_window_that_the_store_does_not_know_is_divided() -> None:
    assert admitted(share_of(60, gateways=2), 80) == 30
    assert admitted(share_of(60, gateways=3), 80) == 20


def test_each_gateway_may_use_something_of_a_small_limit() -> None:
    assert admitted(share_of(1, gateways=5), 3) == 1


def test_what_is_used_is_sent_soon_and_a_share_that_is_used_up_at_once() -> None:
    share = share_of(6)
    wakes: list[bool] = []
    share.state.wake = lambda: wakes.append(share.state.is_urgent)

    assert admitted(share, 1) == 1
    assert wakes == [False]
    assert admitted(share, 1) == 1
    assert wakes == [False]
    assert admitted(share, 4) == 1
    assert wakes == [False, True]


def test_a_reply_replaces_what_is_known_but_for_what_was_used_since() -> None:
    share = share_of(60)
    admitted(share, 3)
    share.counts[100] = 3
    assert share.begin() == 27
    admitted(share, 2)

    share.apply(28, [99, 5, 100, 4])

    assert share.counts == {99: 5, 100: 6}
    assert share.held == 26
    assert share.pending == {100: 2}
    assert share.sent == {}


def test_a_store_that_has_lost_its_data_does_not_reset_what_is_known() -> None:
    share = share_of(60)
    share.counts.update({99: 7, 100: 2})
    share.add(100, 2)
    share.begin()

    share.apply(10, [100, 2, 101, 1], has_lost=True)

    assert share.counts == {99: 7, 100: 2, 101: 1}


def test_half_of_an_unused_share_is_given_back_when_another_gateway_needs_it() -> None:
    share = share_of(60)
    share.gives_back = True

    assert share.begin() == 15
    assert share.held == 15
    assert not share.gives_back


def test_a_lower_limit_lowers_the_share_at_once() -> None:
    share = share_of(60)
    share.change_limit(8)

    assert share.begin() == 4


def test_a_request_that_costs_more_than_the_share_overdraws_it_once() -> None:
    share = share_of(100)

    assert share.admits(0, 40)
    share.add(100, 80)
    assert share.held == -30
    assert not share.admits(80, 40)


# While the store cannot be reached ----------------------------------------------------------------


def test_in_an_outage_each_gateway_admits_its_part_of_what_was_left() -> None:
    share = share_of(60, is_up=False)

    assert admitted(share, 80, used=20) == 20


def test_in_an_outage_what_was_reported_before_it_is_not_counted_twice() -> None:
    share = share_of(60, is_up=False)
    share.add(100, 10)  # not reported yet: of the 20 that are used, the others have used 10

    assert admitted(share, 80, used=20) == 15


def test_in_an_outage_the_window_slides_on() -> None:
    share = share_of(60, is_up=False)
    assert admitted(share, 80, period=100) == 30

    assert admitted(share, 80, used=0, period=161) == 30


def test_in_an_outage_a_full_window_stays_full() -> None:
    assert admitted(share_of(60, is_up=False), 5, used=60) == 0


def test_open_admits_everything_in_an_outage_and_closed_nothing() -> None:
    assert admitted(share_of(6, is_up=False, outage=OPEN), 50, used=60) == 50
    assert admitted(share_of(6, is_up=False, outage=CLOSED), 50) == 0


@pytest.mark.parametrize("outage", [OPEN, CLOSED])
def test_policies_for_outages_do_not_matter_without_one(outage: int) -> None:
    assert admitted(share_of(60, outage=outage), 80) == 30


def test_decisions_during_an_outage_are_counted() -> None:
    share = share_of(60, is_up=False)
    admitted(share, 40)

    assert share.state.local_decisions == 40


def test_a_long_outage_does_not_fill_memory() -> None:
    share = share_of(60, is_up=False, outage=OPEN)
    for period in range(10_000):
        share.add(period, 1)

    assert len(share.pending) <= MAX_PENDING + 1
    assert share.unreported(10_000 - 61) == 61


def test_a_new_gateway_has_a_twentieth_once_while_the_others_hold_all_shares() -> None:
    share = share_of(60)
    share.state.is_new = True
    assert admitted(share, 10) == 10
    share.begin()
    share.apply(0, [100, 20])  # the others have all that is left

    assert admitted(share, 80, used=20) == 3
    share.begin()
    share.apply(0, [100, 23])
    assert admitted(share, 80, used=23) == 0


def test_a_new_gateway_with_a_share_has_nothing_in_addition() -> None:
    share = share_of(60)
    share.state.is_new = True
    share.begin()
    share.apply(15, [100, 30])

    assert admitted(share, 80, used=30) == 15
