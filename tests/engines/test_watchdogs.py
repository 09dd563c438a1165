from __future__ import annotations

from collections.abc import Callable

import pytest

from llama_gguf.engines.activity import Activity
from llama_gguf.engines.watchdogs import (
    FlowWatch,
    IdleWatch,
    LoadReport,
    Patience,
    Progress,
    StallWatch,
)


def first(over: Callable[[float], bool], *, until: float = 1000.0) -> float | None:
    """The first second at which *over* is true; None if it never is."""
    now = 0.0
    while now <= until:
        if over(now):
            return now
        now += 1.0
    return None


# Patience -----------------------------------------------------------------------------------------


def test_patience_ends_after_its_seconds_without_a_sign() -> None:
    patience = Patience(30.0)

    assert first(lambda now: patience.check(sign=now < 100, now=now)) == 130.0


def test_patience_that_is_zero_never_ends() -> None:
    patience = Patience(0.0)

    assert first(lambda now: patience.check(sign=False, now=now)) is None


def test_time_in_which_the_machine_was_frozen_does_not_count() -> None:
    patience = Patience(30.0)
    assert not patience.check(sign=True, now=0.0)

    assert not patience.check(sign=False, now=3600.0)
    assert not patience.check(sign=False, now=3610.0)
    assert not patience.check(sign=True, now=3611.0)


# Progress of a load -------------------------------------------------------------------------------

AT_FIRST = Progress(1.0, (5,), memory_bytes=1 << 30, read_bytes=1 << 20)


@pytest.mark.parametrize(
    "moved",
    [
        Progress(101.0, (5,), 1 << 30, 1 << 20),  # a tenth of a core and more
        Progress(1.0, (6,), 1 << 30, 1 << 20),  # a line, or a major fault
        Progress(1.0, (5,), 2 << 30, 1 << 20),  # memory
        Progress(1.0, (5,), 1 << 30, 100 << 20),  # reading
    ],
    ids=["cpu", "work", "memory", "reading"],
)
def test_a_load_with_progress_is_not_stalled_however_long_it_takes(moved: Progress) -> None:
    watch = StallWatch(300.0)

    over = first(lambda now: watch.check(AT_FIRST if now < 250 else moved, now))

    assert over == 551.0


def test_the_cost_of_our_probes_is_no_sign_of_progress() -> None:
    watch = StallWatch(300.0)

    def spent(second: float) -> Progress:
        cost = int(second) * 4096
        return Progress(1.0 + second * 0.01, (5,), (1 << 30) + cost, cost)

    assert first(lambda now: watch.check(spent(now), now)) == 301.0


@pytest.mark.parametrize(
    ("read", "model", "share"),
    [(0, 100, None), (50, 0, None), (25, 100, 0.25), (100, 100, 0.99), (300, 100, 0.99)],
)
def test_the_estimated_share_is_always_below_1(read: int, model: int, share: float | None) -> None:
    assert Progress(read_bytes=read).share_of(model) == share


# Requests without any response --------------------------------------------------------------------


def test_requests_without_any_response_are_stuck_after_a_while() -> None:
    watch = FlowWatch(60.0)
    stuck = Activity(busy=2, running=2, responses=7, data_ticks=9)

    assert first(lambda now: watch.check(stuck, now)) == 61.0


@pytest.mark.parametrize(
    "at",
    [
        lambda now: Activity(busy=3, running=0, responses=7, data_ticks=9),
        lambda now: Activity(busy=2, running=2, responses=7, data_ticks=int(now) // 50),
        lambda now: Activity(busy=2, running=2, responses=int(now) // 50, data_ticks=9),
    ],
    ids=["nothing is at the engine", "bytes come", "others are answered"],
)
def test_as_long_as_the_engine_sends_anything_nothing_is_stuck(
    at: Callable[[float], Activity],
) -> None:
    watch = FlowWatch(60.0)

    assert first(lambda now: watch.check(at(now), now)) is None


# Idle ---------------------------------------------------------------------------------------------


def test_no_requests_for_a_while_is_idle() -> None:
    watch = IdleWatch(600.0)

    assert first(lambda now: watch.check(Activity(responses=5), now)) == 601.0


@pytest.mark.parametrize(
    "at",
    [
        lambda now: Activity(busy=1),
        lambda now: Activity(responses=int(now) // 500),  # between two checks
    ],
    ids=["one is under way", "one was answered"],
)
def test_an_engine_with_requests_is_not_idle(at: Callable[[float], Activity]) -> None:
    watch = IdleWatch(600.0)

    assert first(lambda now: watch.check(at(now), now)) is None


# When a load is reported --------------------------------------------------------------------------


def reported(shares: Callable[[float], float | None], seconds: int) -> list[int]:
    """The seconds at which a load is reported."""
    report = LoadReport()
    return [n for n in range(seconds) if report.check(shares(float(n)), float(n))]


def test_a_short_load_is_not_reported() -> None:
    assert reported(lambda now: now / 5, 5) == []


def test_a_long_load_is_reported_at_each_tenth() -> None:
    assert reported(lambda now: now / 100, 40) == [10, 20, 30]


def test_a_fast_load_is_not_reported_more_often_than_every_few_seconds() -> None:
    assert reported(lambda now: now / 20, 20) == [5, 10, 15]


@pytest.mark.parametrize("share", [None, 0.05])
def test_a_load_without_visible_progress_is_still_reported(share: float | None) -> None:
    assert reported(lambda now: share, 70) == [30, 60]
