from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.telemetry.timeseries import (
    MAX_EVENT_TEXT,
    MAX_EVENTS,
    MAX_TIMES,
    NAMES,
    RANGES,
    STEP_SECONDS,
    STEPS,
    History,
    Reading,
    quantile,
)
from tests.support.memory import allocated_bytes


def reading(
    requests: int = 0,
    *,
    prompt: int = 0,
    completion: int = 0,
    errors: Mapping[str, int] | None = None,
    running: int = 0,
    waiting: int = 0,
    first_tokens: Sequence[float] = (),
) -> Reading:
    return Reading(requests, prompt, completion, errors or {}, running, waiting, first_tokens)


def history_of(*readings: Reading) -> History:
    """A history that has taken *readings* at its usual interval."""
    history = History(0.0)
    for n, found in enumerate(readings, 1):
        history.take(found, n * STEP_SECONDS)
    return history


def test_a_step_is_due_after_its_time() -> None:
    history = History(100.0)
    due = [history.is_due(100.0 + STEP_SECONDS / 2), history.is_due(100.0 + STEP_SECONDS)]
    history.take(reading(), 100.0 + STEP_SECONDS)

    assert [*due, history.is_due(101.0 + STEP_SECONDS)] == [False, True, False]


def test_counters_become_rates() -> None:
    history = history_of(
        reading(10, prompt=50, completion=100), reading(15, prompt=50, completion=350)
    ).series()

    assert history["requests_per_second"] == [2.0, 1.0]
    assert history["prompt_tokens_per_second"] == [10.0, 0.0]
    assert history["completion_tokens_per_second"] == [20.0, 50.0]


def test_a_step_that_came_late_is_spread_over_its_time() -> None:
    history = History(0.0)
    history.take(reading(10), 2 * STEP_SECONDS)

    assert history.series()["requests_per_second"] == [1.0]


def test_a_step_has_the_gauges_of_its_reading() -> None:
    history = history_of(reading(running=3, waiting=7), reading(running=1)).series()

    assert (history["running"], history["waiting"]) == ([3, 1], [7, 0])


def test_a_step_without_a_response_has_no_time_to_a_first_token() -> None:
    history = history_of(reading(first_tokens=[3.0, 1.0, 2.0]), reading()).series()

    assert history["first_token_p50"] == [2.0, None]
    assert history["first_token_p95"] == [3.0, None]


def test_recent_values_cover_the_last_minute() -> None:
    slow = reading(600, completion=60, first_tokens=[9.0])
    fast = reading(600, completion=60, first_tokens=[0.1, 0.2, 0.3])
    recent = history_of(slow, *[fast] * 11).recent()
    later = history_of(slow, *[fast] * 12).recent()

    assert (recent["seconds"], recent["requests"]) == (60.0, 600)
    assert recent["requests_per_second"] == 10.0
    assert recent["first_token_p50"] == 0.2
    assert later["requests_per_second"] == 0.0
    assert (later["completion_tokens_per_second"], later["first_token_p95"]) == (0.0, 0.3)


def test_errors_are_those_of_the_quarter_of_an_hour_the_most_frequent_first() -> None:
    before = {"queue_full": 5, "old": 9}
    steps = [reading(errors=before)] + [
        reading(errors=before | {"queue_full": 7, "key_expired": 3})
    ] * STEPS

    assert history_of(*steps[:3]).errors() == {"old": 9, "queue_full": 7, "key_expired": 3}
    assert history_of(*steps).errors() == {"key_expired": 3, "queue_full": 2}


def test_errors_of_an_earlier_run_can_be_left_out() -> None:
    earlier = history_of(reading(errors={"queue_full": 5}))
    history = History(STEP_SECONDS)
    history.restore(earlier.snapshot().dump())
    history.take(reading(errors={"key_expired": 1}), 2 * STEP_SECONDS)

    assert history.errors() == {"queue_full": 5, "key_expired": 1}
    assert history.errors(all_runs=False) == {"key_expired": 1}


def test_a_history_without_steps_has_rates_of_zero() -> None:
    history = History(0.0)

    assert history.recent() == {
        "seconds": 0.0,
        "requests": 0,
        "requests_per_second": 0.0,
        "prompt_tokens_per_second": 0.0,
        "completion_tokens_per_second": 0.0,
        "first_token_p50": None,
        "first_token_p95": None,
    }
    assert history.series() == {name: [] for name in ("times", *NAMES)}
    assert history.errors() == {}


@given(count=st.integers(0, 2 * STEPS), times=st.integers(0, 2 * MAX_TIMES))
def test_the_memory_of_a_history_is_bounded(count: int, times: int) -> None:
    history = history_of(*[reading(first_tokens=[0.5] * times)] * count)

    assert {len(steps) for steps in history.series().values()} == {min(count, STEPS)}


def test_a_step_keeps_a_bounded_number_of_times() -> None:
    def of(times: int) -> int:
        return allocated_bytes(lambda: history_of(*[reading(first_tokens=[0.5] * times)] * STEPS))

    assert of(20 * MAX_TIMES) < 2 * of(MAX_TIMES)


@given(values=st.lists(st.floats(0, 100), min_size=1), share=st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_this_share_does_not_exceed(
    values: list[float], share: float
) -> None:
    values = sorted(round(value, 4) for value in values)
    found = quantile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.95, 4.0), (0.25, 1.0), (1.0, 4.0)])
def test_quantiles_by_hand(share: float, value: float) -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == value


# Longer ranges ------------------------------------------------------------------------------------


def steadily(count: int) -> History:
    """A request a second, with a time to a first token of 1 s in each reading."""
    return history_of(*[reading(5 * n, first_tokens=[1.0]) for n in range(1, count + 1)])


@pytest.mark.parametrize("seconds", RANGES)
def test_each_range_is_covered_by_steps_of_its_length(seconds: int) -> None:
    series = steadily(int(86400 / STEP_SECONDS)).series(seconds)
    length = RANGES[seconds]
    times = [time or 0.0 for time in series["times"]]

    assert len(times) == pytest.approx(seconds / length, abs=1)
    assert {later - sooner for sooner, later in itertools.pairwise(times[:-1])} == {length}
    assert set(series["requests_per_second"]) == {1.0}
    assert set(series["first_token_p50"]) == {1.0}


def test_a_long_step_is_shown_before_it_is_over() -> None:
    assert steadily(2).series(86400)["requests_per_second"] == [1.0]


def test_a_long_step_has_the_most_of_its_gauges() -> None:
    history = history_of(reading(running=1, waiting=9), reading(running=5), reading()).series(3600)

    assert (history["running"], history["waiting"]) == ([5], [9])


def test_a_time_in_which_the_gateway_did_not_run_is_a_gap() -> None:
    before = steadily(2)
    history = History(100.0)
    history.restore(before.snapshot().dump())
    history.take(reading(10), 100.0 + STEP_SECONDS)

    assert history.series()["requests_per_second"] == [1.0, 1.0, None, 2.0]
    assert history.series()["times"] == [5.0, 10.0, 55.0, 105.0]


def test_what_is_older_than_the_range_is_left_out() -> None:
    history = history_of(reading(5), reading(5))
    history.note("crash", "old", 1.0)
    history.note("crash", "new", 900.0)
    history.take(reading(5, errors={"late": 1}), 905.0)

    assert history.series(300)["times"] == [905.0]
    assert [event["text"] for event in history.events(300)] == ["new"]
    assert [event["text"] for event in history.events(3600)] == ["old", "new"]
    assert history.errors(300) == {"late": 1}


@given(texts=st.lists(st.text(max_size=2000), max_size=200))
def test_events_are_bounded(texts: list[str]) -> None:
    history = History(0.0)
    for text in texts:
        history.note("crash", text, 1.0)
    history.take(reading(), STEP_SECONDS)

    assert len(history.events()) == min(len(texts), MAX_EVENTS)
    assert all(len(event["text"]) <= MAX_EVENT_TEXT for event in history.events())
