"""The number of engines, as histories of what was needed when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.cluster.scaling import BUSY_SECONDS, Bounds, Scaling, needed

IDLE = 60.0


def run(scaling: Scaling, *steps: tuple[float, int]) -> list[int]:
    return [scaling.step(wanted, now) for now, wanted in steps]


def scaling(least: int, most: int, current: int) -> Scaling:
    return Scaling(Bounds(least, most), idle_seconds=IDLE, current=current, now=0.0)


@pytest.mark.parametrize(
    ("queued", "running", "slots", "engines"),
    [(0, 0, 4, 0), (1, 0, 4, 1), (0, 4, 4, 1), (1, 4, 4, 2), (9, 4, 4, 4), (3, 0, 0, 3)],
)
def test_the_requests_that_run_and_wait_decide_how_many_are_needed(
    queued: int, running: int, slots: int, engines: int
) -> None:
    assert needed(queued=queued, running=running, slots=slots) == engines


def test_the_first_engine_is_started_at_once_and_further_ones_when_the_need_lasts() -> None:
    history = run(scaling(0, 8, 0), (0.0, 1), (1.0, 3), (1.0 + BUSY_SECONDS, 3))

    assert history == [1, 1, 3]


def test_a_burst_that_is_soon_worked_off_starts_nothing() -> None:
    assert run(scaling(1, 8, 1), (0.0, 5), (1.9, 5), (1.95, 1), (2.5, 5), (4.4, 5)) == [1] * 5


def test_no_more_are_started_than_the_most() -> None:
    assert run(scaling(0, 2, 0), (0.0, 9), (5.0, 9), (10.0, 9)) == [2, 2, 2]


def test_an_engine_is_stopped_when_it_was_not_needed_for_the_idle_time() -> None:
    history = run(
        scaling(0, 8, 3), (0.0, 3), (59.0, 2), (60.0, 0), (118.0, 0), (119.0, 0), (120, 0)
    )

    assert history == [3, 3, 2, 2, 0, 0]


def test_no_fewer_are_kept_than_the_least() -> None:
    assert run(scaling(1, 8, 3), (IDLE, 0), (9 * IDLE, 0)) == [1, 1]


def test_other_bounds_apply_at_once_to_the_engines_that_there_are() -> None:
    assert scaling(1, 2, 6).step(6, 0.0) == 2
    assert scaling(4, 4, 2).step(0, 0.0) == 4


@given(
    least=st.integers(0, 3),
    more=st.integers(0, 5),
    wants=st.lists(st.tuples(st.floats(0.1, 200.0), st.integers(0, 12))),
)
def test_the_number_is_within_its_bounds_and_covers_a_need_that_lasts(
    least: int, more: int, wants: list[tuple[float, int]]
) -> None:
    most, now = least + more, 0.0
    history = scaling(least, most, least)
    for seconds, wanted in wants:
        before = history.step(wanted, now)
        now += seconds + BUSY_SECONDS
        after = history.step(wanted, now)
        assert least <= before <= most
        assert min(wanted, most) <= after <= most
