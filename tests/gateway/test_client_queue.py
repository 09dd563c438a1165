"""Slots, the queue in front of them, and what happens while the engine does not serve."""

from __future__ import annotations

from typing import Any, Final

import pytest

from llama_gguf.engines.status import ChildState
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import EXPIRED_KEY, KEY, OTHER_KEY
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, code_of, event, request


def numbered(n: int, key: str = KEY) -> bytes:
    return request(body=b'{"n":%d}' % n, key=key)


def served(rig: Rig) -> list[bytes]:
    """The bodies that the engine got, in its order."""
    return [r.partition(b"\r\n\r\n")[2] for r in rig.requests]


def test_no_more_requests_reach_the_engine_than_it_has_slots(new_rig: NewRig) -> None:
    rig = new_rig(slots=2)
    clients = [rig.send_request(numbered(n)) for n in range(4)]
    assert served(rig) == [b'{"n":0}', b'{"n":1}']
    assert rig.fleet.admission.queued == 2

    rig.upstreams[0].send(OK)
    assert served(rig)[2:] == [b'{"n":2}']
    assert clients[0].response.status == 200

    rig.upstreams[1].send(OK)
    assert served(rig)[3:] == [b'{"n":3}']


def test_max_concurrent_requests_wins_over_the_engine_s_slots(new_rig: NewRig) -> None:
    rig = new_rig(slots=4, max_concurrent_requests=1)
    rig.send_request(), rig.send_request()

    assert len(rig.requests) == 1


def test_an_engine_that_does_not_tell_its_slots_has_four(new_rig: NewRig) -> None:
    rig = new_rig(slots=0)
    for _ in range(5):
        rig.send_request()

    assert len(rig.requests) == 4


def test_keys_take_turns(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    for n in range(4):
        rig.send_request(numbered(n))
    rig.send_request(numbered(9, OTHER_KEY))
    for _ in range(5):
        rig.upstream.send(OK)

    assert served(rig) == [b'{"n":%d}' % n for n in (0, 1, 9, 2, 3)]


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/v1/health"), ("POST", "/tokenize"), ("POST", "/apply-template"), ("GET", "/props")],
)
def test_what_uses_no_slot_does_not_wait(method: str, target: str, new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.send_request(), rig.send_request()
    rig.send_request(request(method, target, body=b"{}"))

    assert len(rig.requests) == 2
    assert target.encode() in rig.requests[1]


def test_a_slot_is_given_back_when_a_stream_ends(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.send_request()
    rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1))
    assert len(rig.requests) == 1

    rig.upstream.send(LAST_CHUNK)

    assert len(rig.requests) == 2


def test_a_full_queue_is_503(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_size=1)
    rig.send_request(), rig.send_request()
    client = rig.send_request()

    assert client.response.status == 503
    assert code_of(client.response) == "queue_full"
    assert client.response["retry-after"] == "1"
    assert client.response["retry-after-ms"] == "1000"
    assert not client.is_closed
    assert rig.metrics.rejections["queue_full"] == 1
    assert rig.records[-1].outcome == "queue_full"


def test_without_a_queue_what_finds_no_slot_is_503(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_size=0)
    rig.send_request()

    assert rig.send_request().response.status == 503


def test_a_request_waits_only_so_long(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_wait=20.0)
    rig.send_request()
    client = rig.send_request()
    rig.advance(19)
    assert client.received == b""

    rig.advance(2)

    assert client.response.status == 503
    assert code_of(client.response) == "queue_timeout"
    assert "retry-after" in client.response
    assert not client.is_closed
    assert rig.fleet.admission.queued == 0
    rig.upstream.send(OK)
    assert len(rig.requests) == 1, "who has given up waiting is not served any more"


def test_a_client_whose_wait_was_over_may_ask_again(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_wait=5.0)
    rig.send_request()
    client = rig.send_request(numbered(1) + numbered(2))
    rig.advance(6)
    rig.upstream.send(OK)
    rig.upstream.send(OK)

    assert [a.status for a in client.responses] == [503, 200]
    assert served(rig)[1:] == [b'{"n":2}']


def test_the_wait_is_counted(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.send_request()
    rig.send_request()
    rig.advance(7)
    rig.upstream.send(OK)
    rig.upstream.send(OK)

    assert [r.queued for r in rig.records] == [0.0, 7.0]
    assert rig.metrics.queue_waits.sum == pytest.approx(7.0)


def test_silence_is_counted_from_the_slot_on(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, request_timeout=50.0)
    rig.send_request()
    client = rig.send_request()
    rig.advance(40)
    rig.upstream.send(OK)
    rig.advance(40)
    assert client.received == b""

    rig.upstream.send(OK)

    assert client.response.status == 200


# While the engine does not serve ------------------------------------------------------------------

MAY_COME = [
    ChildState.STARTING,
    ChildState.LOADING,
    ChildState.DRAINING,
    ChildState.BACKOFF,
    ChildState.UNREACHABLE,
]
IS_GONE = [ChildState.FAILED, ChildState.STOPPING, ChildState.STOPPED]


@pytest.mark.parametrize("state", MAY_COME)
def test_a_request_is_held_until_the_engine_serves(state: ChildState, new_rig: NewRig) -> None:
    rig = new_rig(state=state)
    client = rig.send_request()
    rig.advance(100)
    assert client.received == b""
    assert rig.dials == []

    rig.engine(ChildState.READY, slots=1)
    rig.upstream.send(OK)

    assert client.response.status == 200


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (ChildState.STARTING, "model_loading"),
        (ChildState.LOADING, "model_loading"),
        (ChildState.BACKOFF, "backend_unavailable"),
        (ChildState.UNREACHABLE, "backend_unavailable"),
    ],
)
def test_a_request_is_held_only_so_long(state: ChildState, code: str, new_rig: NewRig) -> None:
    rig = new_rig(state=state, max_queue_wait=20.0)
    client = rig.send_request()
    rig.advance(21)

    assert client.response.status == 503
    assert code_of(client.response) == code
    assert int(client.response["retry-after"]) > 0
    assert rig.is_at_rest


@pytest.mark.parametrize("state", [*MAY_COME, *IS_GONE])
def test_what_uses_no_slot_is_not_held(state: ChildState, new_rig: NewRig) -> None:
    client = new_rig(state=state).send_request(request("GET", "/v1/health"))

    assert client.response.status == 503
    assert code_of(client.response) in ("model_loading", "backend_unavailable")
    assert not client.is_closed


@pytest.mark.parametrize("state", IS_GONE)
def test_nothing_is_held_for_an_engine_that_will_not_come(
    state: ChildState, new_rig: NewRig
) -> None:
    rig = new_rig(state=state)
    client = rig.send_request()

    assert client.response.status == 503
    assert code_of(client.response) == "backend_unavailable"
    assert "retry-after" in client.response
    assert rig.is_at_rest


@pytest.mark.parametrize("state", IS_GONE)
def test_what_waits_is_told_when_the_engine_is_given_up(state: ChildState, new_rig: NewRig) -> None:
    rig = new_rig(state=ChildState.LOADING)
    clients = [rig.send_request(), rig.send_request(numbered(1, OTHER_KEY))]
    rig.engine(state)

    for client in clients:
        assert client.response.status == 503
        assert code_of(client.response) == "backend_unavailable"
        assert not client.is_closed
    assert rig.is_at_rest


def test_a_queue_that_is_full_while_loading_says_that_it_is_loading(new_rig: NewRig) -> None:
    rig = new_rig(state=ChildState.LOADING, max_queue_size=1)
    rig.send_request()
    client = rig.send_request()

    assert client.response.status == 503
    assert code_of(client.response) == "model_loading"


def test_a_wrong_key_is_told_while_the_model_loads(new_rig: NewRig) -> None:
    client = new_rig(state=ChildState.LOADING).send_request(request(body=b"{}", key=None))

    assert client.response.status == 401


def test_the_slots_of_an_engine_that_comes_back_are_its_new_ones(new_rig: NewRig) -> None:
    rig = new_rig(slots=4)
    rig.engine(ChildState.BACKOFF)
    for _ in range(3):
        rig.send_request()
    assert rig.requests == []

    rig.engine(ChildState.READY, slots=2)

    assert len(rig.requests) == 2


def test_connections_of_an_engine_that_died_are_not_used_again(rig: Rig) -> None:
    rig.send_request()
    rig.upstream.send(OK)
    rig.engine(ChildState.BACKOFF)
    rig.engine(ChildState.READY)
    rig.send_request()

    assert len(rig.upstreams) == 2
    assert rig.upstreams[0].is_closed


def test_running_requests_beyond_fewer_slots_finish(new_rig: NewRig) -> None:
    rig = new_rig(slots=2)
    clients = [rig.send_request(), rig.send_request(), rig.send_request()]
    rig.engine(ChildState.READY, slots=1)
    rig.upstreams[0].send(OK)
    assert len(rig.requests) == 2

    rig.upstreams[1].send(OK)

    assert len(rig.requests) == 3
    assert [len(c.received) > 0 for c in clients] == [True, True, False]


# An engine that has just died ---------------------------------------------------------------------


def refused(rig: Rig) -> FakeClient:
    """A client whose request was granted a slot, and whose connection the engine has refused."""
    rig.accepts = False
    client = rig.send_request()
    rig.dials[-1].refuse()
    rig.spin()
    return client


def test_a_request_that_the_engine_refused_waits_for_its_next_life(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.replica.tracker.is_supervised = True
    client = refused(rig)
    assert client.responses == []
    assert (rig.fleet.admission.running, rig.fleet.admission.queued) == (0, 1)

    rig.engine(ChildState.BACKOFF)
    rig.accepts = True
    rig.respond_with(OK)
    rig.engine(ChildState.READY, slots=1)

    assert client.response.status == 200
    assert (rig.fleet.admission.running, rig.fleet.admission.queued) == (0, 0)


@pytest.mark.parametrize("sent", [b"", STREAM_HEAD], ids=["before the head", "after it"])
def test_a_connection_that_is_lost_delays_no_other_request(sent: bytes, new_rig: NewRig) -> None:
    rig = new_rig(slots=4)
    rig.replica.tracker.is_supervised = True
    rig.send_request()
    if sent:
        rig.upstreams[0].send(sent)
    rig.upstreams[0].reset()
    rig.respond_with(OK)

    assert rig.send_request().response.status == 200


def test_an_answer_that_takes_too_long_is_no_sign_of_death(new_rig: NewRig) -> None:
    rig = new_rig(slots=4, request_timeout=5.0)
    rig.replica.tracker.is_supervised = True
    slow = rig.send_request()
    rig.advance(6.0)
    assert slow.response.status == 504

    rig.send_request()

    assert len(rig.requests) == 2


def test_others_wait_with_it_and_nothing_more_is_sent(new_rig: NewRig) -> None:
    rig = new_rig(slots=4)
    rig.replica.tracker.is_supervised = True
    first = refused(rig)
    dials = len(rig.dials)

    second = rig.send_request()

    assert len(rig.dials) == dials
    assert (first.responses, second.responses) == ([], [])
    assert rig.fleet.admission.queued == 2


def test_when_the_supervisor_says_nothing_it_is_tried_again(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.replica.tracker.is_supervised = True
    client = refused(rig)
    rig.accepts = True
    rig.respond_with(OK)

    rig.advance(1.0)

    assert client.response.status == 200


def test_it_is_told_when_the_engine_is_given_up(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.replica.tracker.is_supervised = True
    client = refused(rig)

    rig.engine(ChildState.FAILED)

    assert (client.response.status, code_of(client.response)) == (503, "backend_unavailable")


def test_without_a_supervisor_a_refused_request_waits_for_the_probe_s_finding(
    new_rig: NewRig,
) -> None:
    rig = new_rig(slots=1)
    client = refused(rig)
    assert client.responses == []
    assert rig.replica.tracker.status.state is ChildState.UNREACHABLE

    rig.accepts = True
    rig.respond_with(OK)
    rig.engine(ChildState.READY, slots=1)

    assert client.response.status == 200


def test_a_refused_request_waits_even_when_the_queue_is_full(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_size=0)
    client = refused(rig)
    rig.accepts = True
    rig.respond_with(OK)
    rig.engine(ChildState.READY, slots=1)

    assert client.response.status == 200
    assert rig.is_at_rest


# An engine that is asleep -------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{}", None])
def test_a_request_for_an_engine_that_is_asleep_wakes_it(
    body: bytes | None, new_rig: NewRig
) -> None:
    rig = new_rig(state=ChildState.ASLEEP)
    woken: list[int] = []
    rig.fleet.on_engine_requested = lambda: woken.append(rig.fleet.admission.queued)

    client = rig.send_request(request(body=b"{}") if body else request("GET", "/v1/health"))
    rig.spin()

    assert woken == [1 if body else 0]
    assert [code_of(a) for a in client.responses] == ([] if body else ["model_loading"])


def test_what_is_answered_here_wakes_nobody(new_rig: NewRig) -> None:
    rig = new_rig(state=ChildState.ASLEEP)
    rig.fleet.on_engine_requested = lambda: pytest.fail("it was woken")

    for target in ("/ping", "/health", "/metrics"):
        assert rig.send_request(request("GET", target, key=None)).response.status == 200
    assert rig.send_request(request(body=b"{}", key=None)).response.status == 401
    rig.spin()


# A request that waits for a second time -----------------------------------------------------------


def waiting_again(new_rig: NewRig, **settings: Any) -> tuple[Rig, FakeClient]:
    """A gateway whose engine has died, and a client whose request waits for the next one."""
    rig = new_rig(slots=1, **settings)
    rig.replica.tracker.is_supervised = True
    client = refused(rig)
    rig.engine(ChildState.BACKOFF)
    return rig, client


def test_the_longest_duration_counts_from_when_a_request_is_sent_again(new_rig: NewRig) -> None:
    rig, client = waiting_again(new_rig, max_request_duration=10)

    rig.advance(60)
    assert client.responses == []
    rig.accepts = True
    rig.engine(ChildState.READY, slots=1)
    rig.advance(9)
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_a_request_that_waits_again_and_is_refused_has_left_the_queue(new_rig: NewRig) -> None:
    rig, client = waiting_again(new_rig, max_queue_wait=30)

    rig.advance(31)
    assert client.response.status == 503
    assert rig.is_at_rest
    rig.accepts = True
    rig.respond_with(OK)
    rig.engine(ChildState.READY, slots=1)

    assert rig.send_request().response.status == 200
    assert rig.is_at_rest


def test_a_client_that_waits_again_and_leaves_has_left_the_queue(new_rig: NewRig) -> None:
    rig, client = waiting_again(new_rig)

    client.disconnect()

    assert rig.is_at_rest


def fail(_: bytes) -> None:
    raise ValueError("as a bug would")


def test_a_bug_in_one_request_s_turn_does_not_stop_the_others(
    new_rig: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig(slots=1)
    first, broken, third = rig.send_request(), rig.send_request(), rig.send_request()
    rig.upstream.transport.on_write = fail  # what the next request is sent on
    rig.upstream.send(OK)
    rig.upstream.close()  # the engine has let go of the broken one
    rig.upstreams[-1].send(OK)

    assert first.response.status == 200
    assert broken.was_cut
    assert third.response.status == 200
    assert rig.is_at_rest
    assert "a bug" in caplog.text


def test_a_bug_in_one_request_s_time_out_does_not_stop_the_others(
    new_rig: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig(slots=1, max_queue_wait=10)
    rig.send_request()
    broken, fine = rig.send_request(), rig.send_request()
    broken.transport.on_write = fail

    rig.advance(11)

    assert broken.was_cut
    assert code_of(fine.response) == "queue_timeout"
    assert "a bug" in caplog.text


def test_a_connection_that_the_engine_refused_costs_its_key_nothing(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_requests_per_minute=7)
    client = refused(rig)
    rig.engine(ChildState.FAILED)

    assert client.response.status == 503
    assert client.response["x-ratelimit-remaining-requests"] == "7"


def test_a_connection_that_is_not_made_in_time_costs_its_key_nothing(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=7, request_timeout=5, backend_connect_timeout=60)
    rig.accepts = False
    client = rig.send_request()

    rig.advance(6)

    assert client.response.status == 504
    assert client.response["x-ratelimit-remaining-requests"] == "7"


# One key and the others ---------------------------------------------------------------------------


def test_one_key_cannot_fill_the_queue_for_all(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_size=20)
    waiting = [rig.send_request() for _ in range(30)]
    refusals = [client for client in waiting if client.responses]

    other = rig.send_request(request(body=b"{}", key=OTHER_KEY))

    assert other.responses == []
    assert rig.fleet.admission.queued == 17
    assert {code_of(client.response) for client in refusals} == {"queue_full"}
    assert b"reserved for other keys" in refusals[0].response.body


def test_the_only_key_may_fill_the_queue(new_rig: NewRig) -> None:
    rig = new_rig(keys=f"alice:{KEY}\n", slots=1, max_queue_size=20)
    for _ in range(30):
        rig.send_request()

    assert rig.fleet.admission.queued == 20


TOKENIZE: Final = request("POST", "/tokenize", body=b'{"content":"x"}')


def test_one_key_s_token_counts_are_at_the_engine_two_at_a_time(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    for _ in range(32):
        rig.send_request(TOKENIZE)
    assert len(rig.requests) == 2

    other = rig.send_request(request("POST", "/tokenize", body=b"{}", key=OTHER_KEY))
    chat = rig.send_request(request(body=b"{}", key=OTHER_KEY))
    assert len(rig.requests) == 4
    rig.upstreams[2].send(OK)
    rig.upstreams[3].send(OK)

    assert (other.response.status, chat.response.status) == (200, 200)


def test_every_token_count_has_its_turn(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.respond_with(OK)
    counting = [rig.send_request(TOKENIZE) for _ in range(32)]

    assert [client.response.status for client in counting] == [200] * 32
    assert rig.is_at_rest


def test_token_counts_that_wait_are_refused_when_the_engine_dies(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    counting = [rig.send_request(TOKENIZE) for _ in range(4)]

    rig.engine(ChildState.BACKOFF)

    assert [len(client.responses) for client in counting] == [0, 0, 1, 1]
    assert rig.fleet.side_admission.queued == 0


def test_a_key_s_weight_and_priority_decide_its_turns(new_rig: NewRig) -> None:
    keys = f"alice:{KEY} weight=2\nbob:{OTHER_KEY}\ncarol:{EXPIRED_KEY} priority=low\n"
    rig = new_rig(slots=1, keys=keys)
    rig.send_request()
    for key in (EXPIRED_KEY, *([KEY, OTHER_KEY] * 3)):
        rig.send_request(request(body=b"{}", key=key))

    rig.respond_with(OK)
    rig.upstreams[0].send(OK)

    assert [record.key_id for record in rig.records[1:]] == [
        "alice",
        "alice",
        "bob",
        "alice",
        "bob",
        "bob",
        "carol",
    ]
