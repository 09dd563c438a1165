from __future__ import annotations

import pytest

from llama_gguf.engines.probe import Finding
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import BackendUnavailable, ModelLoading
from tests.support.fakes import NewRig, Rig
from tests.support.messages import OK, code_of, request


def test_slots_come_and_go_with_the_engine(rig: Rig) -> None:
    assert rig.fleet.admission.slots == 4
    rig.engine(ChildState.BACKOFF)
    assert rig.fleet.admission.slots == 0

    rig.engine(ChildState.READY, slots=8)
    assert rig.fleet.admission.slots == 8


def test_a_setting_can_limit_what_runs_at_once(new_rig: NewRig) -> None:
    rig = new_rig(slots=4, max_concurrent_requests=2)

    assert rig.fleet.admission.slots == 2


def test_it_is_busy_while_a_request_uses_a_slot(rig: Rig) -> None:
    found = [rig.fleet.is_busy]
    rig.send_request()
    found.append(rig.fleet.is_busy)
    rig.engine(ChildState.BACKOFF)
    found.append(rig.fleet.is_busy)

    assert found == [False, True, False]


def test_all_that_wait_learn_that_no_engine_will_come(new_rig: NewRig) -> None:
    rig = new_rig(state=ChildState.LOADING)
    clients = [rig.send_request() for _ in range(3)]
    rig.engine(ChildState.FAILED)

    assert [code_of(client.response) for client in clients] == ["backend_unavailable"] * 3
    assert rig.is_at_rest


@pytest.mark.parametrize("state", [ChildState.STARTING, ChildState.LOADING, ChildState.BACKOFF])
def test_a_request_may_wait_for_an_engine_that_comes(state: ChildState, rig: Rig) -> None:
    rig.engine(state)

    rig.fleet.require(may_wait=True)


@pytest.mark.parametrize("state", [ChildState.FAILED, ChildState.STOPPING, ChildState.STOPPED])
def test_no_request_waits_for_one_that_does_not(state: ChildState, rig: Rig) -> None:
    rig.engine(state)

    with pytest.raises(BackendUnavailable):
        rig.fleet.require(may_wait=True)


def test_what_cannot_wait_learns_why(rig: Rig) -> None:
    rig.engine(ChildState.LOADING)

    with pytest.raises(ModelLoading):
        rig.fleet.require(may_wait=False)


def test_a_request_wakes_an_engine_that_is_asleep(rig: Rig) -> None:
    woken: list[bool] = []
    rig.fleet.on_engine_requested = lambda: woken.append(True)
    rig.engine(ChildState.ASLEEP)

    rig.fleet.require(may_wait=True)
    rig.loop.spin()

    assert woken == [True]


# Several ------------------------------------------------------------------------------------------

SECOND = "127.0.0.1:8081"


def with_second(rig: Rig, state: ChildState = ChildState.READY, slots: int = 4) -> None:
    """Add a replica."""
    rig.fleet.update(EngineStatus(state, since=0.0, replica="1", address=SECOND, slots=slots))
    rig.spin()


def at_second(rig: Rig) -> list[bool]:
    """Of each request, whether it was sent to the second replica."""
    return [f"Host: {SECOND}".encode() in head for head in rig.requests]


def test_requests_are_spread_over_the_replicas(rig: Rig) -> None:
    with_second(rig)
    for _ in range(4):
        rig.send_request()

    assert rig.fleet.admission.slots == 8
    assert sorted(at_second(rig)) == [False, False, True, True]


def test_a_replica_that_is_not_ready_gets_none_and_the_other_serves(rig: Rig) -> None:
    with_second(rig)
    rig.fleet.replicas["127.0.0.1:8080"].tracker.update(EngineStatus(ChildState.FAILED, since=0.0))
    rig.send_request()

    assert rig.fleet.is_ready
    assert rig.fleet.status.state is ChildState.READY
    assert at_second(rig) == [True]


def test_a_request_that_one_replica_has_lost_goes_to_the_other_at_once(rig: Rig) -> None:
    with_second(rig)

    async def hangs() -> Finding:
        return Finding(ChildState.UNREACHABLE)

    for replica in rig.fleet.replicas.values():
        replica.liveness.look = hangs
    client = rig.send_request()
    first = at_second(rig)
    rig.upstream.reset()

    assert at_second(rig) != first
    assert at_second(rig)[1] is not at_second(rig)[0]
    rig.upstream.send(OK)
    assert client.response.status == 200


def test_a_removed_replica_finishes_what_it_has(rig: Rig) -> None:
    with_second(rig)
    client = rig.send_request()
    (is_at_second,) = at_second(rig)
    key = SECOND if is_at_second else "127.0.0.1:8080"
    rig.fleet.remove(key)
    rig.send_request()

    assert at_second(rig) == [is_at_second, not is_at_second]
    assert key in rig.fleet.replicas
    rig.upstreams[0].send(OK)
    assert client.response.status == 200
    rig.advance(1)
    assert key not in rig.fleet.replicas


# Sessions -----------------------------------------------------------------------------------------


def of_session(name: str) -> bytes:
    return request("POST", "/v1/chat/completions", f"session-id: {name}", body=b"{}")


def test_the_requests_of_a_session_go_to_one_replica(rig: Rig) -> None:
    with_second(rig)
    for _ in range(2):
        rig.send_request(of_session("abc"))
        rig.send_request(of_session("def"))

    first, second, *others = at_second(rig)
    assert first is not second
    assert others == [first, second]


def test_a_session_waits_for_its_replica_and_moves_when_that_fails(rig: Rig) -> None:
    rig.engine(ChildState.READY, slots=1)
    with_second(rig, slots=1)
    rig.send_request(of_session("abc"))
    rig.send_request(of_session("abc"))
    (is_at_second,) = at_second(rig)
    assert rig.fleet.admission.queued == 1

    key = SECOND if is_at_second else "127.0.0.1:8080"
    rig.fleet.replicas[key].tracker.update(EngineStatus(ChildState.BACKOFF, since=0.0))

    assert at_second(rig)[1] is not is_at_second


def test_with_one_replica_no_session_is_looked_for(rig: Rig) -> None:
    rig.send_request(of_session("abc"))
    assert not len(rig.fleet.admission.sessions)

    with_second(rig)
    rig.send_request(of_session("abc"))
    assert len(rig.fleet.admission.sessions) == 1
