from __future__ import annotations

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Finding
from llama_gguf.engines.roster import Roster
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import BackendUnavailable, ModelLoading
from llama_gguf.gateway.fleet import SILENT_SECONDS
from llama_gguf.gateway.upstream_connection import Phase
from llama_gguf.values import replace
from tests.support.fakes import NewRig, Rig
from tests.support.messages import OK, STREAM_HEAD, chunk, code_of, request


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


ASLEEP = Roster(1, (), ChildState.ASLEEP, "The next request starts an engine.")


def with_none(rig: Rig) -> list[bool]:
    """Remove the only replica; returns a list that grows with each wake-up."""
    woken: list[bool] = []
    rig.fleet.on_engine_requested = lambda: woken.append(True)
    rig.fleet.remove(next(iter(rig.fleet.replicas)))
    rig.fleet.set_absence(ASLEEP)
    return woken


def test_without_a_replica_the_status_is_the_reason_and_the_model_is_known_on(rig: Rig) -> None:
    model = rig.fleet.status.model
    with_none(rig)

    assert (rig.fleet.status.state, rig.fleet.status.detail) == (ASLEEP.state, ASLEEP.detail)
    assert (rig.fleet.status.model, rig.fleet.is_ready) == (model, False)
    rig.fleet.set_absence(replace(ASLEEP, state=ChildState.LOADING, progress=0.5))
    assert rig.fleet.status.progress == 0.5


def test_a_gateway_that_never_had_a_replica_knows_the_model_of_those_that_will_come(
    rig: Rig,
) -> None:
    rig.fleet.status = replace(rig.fleet.status, model="")
    with_none(rig)
    rig.fleet.set_absence(replace(ASLEEP, model="m"))

    assert rig.fleet.status.model == "m"


def test_a_request_is_held_until_a_replica_comes(rig: Rig) -> None:
    with_none(rig)
    client = rig.send_request()
    assert rig.fleet.admission.queued == 1
    with_second(rig)
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_what_cannot_wait_wakes_a_replica_all_the_same(rig: Rig) -> None:
    woken = with_none(rig)
    with pytest.raises(ModelLoading):
        rig.fleet.require(may_wait=False)
    rig.loop.spin()

    assert woken == [True]


# Several ------------------------------------------------------------------------------------------

SECOND = "127.0.0.1:8081"


def with_second(rig: Rig, state: ChildState = ChildState.READY, slots: int = 4) -> None:
    """Add a replica."""
    rig.fleet.update(EngineStatus(state, since=0.0, replica="1", address=SECOND, slots=slots))
    rig.spin()


def refusal(status: int, fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\n%bContent-Length: 2\r\n\r\n{}" % (status, fields)


def probes_hang(rig: Rig) -> None:
    async def look() -> Finding:
        return Finding(ChildState.UNREACHABLE)

    for replica in rig.fleet.replicas.values():
        replica.liveness.look = look


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

    probes_hang(rig)
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


def test_what_uses_no_slot_goes_to_another_replica_if_one_refuses_the_connection(
    rig: Rig,
) -> None:
    with_second(rig)
    rig.accepts = False
    client = rig.send_request(request("GET", "/props"))
    rig.accepts = True
    rig.dials[-1].refuse()
    rig.spin()
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_a_refusal_of_one_replica_is_not_passed_on_and_costs_no_replay(rig: Rig) -> None:
    with_second(rig)
    client = rig.send_request()
    (was_at_second,) = at_second(rig)
    rig.upstream.send(refusal(503, b"retry-after: 3\r\n"))

    assert at_second(rig) == [was_at_second, not was_at_second]
    rig.upstream.send(OK)
    assert client.response.status == 200
    assert rig.records[0].replays == 0
    assert rig.metrics.backend_failures["no_response"] == 0
    assert sum(each.refusals for each in rig.fleet.replicas.values()) == 1


def test_the_shortest_wait_is_sent_where_all_replicas_refuse(rig: Rig) -> None:
    with_second(rig)
    client = rig.send_request()
    rig.upstream.send(refusal(429, b"retry-after: 4\r\n"))
    rig.upstream.send(refusal(503, b"retry-after: 2\r\n"))

    assert client.response.status == 503
    assert code_of(client.response) == "queue_full"
    assert client.response["retry-after"] == "2"
    assert rig.is_at_rest


def test_after_a_refusal_the_replica_is_tried_again(rig: Rig) -> None:
    with_second(rig)
    rig.send_request()
    rig.upstream.send(refusal(503, b"retry-after: 1\r\n"))
    assert rig.fleet.admission.slots == 4
    rig.advance(1.5)

    assert rig.fleet.admission.slots == 8


def test_the_refusal_of_the_only_one_is_passed_on(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(refusal(503, b"retry-after: 3\r\n"))

    assert client.response.status == 503
    assert client.response["retry-after"] == "3"


def test_a_death_of_one_replica_is_not_blamed_on_requests_of_another(rig: Rig) -> None:
    """Each request is lost by one dead engine, so none of them has ended two."""
    with_second(rig)
    probes_hang(rig)
    clients = [rig.send_request(request(body=b'{"n":%d}' % n)) for n in range(2)]
    for upstream in rig.upstreams[:2]:
        upstream.reset()
        rig.spin()
    for replica in rig.fleet.replicas.values():
        replica.tracker.update(EngineStatus(ChildState.BACKOFF, since=0.0))
        replica.tracker.update(EngineStatus(ChildState.READY, since=0.0, slots=4))
    rig.spin()
    rig.advance(1)
    for upstream in rig.upstreams[2:]:
        upstream.send(OK)
    rig.advance(1)
    for upstream in rig.upstreams[2:]:
        if upstream.phase is Phase.HEAD:
            upstream.send(OK)

    assert [client.response.status for client in clients] == [200, 200]


def test_a_request_that_ends_two_replicas_is_refused(rig: Rig) -> None:
    with_second(rig)
    probes_hang(rig)
    client = rig.send_request()
    for _ in range(2):
        sent = rig.upstream
        key = SECOND if at_second(rig)[-1] else "127.0.0.1:8080"
        sent.reset()
        rig.fleet.replicas[key].tracker.update(EngineStatus(ChildState.BACKOFF, since=0.0))
        rig.spin()

    assert code_of(client.response) == "engine_crashed"


def test_a_request_is_to_blame_while_another_is_sent_again_elsewhere(rig: Rig) -> None:
    """Two have been lost with the first replica; each of them runs at its own one then."""
    for port in (8081, 8082):
        address = f"127.0.0.1:{port}"
        status = EngineStatus(ChildState.LOADING, since=0.0, replica=str(port), address=address)
        rig.fleet.update(status)
    clients = [rig.send_request(request(body=b'{"n":%d}' % n)) for n in range(2)]
    for port in (8081, 8082):
        address = f"127.0.0.1:{port}"
        status = EngineStatus(ChildState.READY, since=0.0, replica=str(port), address=address)
        rig.fleet.update(replace(status, slots=1))
    probes_hang(rig)
    for upstream in rig.upstreams[:2]:
        upstream.reset()
    rig.fleet.replicas["127.0.0.1:8080"].tracker.update(EngineStatus(ChildState.BACKOFF, since=0.0))
    rig.advance(2)
    assert len(rig.requests) == 4
    assert rig.fleet.replay_order.first is not None
    rig.upstreams[2].reset()

    assert code_of(clients[0].response) == "engine_crashed"
    assert clients[1].responses == []


def test_what_had_not_begun_at_a_silent_replica_goes_to_another(rig: Rig) -> None:
    with_second(rig)
    client = rig.send_request()
    (was_at_second,) = at_second(rig)
    key = SECOND if was_at_second else "127.0.0.1:8080"
    rig.fleet.replicas[key].tracker.update(EngineStatus(ChildState.UNREACHABLE, since=0.0))
    rig.advance(SILENT_SECONDS + 1)

    assert at_second(rig) == [was_at_second, not was_at_second]
    rig.upstream.send(OK)
    assert client.response.status == 200


def test_a_local_replica_that_does_not_respond_gets_nothing_while_there_is_another(
    rig: Rig,
) -> None:
    with_second(rig)
    client = rig.send_request()
    (was_at_second,) = at_second(rig)
    key = SECOND if was_at_second else "127.0.0.1:8080"
    tracker = rig.fleet.replicas[key].tracker
    tracker.update(replace(tracker.status, is_silent=True))
    assert rig.fleet.admission.slots == 4
    rig.send_request(request(body=b"{}"))
    rig.advance(SILENT_SECONDS + 1)

    assert at_second(rig) == [was_at_second, not was_at_second, not was_at_second]
    rig.upstream.send(OK)
    assert client.response.status == 200
    tracker.update(replace(tracker.status, is_silent=False))
    assert rig.fleet.admission.slots > 4


def test_the_only_one_keeps_its_slots_while_it_does_not_respond(rig: Rig) -> None:
    (only,) = rig.fleet.replicas.values()
    only.tracker.update(replace(only.tracker.status, is_silent=True))

    assert rig.fleet.admission.slots == 4
    assert rig.fleet.is_ready


def test_a_stream_that_has_begun_is_not_cut_by_silence(rig: Rig) -> None:
    with_second(rig)
    client = rig.send_request(request(body=b'{"stream":true}'))
    rig.upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
    key = SECOND if at_second(rig)[0] else "127.0.0.1:8080"
    rig.fleet.replicas[key].tracker.update(EngineStatus(ChildState.UNREACHABLE, since=0.0))
    rig.advance(SILENT_SECONDS + 1)

    assert len(rig.requests) == 1
    assert not client.was_cut


def test_a_replica_that_loads_under_way_of_others_starts_slowly(rig: Rig) -> None:
    with_second(rig, ChildState.LOADING)
    rig.send_request()
    with_second(rig)
    assert rig.fleet.admission.slots == 5
    rig.send_request()
    assert at_second(rig) == [False, True]
    rig.upstream.send(OK)

    assert rig.fleet.admission.slots == 6


def test_a_slow_start_ends_when_no_request_waits(rig: Rig) -> None:
    with_second(rig, ChildState.LOADING)
    for _ in range(6):
        rig.send_request()
    with_second(rig)
    assert rig.fleet.admission.queued == 1
    rig.advance(1)
    assert rig.fleet.admission.slots == 5, "the queue would fall on it at once"

    rig.upstreams[0].send(OK)
    rig.advance(1)

    assert rig.fleet.admission.queued == 0
    assert rig.fleet.admission.slots == 8


def test_a_peer_with_another_model_is_left_out_and_taken_back(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.replica.tracker.is_supervised = True
    peer = rig.fleet.add(EngineAddress.from_key(SECOND), SECOND)
    ready = EngineStatus(ChildState.READY, since=0.0, slots=4, model="other")
    peer.tracker.update(ready)
    assert rig.fleet.admission.slots == 4
    assert "its model is other, and m is served" in caplog.text
    peer.tracker.update(replace(ready, model="m"))

    assert rig.fleet.admission.slots == 8


def test_engines_of_one_supervisor_may_differ(rig: Rig) -> None:
    """As while one after the other gets a new model."""
    rig.replica.tracker.is_supervised = True
    status = EngineStatus(ChildState.READY, since=0.0, replica="1", address=SECOND, model="new")
    rig.fleet.update(replace(status, slots=4))

    assert rig.fleet.admission.slots == 8


@pytest.mark.parametrize("routes", ["inference", "all"])
def test_the_replica_is_in_the_response_only_where_all_routes_are_exposed(
    routes: str, new_rig: NewRig
) -> None:
    rig = new_rig(exposed_routes=routes)
    with_second(rig)
    client = rig.send_request()
    rig.upstream.send(OK)

    assert ("x-llama-gguf-replica" in client.response) == (routes == "all")
    assert rig.records[0].replica in ("0", "1")


def test_with_one_replica_nothing_names_it(new_rig: NewRig) -> None:
    rig = new_rig(exposed_routes="all")
    client = rig.send_request()
    rig.upstream.send(OK)
    health = rig.client()
    health.send(request("GET", "/health", key=None))

    assert "x-llama-gguf-replica" not in client.response
    assert rig.records[0].replica == ""
    assert "replicas" not in health.response.json


def test_what_one_replica_has_lost_goes_to_the_first_that_comes(rig: Rig) -> None:
    """No replica was left when it was lost, and the one that lost it does not come back."""
    with_second(rig, ChildState.LOADING)
    probes_hang(rig)
    rig.fleet.replicas["127.0.0.1:8080"].liveness.report = lambda _: None
    client = rig.send_request()
    rig.upstream.reset()
    rig.advance(5)
    assert len(rig.requests) == 1
    with_second(rig)
    assert at_second(rig) == [False, True]
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_a_replica_that_stays_alone_while_it_is_busy_serves_again(rig: Rig) -> None:
    with_second(rig)
    first = rig.fleet.replicas["127.0.0.1:8080"]
    first.tracker.is_supervised = True
    rig.fleet.on_refused(first, 2.0)
    rig.fleet.remove(SECOND)
    rig.advance(3)

    assert rig.fleet.admission.slots == 4


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


@pytest.mark.parametrize(("affinity", "follows"), [("session", True), ("off", False)])
def test_affinity_can_be_switched_off(affinity: str, follows: bool, new_rig: NewRig) -> None:
    """The second request of a conversation, while the replica with the first one is the busier."""
    rig = new_rig(affinity=affinity)
    with_second(rig)
    talk = request(body=b'{"messages":[{"role":"user","content":"Hi"}]}')
    for body in (talk, request(body=b'{"messages":[{"role":"user","content":"Else"}]}')):
        rig.send_request(body)
    first, second = at_second(rig)
    assert first != second
    rig.upstreams[1].send(OK)
    rig.send_request(talk)

    assert (at_second(rig)[2] == first) == follows
