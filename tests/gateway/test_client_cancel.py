"""A client that leaves stops the work that is done for it, wherever that stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llama_gguf.engines.status import ChildState
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import OTHER_KEY
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, event, request

LEAVINGS = pytest.mark.parametrize("leave", [FakeClient.disconnect, FakeClient.reset])
Leave = Callable[[FakeClient], None]


def left(rig: Rig, phase: str, *, status: int = 499) -> None:
    """Check that the last exchange was accounted for as given up in *phase*."""
    assert +rig.metrics.client_disconnects == {phase: 1}
    assert rig.records[-1].outcome == f"client_left:{phase}"
    assert rig.records[-1].status == status


@LEAVINGS
def test_while_it_sends_its_body(leave: Leave, rig: Rig) -> None:
    client = rig.send_request(request("POST", "/v1/embeddings", "Content-Length: 10") + b"12")
    leave(client)

    left(rig, "request")
    assert rig.is_at_rest
    assert rig.requests == []


@LEAVINGS
def test_while_it_sends_its_head_it_has_not_asked_for_anything(leave: Leave, rig: Rig) -> None:
    client = rig.send_request(b"POST /v1/embeddings HT")
    leave(client)

    assert rig.records == []
    assert not rig.services.connections


@LEAVINGS
def test_while_it_waits_for_a_slot(leave: Leave, new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.send_request()
    client = rig.send_request(request(body=b"gone"))
    other = rig.send_request(request(body=b"other"))
    leave(client)

    left(rig, "queued")
    assert rig.fleet.admission.queued == 1
    rig.upstream.send(OK)
    assert [r[-5:] for r in rig.requests[1:]] == [b"other"]
    rig.upstream.send(OK)
    assert other.response.status == 200
    assert rig.is_at_rest


@LEAVINGS
def test_while_it_waits_for_the_model(leave: Leave, new_rig: NewRig) -> None:
    rig = new_rig(state=ChildState.LOADING)
    client = rig.send_request()
    leave(client)
    rig.engine(ChildState.READY)

    left(rig, "queued")
    assert rig.dials == []
    assert rig.is_at_rest


@LEAVINGS
def test_while_the_engine_is_connected_to(leave: Leave, rig: Rig) -> None:
    rig.accepts = False
    client = rig.send_request()
    assert len(rig.dials) == 1
    leave(client)

    left(rig, "before_first_byte")
    assert rig.dials[0].was_cancelled
    assert rig.requests == []
    assert rig.is_at_rest


@LEAVINGS
def test_in_the_very_moment_in_which_the_engine_accepts(leave: Leave, rig: Rig) -> None:
    rig.accepts = False
    client = rig.send_request()
    rig.dials[0].accept()  # the loop has not run since
    leave(client)

    for upstream in rig.upstreams:
        upstream.close()
    assert rig.is_at_rest


@LEAVINGS
def test_before_the_first_byte(leave: Leave, rig: Rig) -> None:
    client = rig.send_request()
    leave(client)

    left(rig, "before_first_byte")
    assert rig.upstream.was_half_closed
    rig.upstream.close()
    assert rig.is_at_rest


@LEAVINGS
def test_its_slot_is_free_when_the_engine_has_noticed(leave: Leave, new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    client = rig.send_request(request(body=b"first"))
    rig.send_request(request(body=b"other", key=OTHER_KEY))
    leave(client)
    first = rig.upstream
    first.send(OK)  # for nobody
    assert len(rig.requests) == 1
    first.close()

    assert rig.requests[1].endswith(b"other")
    assert client.received == b""


@LEAVINGS
def test_an_engine_that_never_notices_is_cut_in_the_end(leave: Leave, rig: Rig) -> None:
    client = rig.send_request()
    leave(client)
    rig.advance(299)
    assert rig.upstream.was_half_closed
    rig.advance(2)

    assert rig.upstream.was_cut
    assert rig.is_at_rest


@LEAVINGS
def test_a_request_that_the_engine_has_not_taken_is_cut(leave: Leave, rig: Rig) -> None:
    client = rig.client()
    client.send(request("GET", "/v1/health"))
    rig.upstream.send(OK)
    rig.upstream.transport.is_stalled = True
    client.send(request(body=b"x" * 1000))
    leave(client)

    assert rig.upstream.was_cut
    assert rig.is_at_rest


@LEAVINGS
def test_a_request_without_a_slot_keeps_its_place_until_the_engine_lets_go(
    leave: Leave, rig: Rig
) -> None:
    client = rig.send_request(request("GET", "/v1/health"))
    leave(client)
    assert rig.upstream.was_half_closed
    assert rig.fleet.side_admission.running == 1

    rig.upstream.close()

    assert rig.fleet.side_admission.running == 0
    assert rig.is_at_rest


@LEAVINGS
def test_while_a_get_is_sent_once_more(leave: Leave, rig: Rig) -> None:
    rig.send_request(request("GET", "/v1/health"))
    rig.upstream.send(OK)
    client = rig.send_request(request("GET", "/v1/health"))
    rig.accepts = False
    rig.upstream.close()
    assert len(rig.dials) == 2
    leave(client)

    assert rig.dials[1].was_cancelled
    assert rig.is_at_rest


@LEAVINGS
def test_while_half_a_head_is_there(leave: Leave, rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(b"HTTP/1.1 200 OK\r\n")
    leave(client)

    left(rig, "before_first_byte")
    assert rig.upstream.was_half_closed


@LEAVINGS
@pytest.mark.parametrize(
    "said",
    [
        STREAM_HEAD,
        STREAM_HEAD + event(1),
        STREAM_HEAD + event(1)[:7],
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    ],
)
def test_while_its_answer_comes(leave: Leave, said: bytes, rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(said)
    leave(client)

    left(rig, "streaming", status=200)
    assert rig.upstream.was_cut
    assert rig.is_at_rest


@LEAVINGS
def test_while_it_reads_nothing(leave: Leave, rig: Rig) -> None:
    client = rig.client()
    client.stall()
    client.send(request(body=b"{}"))
    rig.upstream.send(STREAM_HEAD, *[event(n) for n in range(10)])
    client.transport.unsent = 0
    leave(client)

    assert rig.upstream.was_cut
    assert rig.is_at_rest


@LEAVINGS
def test_its_slot_goes_to_who_is_next(leave: Leave, new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    client = rig.send_request(request(body=b"first"))
    rig.send_request(request(body=b"other", key=OTHER_KEY))
    rig.upstream.send(STREAM_HEAD, event(1))
    leave(client)

    assert rig.upstreams[0].was_cut
    assert len(rig.upstreams) == 2
    assert rig.requests[1].endswith(b"other")


@LEAVINGS
def test_between_its_requests_nothing_is_counted(leave: Leave, rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request()
    leave(client)

    assert len(rig.records) == 1
    assert rig.metrics.client_disconnects.total() == 0
    assert not rig.services.connections


def test_what_the_engine_says_afterwards_goes_nowhere(rig: Rig) -> None:
    client = rig.send_request()
    upstream = rig.upstream
    upstream.send(STREAM_HEAD, event(1))
    client.disconnect()
    upstream.send(event(2), LAST_CHUNK)
    upstream.close()

    assert len(rig.records) == 1
    assert event(2) not in client.received
    assert rig.is_at_rest


def test_a_client_that_closes_only_its_half_has_left(rig: Rig) -> None:
    client = rig.send_request()
    client.transport.receive_eof()
    rig.spin()

    assert rig.upstream.was_half_closed
    assert client.transport.is_closed


def test_requests_that_were_sent_ahead_are_gone_with_their_client(rig: Rig) -> None:
    client = rig.send_request(request(body=b"1") + request(body=b"2"))
    client.disconnect()
    rig.advance(1)

    assert len(rig.requests) == 1
    assert len(rig.records) == 1
