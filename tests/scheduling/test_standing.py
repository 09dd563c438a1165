from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.errors import IllegalTransition
from llama_gguf.scheduling.standing import (
    FIRST_EJECTION_SECONDS,
    LONGEST_EJECTION_SECONDS,
    MAX_ERRORS,
    MAX_LOST,
    TRANSITIONS,
    Event,
    Standing,
    State,
)

SLOTS = 4


@pytest.fixture
def standing() -> Standing:
    return Standing()


def eject(standing: Standing, now: float = 0.0) -> None:
    """By errors, while others respond well."""
    for n in itertools.count():
        if standing.on_error(now, has_other=True, others=n):
            return


def lose(standing: Standing) -> bool:
    """A connection is lost, and the probe responds after that."""
    was_ejected = standing.on_lost(0.0, has_other=True)
    standing.on_alive()
    return was_ejected


def test_a_replica_without_failures_gets_as_many_requests_as_it_has_slots(
    standing: Standing,
) -> None:
    assert standing.limit(SLOTS) == SLOTS
    assert not standing.is_watched


def test_the_only_one_is_never_ejected(standing: Standing) -> None:  # 1
    for n in range(100):
        assert not standing.on_error(0.0, has_other=False, others=n)
        assert not standing.on_lost(0.0, has_other=False)

    assert standing.limit(SLOTS) == SLOTS


def test_one_that_fails_on_trial_is_out_for_twice_as_long(standing: Standing) -> None:  # 2
    now, gaps = 0.0, []
    eject(standing)
    for _ in range(9):
        gaps.append(standing.until - now)
        now = standing.until
        assert standing.on_time(now)
        assert standing.limit(SLOTS) == 1
        assert standing.on_error(now, has_other=True, others=0)

    assert gaps[:3] == [FIRST_EJECTION_SECONDS * factor for factor in (1, 2, 4)]
    assert gaps[-1] == LONGEST_EJECTION_SECONDS


def test_one_that_loses_its_connections_is_ejected_although_its_probe_responds(
    standing: Standing,
) -> None:  # 3
    assert [lose(standing) for _ in range(MAX_LOST)] == [False, False, True]
    assert standing.limit(SLOTS) == 0


def test_connections_that_are_lost_together_are_one_incident(standing: Standing) -> None:
    for _ in range(10):
        assert not standing.on_lost(0.0, has_other=True)
    standing.on_alive()

    assert standing.limit(SLOTS) == SLOTS


def test_after_a_lost_connection_it_gets_nothing_until_its_probe_responds(
    standing: Standing,
) -> None:  # 4
    standing.on_lost(0.0, has_other=True)
    assert standing.limit(SLOTS) == 0
    standing.on_alive()

    assert standing.limit(SLOTS) == SLOTS


def test_one_that_responds_with_errors_to_everything_is_ejected(standing: Standing) -> None:  # 5
    found = [standing.on_error(0.0, has_other=True, others=n) for n in range(MAX_ERRORS)]

    assert found == [False] * (MAX_ERRORS - 1) + [True]
    assert not standing.on_time(FIRST_EJECTION_SECONDS / 2)
    assert standing.limit(SLOTS) == 0


def test_where_all_have_errors_the_requests_are_the_reason(standing: Standing) -> None:  # 5
    for n in range(100):
        assert not standing.on_error(0.0, has_other=True, others=-n)


def test_a_good_response_between_errors_breaks_the_row(standing: Standing) -> None:
    for n in range(100):
        assert not standing.on_error(0.0, has_other=True, others=n)
        if n % (MAX_ERRORS - 1) == 0:
            standing.on_response(SLOTS)


def test_after_a_trial_it_gets_one_more_request_with_each_response(standing: Standing) -> None:
    eject(standing)
    standing.on_time(standing.until)
    limits = [standing.limit(SLOTS)]
    for _ in range(SLOTS):
        standing.on_response(SLOTS)
        limits.append(standing.limit(SLOTS))

    assert limits == [1, 2, 3, 4, 4]
    assert not standing.is_watched
    eject(standing, now=50.0)
    assert standing.until == 50.0 + FIRST_EJECTION_SECONDS  # what was before is forgiven


def test_after_a_load_under_way_of_others_it_starts_slowly(standing: Standing) -> None:
    standing.on_loaded(is_gradual=True)
    assert standing.limit(SLOTS) == 1
    for _ in range(SLOTS):
        standing.on_response(SLOTS)

    assert standing.limit(64) == 64


def test_a_slow_start_ends_with_the_queue(standing: Standing) -> None:
    assert not standing.on_empty_queue()
    standing.on_loaded(is_gradual=True)

    assert standing.on_empty_queue()

    assert standing.limit(SLOTS) == SLOTS
    assert not standing.is_watched
    assert not standing.on_empty_queue()


def test_an_ejection_does_not_end_with_the_queue(standing: Standing) -> None:
    standing.on_loaded(is_gradual=True)
    eject(standing)

    assert not standing.on_empty_queue()
    assert standing.limit(SLOTS) == 0


def test_a_new_process_is_not_judged_by_the_old_one(standing: Standing) -> None:
    eject(standing)
    standing.on_loaded(is_gradual=False)

    assert standing.limit(SLOTS) == SLOTS


def test_an_ejected_one_is_tried_at_once_when_there_is_no_other(standing: Standing) -> None:
    eject(standing)

    assert standing.on_needed()
    assert standing.limit(SLOTS) == 1


def test_a_refusal_is_no_failure_and_ends_by_itself(standing: Standing) -> None:
    standing.on_refused(2.0)
    assert standing.limit(SLOTS) == 0
    assert standing.on_time(2.0)

    assert standing.limit(SLOTS) == SLOTS


def test_an_event_that_cannot_happen_is_a_bug(standing: Standing) -> None:
    with pytest.raises(IllegalTransition):
        standing._on(Event.DUE)


@given(st.lists(st.sampled_from(["error", "lost", "alive", "good", "refused", "time", "loaded"])))
def test_no_history_breaks_the_table_or_leaves_a_replica_out_for_ever(events: list[str]) -> None:
    standing, now = Standing(), 0.0
    for n, event in enumerate(events):
        now += 0.25
        match event:
            case "error":
                standing.on_error(now, has_other=True, others=n)
            case "lost":
                standing.on_lost(now, has_other=True)
            case "alive":
                standing.on_alive()
            case "good":
                standing.on_response(SLOTS)
            case "refused":
                standing.on_refused(now + 1)
            case "time":
                standing.on_time(now)
            case _:
                standing.on_loaded(is_gradual=True)
    standing.on_alive()
    standing.on_time(now + LONGEST_EJECTION_SECONDS)

    assert standing.limit(SLOTS) >= 1
    assert (standing.state, Event.LOADED) in TRANSITIONS
    assert standing.state in (State.SERVING, State.TRIAL)
