"""Request bodies: when they are asked for, how long they may take, what they may hold."""

from __future__ import annotations

import tracemalloc

import pytest

from llama_gguf.engines.status import ChildState
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import OK, chunk, code_of, request

CHUNKED = "Transfer-Encoding: chunked"
EXPECT = "Expect: 100-continue"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def post(*fields: str, length: int = 4, key: str | None = None) -> bytes:
    """A POST's head, without the body that it announces."""
    lines = [f"Content-Length: {length}", *fields]
    if key is None:
        return request("POST", "/v1/chat/completions", *lines)
    return request("POST", "/v1/chat/completions", *lines, key=key or None)


# Expect: 100-continue -----------------------------------------------------------------------------


def test_an_expected_100_comes_before_the_body_and_the_answer_behind_it(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(post(EXPECT))
    assert client.received == CONTINUE
    assert rig.requests == []

    client.send(b"body")

    assert [a.status for a in client.responses] == [100, 200]
    assert rig.requests[0].endswith(b"\r\n\r\nbody")
    assert b"xpect" not in rig.requests[0]
    assert not client.is_closed


def test_a_chunked_body_may_be_expected_too(rig: Rig) -> None:
    client = rig.send_request(request("POST", "/v1/embeddings", EXPECT, CHUNKED))
    assert client.received == CONTINUE

    client.send(chunk(b"body"), b"0\r\n\r\n")

    assert rig.requests[0].endswith(b"\r\n\r\nbody")


def test_expect_is_read_in_any_case(rig: Rig) -> None:
    assert rig.send_request(post("expect: 100-Continue")).received == CONTINUE


def test_a_body_that_is_there_already_is_not_asked_for(rig: Rig) -> None:
    client = rig.send_request(post(EXPECT) + b"body")

    assert client.received == b""
    assert len(rig.requests) == 1


def test_without_a_body_nothing_is_asked_for(rig: Rig) -> None:
    client = rig.send_request(post(EXPECT, length=0))

    assert client.received == b""
    assert len(rig.requests) == 1


def test_http_1_0_never_gets_a_100(rig: Rig) -> None:
    head = request("POST", "/v1/embeddings", EXPECT, "Content-Length: 4", version="1.0")
    client = rig.send_request(head)
    assert client.received == b""

    client.send(b"body")

    assert len(rig.requests) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (post(EXPECT, key="sk-nobody-0123456789"), 401),
        (post(EXPECT, length=101 << 20), 413),
        (request("POST", "/slots/0", EXPECT, "Content-Length: 4"), 403),
        (request("POST", "/ping", EXPECT, "Content-Length: 4"), 405),
        (request("GET", "/ping", EXPECT, "Content-Length: 4"), 200),
        (post("Expect: a-miracle"), 417),
    ],
)
def test_what_is_refused_on_its_head_gets_its_answer_and_no_100(
    head: bytes, status: int, rig: Rig
) -> None:
    client = rig.send_request(head)

    assert client.response.status == status
    # Whether the body will come now is the client's choice, so what comes next is unknown.
    assert client.is_closed
    assert rig.requests == []


def test_no_100_beyond_the_rate_limit(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)
    rig.respond_with(OK)
    rig.send_request()
    client = rig.send_request(post(EXPECT))

    assert client.response.status == 429


def test_no_100_when_bodies_hold_too_much_memory(new_rig: NewRig) -> None:
    rig = new_rig(max_body_memory=10)
    client = rig.send_request(post(EXPECT, length=11))

    assert client.response.status == 503


# Slow clients -------------------------------------------------------------------------------------


def test_a_head_that_does_not_come_in_time_is_408(rig: Rig) -> None:
    client = rig.send_request(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
    rig.advance(29)
    assert client.received == b""

    rig.advance(2)

    assert client.response.status == 408
    assert code_of(client.response) == "request_timeout"
    assert client.is_closed


def test_a_head_that_trickles_is_408_all_the_same(rig: Rig) -> None:
    client = rig.send_request(b"GET /v1/health HTTP/1.1\r\nHost: a\r\n")
    for _ in range(31):
        if client.is_closed:
            break
        client.send(b"X: y\r\n")
        rig.advance(1)

    assert client.response.status == 408


def test_the_second_head_on_a_connection_has_its_own_time(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request()
    rig.advance(20)
    client.send(b"GET /v1/mod")
    rig.advance(20)
    assert len(client.responses) == 1

    rig.advance(11)

    assert [a.status for a in client.responses] == [200, 408]


def test_a_head_begun_behind_a_pipelined_request_has_its_time_from_the_answer_on(rig: Rig) -> None:
    client = rig.send_request(request(body=b"{}") + b"GET /v1/mod")
    rig.advance(100)
    rig.upstream.send(OK)
    rig.advance(20)
    assert [a.status for a in client.responses] == [200]

    rig.advance(11)

    assert [a.status for a in client.responses] == [200, 408]


def test_a_body_that_stops_coming_is_408(rig: Rig) -> None:
    client = rig.send_request(post(length=10) + b"12")
    rig.advance(29)
    client.send(b"34")
    rig.advance(29)
    assert client.received == b""

    rig.advance(2)

    assert client.response.status == 408
    assert client.is_closed
    assert rig.requests == []
    assert rig.is_at_rest


def test_a_chunked_body_that_stops_coming_is_408(rig: Rig) -> None:
    client = rig.send_request(request("POST", "/v1/embeddings", CHUNKED) + chunk(b"1234"))
    rig.advance(29)
    client.send(chunk(b"5678"))
    rig.advance(29)
    assert client.received == b""

    rig.advance(2)

    assert client.response.status == 408
    assert rig.is_at_rest


def test_a_body_that_was_asked_for_and_never_comes_is_408(rig: Rig) -> None:
    client = rig.send_request(post(EXPECT))
    rig.advance(31)

    assert [a.status for a in client.responses] == [100, 408]


def test_a_slow_body_holds_no_slot(rig: Rig) -> None:
    client = rig.send_request(post(length=3))
    for piece in (b"a", b"b"):
        client.send(piece)
        rig.advance(20)
        assert rig.fleet.admission.running == 0
        assert rig.dials == []

    client.send(b"c")

    assert rig.fleet.admission.running == 1


# Memory -------------------------------------------------------------------------------------------


def test_waiting_bodies_are_counted_and_given_back(rig: Rig) -> None:
    first = rig.client()
    first.send(post(length=700), b"x" * 700)
    rig.send_request(post(length=300) + b"x" * 200)
    assert rig.services.body_memory.used == 900

    rig.upstream.send(OK)
    assert rig.services.body_memory.used == 200
    first.disconnect()

    assert rig.services.body_memory.used == 200


def test_a_body_is_let_go_of_when_the_answer_begins(rig: Rig) -> None:
    rig.send_request(request(body=b"x" * 700))

    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")

    assert rig.services.body_memory.used == 0
    assert rig.fleet.admission.running == 1


def test_bodies_beyond_the_memory_for_all_of_them_are_503(new_rig: NewRig) -> None:
    rig = new_rig(max_body_memory=1000, state=ChildState.LOADING)
    rig.send_request(request(body=b"x" * 700))
    refused = rig.send_request(request(body=b"x" * 301, key=OTHER_KEY))
    rig.send_request(request(body=b"x" * 300, key=OTHER_KEY))

    assert refused.response.status == 503
    assert code_of(refused.response) == "queue_full"
    assert refused.response["retry-after"] == "1"
    assert not refused.is_closed
    assert rig.fleet.admission.queued == 2


def test_a_body_that_came_with_its_head_and_does_not_wait_takes_no_room(rig: Rig) -> None:
    rig.send_request(request(body=b"x" * 700))

    assert rig.services.body_memory.used == 0
    assert len(rig.requests) == 1


def test_chunked_bodies_count_as_they_come(new_rig: NewRig) -> None:
    rig = new_rig(max_body_memory=1000)
    rig.client().send(post(length=700), b"x" * 700)
    client = rig.send_request(
        request("POST", "/v1/embeddings", CHUNKED, key=OTHER_KEY) + chunk(b"x" * 200)
    )
    assert client.received == b""
    assert rig.services.body_memory.used == 900

    client.send(chunk(b"x" * 101))

    assert client.response.status == 503
    assert client.is_closed
    assert rig.services.body_memory.used == 700


@pytest.mark.parametrize("leave", [FakeClient.disconnect, FakeClient.reset])
def test_the_memory_of_a_body_whose_client_left_is_given_back(leave: object, rig: Rig) -> None:
    client = rig.send_request(post(length=10) + b"12")
    assert rig.services.body_memory.used == 2

    assert callable(leave)
    leave(client)

    assert rig.is_at_rest


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_is_counted(rig: Rig) -> None:
    # Each as an object of its own would cost about 50 bytes, of which 2 are counted.
    size = 20_000
    pieces = chunk(b"ab") * 500
    client = rig.send_request(request("POST", "/v1/embeddings", CHUNKED))
    tracemalloc.start()
    try:
        for _ in range(size // 1000):
            client.send(pieces)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert rig.services.body_memory.used == size
    assert held < 10 * size


def test_a_body_in_many_pieces_arrives_whole(rig: Rig) -> None:
    body = bytes(range(256)) * 1000
    client = rig.send_request(post(length=len(body)))

    client.send(*(body[i : i + 1000] for i in range(0, len(body), 1000)))

    assert rig.requests[0].endswith(b"\r\n\r\n" + body)
    assert rig.upstream.received.count(b"Content-Length") == 1


# One key and the others ---------------------------------------------------------------------------


def test_a_body_that_is_only_announced_takes_no_room(new_rig: NewRig) -> None:
    rig = new_rig(max_body_memory=1000)
    for _ in range(30):
        rig.send_request(post(length=900))
    assert rig.services.body_memory.used == 0

    other = rig.send_request(request(body=b"x" * 900, key=OTHER_KEY))

    assert other.received == b""
    assert len(rig.requests) == 1


def test_one_key_s_bodies_leave_room_for_those_of_others(new_rig: NewRig) -> None:
    rig = new_rig(max_body_memory=1000, slots=0, state=ChildState.LOADING)
    for _ in range(20):
        rig.send_request(request(body=b"x" * 100))
    assert rig.services.body_memory.used == 800

    other = rig.send_request(request(body=b"x" * 200, key=OTHER_KEY))

    assert other.received == b""


def test_the_only_body_of_a_key_may_take_all_that_is_free(new_rig: NewRig) -> None:
    rig = new_rig(max_body_memory=1000)
    client = rig.send_request(post(length=1000))

    client.send(*[b"x" * 100] * 10)

    assert len(rig.requests) == 1


def test_the_only_key_may_take_all_the_memory_for_bodies(new_rig: NewRig) -> None:
    rig = new_rig(keys=f"alice:{KEY}\n", max_body_memory=1000, state=ChildState.LOADING)
    for _ in range(20):
        rig.send_request(request(body=b"x" * 100))

    assert rig.services.body_memory.used == 1000
