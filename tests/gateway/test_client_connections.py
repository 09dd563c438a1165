"""A client's connection between and behind its requests: kept, pipelined, lingering, closed."""

from __future__ import annotations

import pytest

from tests.support.fakes import NewRig, Rig
from tests.support.keys import KEY
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, chunk, code_of, event, request

GET = request("GET", "/v1/health")


def test_a_connection_serves_one_request_after_the_other(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.client()
    for _ in range(3):
        client.send(request(body=b"{}"))

    assert [a.status for a in client.responses] == [200, 200, 200]
    assert not any("connection" in a for a in client.responses)
    assert not client.is_closed


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close", "close, x-y"])
def test_a_client_that_says_close_gets_close(value: str, rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(request("GET", "/v1/health", f"Connection: {value}") + GET)

    assert client.response["connection"] == "close"
    assert client.is_closed
    assert not client.was_cut
    assert len(rig.requests) == 1, "nothing is processed behind a close"


def test_http_1_0_gets_one_answer_and_close(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(
        request("GET", "/v1/health", "Connection: keep-alive", version="1.0")
        + request("GET", "/v1/health", version="1.0")
    )

    assert client.response["connection"] == "close"
    assert client.is_closed
    assert len(rig.requests) == 1


# Pipelining ---------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(rig: Rig) -> None:
    client = rig.send_request(b"".join(request("GET", f"/v1/health?{n}") for n in range(3)))
    for n in range(3):
        assert len(rig.requests) == n + 1
        assert b"GET /v1/health?%d " % n in rig.requests[n]
        rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n)

    assert [a.body for a in client.responses] == [b"0", b"1", b"2"]


def test_our_own_answers_wait_for_their_turn_too(rig: Rig) -> None:
    client = rig.send_request(GET + b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" + b"nonsense\r\n\r\n")
    assert client.received == b""

    rig.upstream.send(OK)

    assert [a.status for a in client.responses] == [200, 200, 400]
    assert client.is_closed


def test_a_body_behind_a_pipelined_head_is_read_as_its_body(rig: Rig) -> None:
    client = rig.send_request(GET + request(body=GET) + GET)
    rig.respond_with(OK)
    rig.upstream.send(OK)

    assert [a.status for a in client.responses] == [200, 200, 200]
    assert [r.split(b" ")[0] for r in rig.requests] == [b"GET", b"POST", b"GET"]
    assert rig.requests[1].endswith(GET)


def test_what_is_sent_ahead_is_bounded_by_pausing(rig: Rig) -> None:
    client = rig.send_request(GET)
    ping = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
    sent = 0
    while client.transport.is_reading():
        client.send(ping * 100)
        sent += 100
        assert sent < 10_000

    rig.respond_with(OK)
    rig.upstream.send(OK)
    rig.advance(1)

    assert client.transport.is_reading()
    assert len(client.responses) == 1 + sent


def test_a_client_that_leaves_in_the_moment_of_its_answer_is_not_served_further(rig: Rig) -> None:
    # Begun behind connection_lost, a request would keep its slot: nobody would ever abandon it.
    client = rig.send_request(request(body=b"1") + request(body=b"2"))

    # What the loop does when both sockets are ready in one turn, the client's first.
    client.transport.receive_eof()
    rig.upstream.transport.receive(OK)
    rig.spin()

    assert len(rig.requests) == 1
    assert rig.is_at_rest


# Refused, with a body -----------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"12", b"12345"])
def test_a_small_refused_body_leaves_the_connection_usable(sent: bytes, rig: Rig) -> None:
    rig.respond_with(OK)
    head = request("POST", "/v1/embeddings", "Content-Length: 5", key=None)
    client = rig.send_request(head + sent)
    assert client.response.status == 401
    assert not client.is_closed

    client.send(b"12345"[len(sent) :] + GET)

    assert [a.status for a in client.responses] == [401, 200]
    assert len(rig.requests) == 1


def test_a_large_refused_body_may_go_on_coming_while_the_answer_is_read(rig: Rig) -> None:
    head = request("POST", "/v1/embeddings", "Content-Length: 4000000", key=None)
    client = rig.send_request(head, b"x" * 65536)
    assert client.response.status == 401
    assert client.response["connection"] == "close"
    # Not closed: that would reset the connection, and the answer with it.
    assert client.transport.has_written_eof
    assert not client.transport.is_closed

    client.send(*[b"x" * 65536] * 20)
    assert not client.transport.is_closed
    client.disconnect()

    assert not rig.services.connections
    assert client.response.status == 401


def test_a_chunked_refused_body_may_go_on_coming_too(rig: Rig) -> None:
    head = request("POST", "/v1/embeddings", "Transfer-Encoding: chunked", key=None)
    client = rig.send_request(head + chunk(b"12345"))
    client.send(chunk(b"12345"), b"0\r\n\r\n" + GET)

    assert client.response.status == 401
    assert client.transport.has_written_eof
    assert rig.requests == []


UNREAD = "POST", "/v1/embeddings", "Content-Length: 5"


@pytest.mark.parametrize(
    ("raw", "status", "drains"),
    [
        (request(*UNREAD, "Connection: close", key=None), 401, False),
        (request(*UNREAD, key=None, version="1.0"), 401, False),
        (request("POST", "/ping", "Content-Length: 5", "Connection: close"), 405, False),
        (request(*UNREAD), 503, True),
    ],
)
def test_a_small_body_may_come_behind_the_last_answer_of_its_connection(
    raw: bytes, status: int, drains: bool, rig: Rig
) -> None:
    # A body that meets a closed socket resets the connection, which may take the answer with it.
    rig.services.connections.is_draining = drains
    client = rig.send_request(raw)

    assert client.response.status == status
    assert client.response["connection"] == "close"
    assert client.transport.has_written_eof
    assert not client.transport.is_closed


def test_a_client_that_stays_behind_its_refusal_is_cut(rig: Rig) -> None:
    client = rig.send_request(b"nonsense\r\n\r\n")
    rig.advance(5)

    assert client.was_cut
    assert not rig.services.connections


def test_a_client_that_sends_on_behind_its_refusal_is_cut_in_the_end(rig: Rig) -> None:
    client = rig.send_request(
        request("POST", "/v1/embeddings", "Content-Length: 4000000", key=None)
    )
    for _ in range(60):
        client.send(b"x" * 100)
        rig.advance(1)

    assert client.was_cut


# Deadlines ----------------------------------------------------------------------------------------


def test_a_kept_connection_is_closed_quietly_when_it_idles(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(GET)
    rig.advance(74)
    assert not client.is_closed

    rig.advance(2)

    assert client.transport.is_closed
    assert not client.was_cut
    assert len(client.responses) == 1
    assert len(rig.records) == 1, "an idle connection is no request"


def test_a_connection_that_never_asks_is_closed_quietly(rig: Rig) -> None:
    client = rig.client()
    rig.advance(31)

    assert client.is_closed
    assert client.received == b""
    assert rig.records == []


def test_empty_lines_do_not_keep_a_connection(rig: Rig) -> None:
    client = rig.client()
    for _ in range(20):
        client.send(b"\r\n")
        rig.advance(10)

    assert client.is_closed


def test_a_client_that_never_reads_the_end_of_its_answer_is_cut_in_the_end(rig: Rig) -> None:
    # A gentle close alone would wait for the unread bytes for ever.
    client = rig.client()
    client.stall()
    client.send(request(body=b"{}"))
    rig.upstream.send(STREAM_HEAD, event(1), LAST_CHUNK)
    rig.advance(600)

    assert client.was_cut
    assert not rig.services.connections


def test_a_closing_client_that_never_reads_its_answer_is_cut_in_the_end(rig: Rig) -> None:
    client = rig.client()
    client.stall()
    client.send(request("POST", "/v1/embeddings", "Connection: close", body=b"{}"))
    rig.upstream.send(OK)
    rig.advance(600)

    assert client.was_cut
    assert not rig.services.connections


def test_a_client_that_never_reads_why_its_stream_broke_off_is_cut_in_the_end(rig: Rig) -> None:
    client = rig.client()
    client.stall()
    client.send(request(body=b"{}"))
    rig.upstream.send(STREAM_HEAD, event(1))
    rig.upstream.close()
    rig.advance(600)

    assert client.was_cut
    assert not rig.services.connections


# Connections in all -------------------------------------------------------------------------------


def test_connections_beyond_the_limit_get_503(new_rig: NewRig) -> None:
    rig = new_rig(max_connections=2)
    first, _ = rig.client(), rig.client()
    third = rig.client()

    assert third.response.status == 503
    assert code_of(third.response) == "queue_full"
    assert third.is_closed

    third.disconnect()
    first.disconnect()
    assert rig.client().received == b""


def test_what_a_refused_connection_sends_is_not_read(new_rig: NewRig) -> None:
    rig = new_rig(max_connections=1)
    rig.client()
    second = rig.client()
    second.send(GET)

    assert second.response.status == 503
    assert rig.requests == []


# Draining -----------------------------------------------------------------------------------------


def drain(rig: Rig) -> None:
    """What the server does first when it is to stop."""
    rig.services.connections.is_draining = True
    for connection in tuple(rig.services.connections):
        connection.drain()
    rig.services.connections.notice_idle()
    rig.spin()


def test_draining_closes_idle_connections_and_no_others(rig: Rig) -> None:
    idle, busy, half = rig.send_request(GET), rig.send_request(GET), rig.send_request(b"GET /v1/mo")
    rig.upstreams[0].send(OK)
    drain(rig)

    assert idle.is_closed
    assert not busy.is_closed
    assert not half.is_closed
    assert not rig.services.connections.idle.is_set()


def test_a_client_that_came_just_before_draining_is_answered(rig: Rig) -> None:
    client, busy = rig.client(), rig.send_request(GET)
    drain(rig)
    client.send(GET)  # it may have been on its way by then

    assert code_of(client.response) == "draining"
    assert client.is_closed
    assert not busy.is_closed


def test_a_running_answer_goes_out_whole_while_draining_and_says_close(rig: Rig) -> None:
    client = rig.send_request()
    drain(rig)
    rig.upstream.send(OK)

    assert client.response.is_whole
    assert client.response["connection"] == "close"
    assert client.transport.is_closed
    assert not client.was_cut
    assert rig.services.connections.idle.is_set()


def test_a_running_stream_goes_out_whole_while_draining(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1))
    drain(rig)
    assert not rig.services.connections.idle.is_set()
    rig.upstream.send(event(2), LAST_CHUNK)

    assert client.response.is_whole
    assert rig.services.connections.idle.is_set()


def test_new_requests_are_503_while_draining(rig: Rig) -> None:
    rig.send_request()
    half = rig.send_request(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n")
    drain(rig)
    half.send(f"Authorization: Bearer {KEY}\r\nContent-Length: 2\r\n\r\n".encode())
    new = rig.send_request()

    for client in (half, new):
        assert client.response.status == 503
        assert code_of(client.response) == "draining"
        assert "retry-after" in client.response
        assert client.is_closed
    assert len(rig.requests) == 1


def test_a_request_that_waits_is_served_while_draining(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.send_request()
    waiting = rig.send_request()
    drain(rig)
    rig.upstream.send(OK)
    rig.upstream.send(OK)

    assert waiting.response.status == 200


def test_health_says_draining(rig: Rig) -> None:
    rig.send_request()
    drain(rig)
    client = rig.send_request(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")

    assert client.response.status == 503
    assert b'"status": "draining"' in client.response.body
