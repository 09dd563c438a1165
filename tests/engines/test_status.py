from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.engines.status import HEALTH_STATUS, MAY_COME, ChildState, EngineStatus

S = ChildState

statuses = st.builds(
    EngineStatus,
    state=st.sampled_from(ChildState),
    since=st.floats(0, 2e9),
    replica=st.text(),
    address=st.text(),
    is_silent=st.booleans(),
    is_removed=st.booleans(),
    slots=st.none() | st.integers(0, 1024),
    model=st.text(),
    detail=st.text(),
    progress=st.none() | st.floats(0, 1),
    wakes_itself=st.booleans(),
    load_seconds=st.none() | st.floats(0, 1e6),
    last_exit=st.text(),
    missing_devices=st.lists(st.text()).map(tuple),
    restarts=st.dictionaries(st.sampled_from(["crash", "hang", "stall"]), st.integers(0, 1000)),
    revision=st.integers(0, 1 << 40),
)


@given(status=statuses)
def test_a_status_is_one_line_and_is_read_back_unchanged(
    status: EngineStatus,
) -> None:
    line = status.to_line()

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert EngineStatus.from_line(line) == status


@pytest.mark.parametrize("line", [b"", b"{}", b'{"state": "dozing", "since": 1}', b"[]"])
def test_a_line_that_is_no_status_is_rejected(line: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        EngineStatus.from_line(line)


def test_a_change_of_state_begins_now_and_drops_the_last_reason() -> None:
    status = EngineStatus(S.BACKOFF, since=1.0, slots=4, model="m", detail="it died")

    assert status.moved(S.LOADING, 5.0) == EngineStatus(S.LOADING, since=5.0, slots=4, model="m")


def test_the_same_state_keeps_its_start_time() -> None:
    status = EngineStatus(S.READY, since=1.0)

    assert status.moved(S.READY, 5.0, detail="still").since == 1.0


@pytest.mark.parametrize("state", ChildState)
def test_only_an_engine_that_serves_drains_or_sleeps_is_healthy(state: ChildState) -> None:
    assert (HEALTH_STATUS[state] == 200) == (state in (S.READY, S.DRAINING, S.ASLEEP))


@pytest.mark.parametrize("state", ChildState)
def test_requests_are_sent_only_to_an_engine_that_serves(state: ChildState) -> None:
    assert EngineStatus(state, since=0.0).serves == (state is S.READY)


def test_an_engine_that_sleeps_by_itself_is_woken_by_a_request() -> None:
    assert EngineStatus(S.ASLEEP, since=0.0, wakes_itself=True).serves


def test_a_change_of_state_drops_the_progress_and_keeps_the_history() -> None:
    history = {"load_seconds": 2.0, "last_exit": "it died", "restarts": {"crash": 1}}
    status = EngineStatus(S.LOADING, since=1.0, progress=0.5, **history)  # type: ignore[arg-type]

    assert status.moved(S.READY, 5.0) == EngineStatus(S.READY, since=5.0, **history)  # type: ignore[arg-type]


def test_204_is_sent_only_while_the_first_load_may_still_succeed() -> None:
    initialising = {state for state, status in HEALTH_STATUS.items() if status == 204}

    assert initialising == {S.STARTING, S.LOADING}
    assert set(HEALTH_STATUS.values()) == {200, 204, 503}


@pytest.mark.parametrize("state", [S.FAILED, S.STOPPING, S.STOPPED])
def test_no_request_waits_for_an_engine_that_will_not_be_ready(state: ChildState) -> None:
    assert state not in MAY_COME


@pytest.mark.parametrize(
    "state", [S.STARTING, S.LOADING, S.DRAINING, S.ASLEEP, S.BACKOFF, S.UNREACHABLE]
)
def test_requests_wait_for_an_engine_that_may_become_ready(state: ChildState) -> None:
    assert state in MAY_COME


def test_the_summary_of_several_is_that_of_the_most_able_with_added_numbers() -> None:
    loads = EngineStatus(S.LOADING, since=1.0, restarts={"crash": 2}, revision=9)
    serves = EngineStatus(S.READY, since=2.0, slots=4, request_tokens=4096, restarts={"crash": 1})
    other = EngineStatus(
        S.READY, since=3.0, slots=2, request_tokens=2048, missing_devices=("GPU1",)
    )
    found = EngineStatus.of_all([loads, serves, other])

    assert (found.state, found.since, found.slots, found.request_tokens) == (S.READY, 2.0, 6, 2048)
    assert (found.restarts, found.missing_devices) == ({"crash": 3}, ("GPU1",))
    assert found.revision == 9


def test_the_summary_of_one_is_its_own_status() -> None:
    only = EngineStatus(S.BACKOFF, since=1.0, detail="it died")

    assert EngineStatus.of_all([only]) is only
