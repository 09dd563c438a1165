"""A stream that waits: its head, comments while nothing arrives, and then the response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_gguf.engines.status import ChildState
from llama_gguf.http1.exchange_record import Usage
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import KEY
from tests.support.messages import (
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    Response,
    chunk,
    event,
    read_responses,
    request,
)

STREAM = b'{"stream":true}'
WAITING = b": waiting\n\n"
ENGINE_COMMENT = chunk(b":\n\n")


def send_request(
    rig: Rig, target: str = "/v1/chat/completions", body: bytes = STREAM
) -> FakeClient:
    return rig.send_request(request("POST", target, body=body))


def so_far(client: FakeClient) -> Response:
    """The response so far."""
    (response,) = read_responses(client.received)
    return response


def last_event(client: FakeClient) -> dict[str, object]:
    """The content of the last event."""
    lines = so_far(client).chunks[-1].decode().splitlines()
    (data,) = [line for line in lines if line.startswith("data: ")]
    said: dict[str, object] = json.loads(data.removeprefix("data: "))
    return said


def code_in(said: dict[str, object]) -> object:
    error = said["error"]
    assert isinstance(error, dict)
    return error["code"]


@pytest.fixture
def busy(new_rig: NewRig) -> Rig:
    """A gateway whose only slot is taken."""
    rig = new_rig(slots=1, sse_keepalive=10, max_queue_wait=100, cors_origins=("*",))
    rig.send_request()
    return rig


# While it waits -----------------------------------------------------------------------------------


def test_a_stream_that_waits_receives_its_head_and_then_comments(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(9.5)
    assert client.received == b""

    busy.advance(0.5)
    response = so_far(client)
    assert response.status == 200
    assert response["content-type"] == "text/event-stream"
    assert response["cache-control"] == "no-cache"
    assert response["x-accel-buffering"] == "no"
    assert response["access-control-allow-origin"] == "*"
    assert response["x-ratelimit-remaining-requests"] == "998"
    assert response["x-request-id"].startswith("req-")
    assert response.chunks == (WAITING,)

    busy.advance(25)
    assert so_far(client).chunks == (WAITING,) * 3


def test_with_the_setting_off_nothing_is_sent(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_wait=1000, sse_keepalive=0)
    rig.send_request()
    client = send_request(rig)
    rig.advance(200)

    assert client.received == b""


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/chat/completions", b'{"stream":false}'),
        ("/v1/chat/completions", b"{}"),
        ("/v1/chat/completions", b"not JSON"),
        ("/v1/embeddings", STREAM),
        ("/v1/rerank", STREAM),
    ],
)
def test_a_request_for_no_stream_waits_without_comments(
    target: str, body: bytes, busy: Rig
) -> None:
    client = send_request(busy, target, body)
    busy.advance(50)

    assert client.received == b""


def test_a_stream_waits_so_while_the_model_loads_and_while_its_prompt_is_read(
    new_rig: NewRig,
) -> None:
    rig = new_rig(sse_keepalive=10, state=ChildState.LOADING)
    client = send_request(rig)
    rig.advance(10)
    rig.engine(ChildState.READY)
    rig.advance(10)

    assert len(rig.requests) == 1
    assert so_far(client).chunks == (WAITING,) * 2


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_comments_are_sent_behind_the_engine_s_head_until_its_first_event(
    target: str, new_rig: NewRig
) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig, target)
    rig.upstream.send(STREAM_HEAD)
    rig.advance(20.5)
    assert so_far(client).chunks == (WAITING,) * 2

    rig.upstream.send(ENGINE_COMMENT)
    rig.advance(10.5)
    assert so_far(client).chunks == (WAITING, WAITING, b":\n\n", WAITING)

    rig.upstream.send(event(1))
    rig.advance(30)
    rig.upstream.send(event(2) + LAST_CHUNK)
    expected = (WAITING, WAITING, b":\n\n", WAITING, b'data: {"n":1}\n\n', b'data: {"n":2}\n\n')
    assert so_far(client).chunks == expected
    assert rig.is_at_rest


def test_no_comment_is_sent_within_an_event_that_is_not_whole(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig)
    rig.upstream.send(STREAM_HEAD, chunk(b"event: x\n"))
    rig.advance(30)

    assert so_far(client).chunks == (b"event: x\n",)


def test_an_engine_that_dies_behind_comments_is_followed_by_the_next_one(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig)
    rig.upstream.send(STREAM_HEAD)
    rig.advance(10.5)
    rig.upstream.close()
    rig.upstream.send(STREAM_HEAD, event(1) + LAST_CHUNK)

    assert so_far(client).chunks == (WAITING, b'data: {"n":1}\n\n')
    assert rig.is_at_rest


# Responses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/v1/responses", "/responses"])
def test_the_head_of_a_response_is_held_back_until_the_first_event(
    target: str, new_rig: NewRig
) -> None:
    rig = new_rig(sse_keepalive=10, request_timeout=100)
    client = send_request(rig, target)
    rig.advance(20)
    rig.upstream.send(STREAM_HEAD)
    for _ in range(12):  # the engine's own comments show that it works
        rig.advance(30)
        rig.upstream.send(ENGINE_COMMENT)
    assert client.received == b""

    rig.upstream.send(event(1) + LAST_CHUNK)
    response = so_far(client)
    assert response.status == 200
    assert response.chunks == (*(b":\n\n",) * 12, b'data: {"n":1}\n\n')
    assert rig.is_at_rest


def test_a_response_whose_head_is_held_back_gets_a_status_when_the_engine_fails(
    new_rig: NewRig,
) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig, "/v1/responses")
    for _ in range(2):  # it is sent again once
        rig.upstream.send(STREAM_HEAD, ENGINE_COMMENT)
        rig.upstream.close()

    assert so_far(client).status == 502
    assert rig.is_at_rest


def test_a_response_whose_head_is_held_back_is_cut_at_the_engine_when_its_client_leaves(
    new_rig: NewRig,
) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig, "/v1/responses")
    rig.upstream.send(STREAM_HEAD)
    client.disconnect()

    assert rig.upstream.was_cut
    assert rig.is_at_rest


def test_a_queued_response_that_waits_too_long_gets_a_status(busy: Rig) -> None:
    client = send_request(busy, "/v1/responses")
    busy.advance(100)

    assert so_far(client).status == 503


def test_a_failure_of_a_response_that_has_begun_is_a_failed_response(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig, "/v1/responses")
    created = b'data: {"type":"response.created","response":{"id":"resp_7"}}\n\n'
    rig.upstream.send(STREAM_HEAD, chunk(created))
    rig.upstream.close()

    first, last = so_far(client).chunks
    assert first == created
    name, data = last.decode().splitlines()[:2]
    assert name == "event: response.failed"
    assert json.loads(data.removeprefix("data: "))["response"]["id"] == "resp_7"


def data_of(chunk: bytes) -> list[dict[str, Any]]:
    """The content of the events in *chunk*."""
    lines = chunk.decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def engine_event(name: str, **content: object) -> bytes:
    data = json.dumps({"type": f"response.{name}", **content}).encode()
    return b"event: response.%b\ndata: %b\n\n" % (name.encode(), data)


ENGINE_RESPONSE = {"id": "resp_engine", "object": "response", "status": "in_progress"}
ENGINE_EVENTS = [
    engine_event("created", response=ENGINE_RESPONSE),
    engine_event("in_progress", response=ENGINE_RESPONSE),
    engine_event("output_text.delta", item_id="msg_1", delta="Once"),
    engine_event("completed", response=ENGINE_RESPONSE | {"status": "completed"}),
]


@pytest.fixture
def eventful(new_rig: NewRig) -> Rig:
    return new_rig(sse_keepalive=10, responses_keepalive="events")


@pytest.mark.parametrize("size", [1, 7, 10_000], ids=lambda size: f"{size} bytes at a time")
def test_a_response_can_begin_before_the_engine_s_and_keeps_its_id(
    size: int, eventful: Rig
) -> None:
    client = send_request(eventful, "/v1/responses")
    eventful.advance(5)
    eventful.upstream.send(STREAM_HEAD, ENGINE_COMMENT)
    eventful.advance(16)
    sent = so_far(client)
    own_id = "resp_" + sent["x-request-id"]
    created, in_progress = (data_of(each)[0] for each in sent.chunks)
    assert (created["type"], in_progress["type"]) == ("response.created", "response.in_progress")
    assert created["response"] == in_progress["response"]
    assert created["response"]["id"] == own_id

    stream = b"".join(chunk(each) for each in ENGINE_EVENTS) + LAST_CHUNK
    eventful.upstream.send(*(stream[at : at + size] for at in range(0, len(stream), size)))
    response = so_far(client)
    assert response.is_whole
    events = [each for piece in response.chunks for each in data_of(piece)]
    assert [each["type"] for each in events] == [
        "response.created",
        "response.in_progress",
        "response.output_text.delta",
        "response.completed",
    ]
    assert events[2] == {"type": events[2]["type"], "item_id": "msg_1", "delta": "Once"}
    assert events[3]["response"]["id"] == own_id
    assert b"resp_engine" not in client.received
    assert eventful.is_at_rest


def test_a_quick_response_is_left_as_it_is(eventful: Rig) -> None:
    client = send_request(eventful, "/v1/responses")
    eventful.upstream.send(STREAM_HEAD, *(chunk(each) for each in ENGINE_EVENTS), LAST_CHUNK)

    assert so_far(client).chunks == tuple(ENGINE_EVENTS)


@pytest.mark.parametrize("sent", [[], ENGINE_EVENTS[:1], ENGINE_EVENTS[:3]])
def test_a_failure_of_a_response_that_began_early_has_its_id(
    sent: list[bytes], eventful: Rig
) -> None:
    client = send_request(eventful, "/v1/responses")
    eventful.advance(10)
    for _ in range(2):  # where nothing had begun, it is sent again once
        if not so_far(client).is_whole and not client.is_closed:
            eventful.upstream.send(STREAM_HEAD, *(chunk(each) for each in sent), b"7\r\nevent")
            eventful.upstream.close()

    response = so_far(client)
    (last,) = data_of(response.chunks[-1])
    assert last["type"] == "response.failed"
    assert last["response"]["id"] == "resp_" + response["x-request-id"]
    assert not response.is_whole
    assert eventful.is_at_rest


def test_a_refusal_of_a_response_that_began_early_is_a_failed_response(eventful: Rig) -> None:
    client = send_request(eventful, "/v1/responses")
    eventful.advance(10)
    body = b'{"error":{"code":400,"message":"bad grammar","type":"invalid_request_error"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    eventful.upstream.send(head + body)

    (last,) = data_of(so_far(client).chunks[-1])
    assert last["response"]["error"] == {"code": "invalid_prompt", "message": "bad grammar"}


def test_a_prompt_that_is_too_long_for_a_response_that_began_early_has_the_code_for_it(
    eventful: Rig,
) -> None:
    client = send_request(eventful, "/v1/responses")
    eventful.advance(10)
    facts = b'"type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":8'
    body = b'{"error":{"code":400,"message":"too long",%b}}' % facts
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    eventful.upstream.send(head + body)

    (last,) = data_of(so_far(client).chunks[-1])
    assert last["response"]["error"]["code"] == "context_length_exceeded"


def test_an_http_1_0_client_receives_comments_without_chunks(busy: Rig) -> None:
    client = busy.send_request(request(body=STREAM, version="1.0"))
    busy.advance(20)
    busy.upstreams[0].send(OK)
    busy.upstream.send(STREAM_HEAD, event(1) + LAST_CHUNK)
    busy.upstream.close()

    response = so_far(client)
    assert "transfer-encoding" not in response
    assert response["connection"] == "close"
    assert response.body == WAITING * 2 + b'data: {"n":1}\n\n'
    assert client.is_closed


def test_a_client_that_reads_nothing_is_sent_no_more_comments(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    client.stall()
    client.transport._protocol.pause_writing()
    before = client.received
    busy.advance(50)

    assert client.received == before


# What it waited for -------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [10, 40])
def test_the_stream_follows_byte_for_byte(seconds: int, busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(seconds)
    waited = so_far(client).chunks
    busy.upstreams[0].send(OK)
    busy.upstream.send(STREAM_HEAD, event(1), event(2), LAST_CHUNK)
    busy.upstream.close()

    response = so_far(client)
    assert response.is_whole
    assert response.chunks == (*waited, b'data: {"n":1}\n\n', b'data: {"n":2}\n\n')
    assert busy.is_at_rest
    (_, record) = busy.records
    assert (record.status, record.outcome) == (200, "done")
    assert record.bytes_out == len(client.received)
    assert record.first_byte == seconds


def test_the_connection_can_be_used_again(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.upstreams[0].send(OK)
    busy.upstream.send(STREAM_HEAD + LAST_CHUNK)
    client.send(request("GET", "/ping", key=None))

    assert [response.status for response in client.responses] == [200, 200]


def test_a_stream_opened_while_the_engine_has_the_request_continues_as_well(
    new_rig: NewRig,
) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig)
    rig.advance(20)
    rig.upstream.send(STREAM_HEAD, event(1) + LAST_CHUNK)

    assert so_far(client).chunks == (WAITING, WAITING, b'data: {"n":1}\n\n')
    assert so_far(client).is_whole
    assert rig.is_at_rest


def test_a_stream_that_has_begun_receives_no_comments(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig)
    rig.advance(10)
    rig.upstream.send(STREAM_HEAD, event(1))
    rig.advance(100)

    assert so_far(client).chunks == (WAITING, b'data: {"n":1}\n\n')


# A body that takes long to search -----------------------------------------------------------------

DENSE = b"{" + b'"":[[]],' * 2000 + b'"stream":true}'
"""Short, and takes the effort of a long one: every byte of it ends or begins something."""


def test_a_body_that_takes_long_to_search_waits_a_few_ticks_more(busy: Rig) -> None:
    client = send_request(busy, body=DENSE)
    busy.advance(10)
    assert client.received == b"", "all of it in one tick would hold up every other stream"

    busy.advance(30)
    assert so_far(client).chunks[0] == WAITING


def test_no_short_body_waits_until_long_ones_are_searched(busy: Rig) -> None:
    long = [send_request(busy, body=DENSE) for _ in range(8)]
    short = send_request(busy)
    busy.advance(10)

    assert so_far(short).chunks == (WAITING,)
    assert not any(client.received for client in long)


def test_many_bodies_share_the_effort_of_one_tick(busy: Rig) -> None:
    body = b'{"prompt":"%b","stream":true}' % (b"x" * 200_000)
    clients = [send_request(busy, body=body) for _ in range(8)]
    busy.advance(10)
    assert sum(bool(client.received) for client in clients) < 4

    busy.advance(5)
    assert all(client.received for client in clients)


def test_a_bug_in_one_search_does_not_stop_the_others(
    busy: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: bytes) -> None:
        raise ValueError("as a bug would")

    broken, fine = send_request(busy), send_request(busy)
    broken.transport.on_write = fail
    busy.advance(10)

    assert broken.was_cut
    assert so_far(fine).chunks == (WAITING,)
    assert "a bug" in caplog.text


def test_a_search_ends_with_the_exchange_that_it_was_for(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig, body=DENSE)
    rig.advance(10)
    rig.upstream.send(OK)
    client.send(request("POST", "/v1/embeddings", body=DENSE))
    rig.advance(60)

    assert len(client.responses) == 1, "embeddings are no stream, whatever their body"


# What goes wrong then -----------------------------------------------------------------------------


def test_a_wait_that_is_too_long_ends_with_an_error_event(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(100)

    assert code_in(last_event(client)) == "queue_timeout"
    assert not so_far(client).is_whole, "never a clean end"
    assert client.is_closed
    assert busy.metrics.rejections["queue_timeout"] == 1
    assert busy.fleet.admission.queued == 0
    assert busy.records[-1].outcome == "queue_timeout"
    assert busy.records[-1].bytes_out == len(client.received)


def test_an_engine_that_is_given_up_ends_it_with_an_error_event(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.engine(ChildState.FAILED)

    assert code_in(last_event(client)) == "backend_unavailable"
    assert client.is_closed


def test_silence_of_the_engine_ends_it_with_an_error_event(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10, request_timeout=30)
    client = send_request(rig)
    rig.advance(30)

    assert so_far(client).chunks[:-1] == (WAITING,) * 2
    assert code_in(last_event(client)) == "backend_timeout"
    assert +rig.metrics.backend_failures == {"timeout": 1}
    rig.upstream.close()
    assert rig.is_at_rest


def test_an_engine_that_cannot_be_reached_ends_it_with_an_error_event(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.accepts = False
    busy.upstreams[0].send(OK)
    busy.upstreams[0].close()
    busy.dials[-1].refuse()
    busy.spin()
    busy.engine(ChildState.FAILED)

    assert code_in(last_event(client)) == "backend_unavailable"
    assert busy.is_at_rest


def test_an_engine_that_closes_without_a_response_ends_it_with_an_error_event(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.upstreams[0].send(OK)
    for _ in range(2):  # it is sent again once
        busy.upstream.close()

    assert code_in(last_event(client)) == "backend_error"
    assert busy.is_at_rest


REFUSAL = b'{"error":{"code":400,\n"message":"too long","type":"exceed_context_size_error"}}'
REFUSALS = {
    "at once": [b"Content-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL)],
    "in pieces": [b"Content-Length: %d\r\n\r\n" % len(REFUSAL), REFUSAL[:9], REFUSAL[9:]],
    "in chunks": [
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n%b\r\n" % (len(REFUSAL), REFUSAL),
        LAST_CHUNK,
    ],
}


@pytest.mark.parametrize("pieces", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_by_the_engine_becomes_an_error_event(pieces: list[bytes], busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.upstreams[0].send(OK)
    busy.upstream.send(b"HTTP/1.1 400 Bad Request\r\n" + pieces[0], *pieces[1:])

    assert last_event(client) == json.loads(REFUSAL)
    assert not so_far(client).is_whole
    assert client.is_closed
    assert busy.is_at_rest
    assert busy.records[-1].bytes_out == len(client.received)


def test_a_refusal_that_the_engine_s_connection_ends_becomes_one_too(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.upstreams[0].send(OK)
    busy.upstream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + REFUSAL)
    busy.upstream.close()

    assert last_event(client) == json.loads(REFUSAL)
    assert busy.is_at_rest


@pytest.mark.parametrize("body", [b'{"ok":true}', b"<html>", b'{"error":' + b"x" * 200_000 + b"}"])
def test_a_response_that_is_neither_a_stream_nor_a_refusal_is_an_error_of_the_gateway(
    body: bytes, busy: Rig
) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.upstreams[0].send(OK)
    busy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    assert code_in(last_event(client)) == "backend_error"
    assert busy.is_at_rest


def test_a_refusal_is_kept_only_up_to_its_limit(busy: Rig) -> None:
    body = REFUSAL.replace(b"long", b"long" * 50_000)
    client = send_request(busy)
    busy.advance(10)
    busy.upstreams[0].send(OK)
    half = len(body) // 2
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    busy.upstream.send(head, body[:half], body[half:])

    assert code_in(last_event(client)) == "backend_error"
    assert len(client.received) < 10_000


def test_a_refusal_that_breaks_off_is_an_error_of_the_gateway(busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    busy.upstreams[0].send(OK)
    for _ in range(2):  # it is sent again once
        busy.upstream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 999\r\n\r\n", REFUSAL)
        busy.upstream.close()

    assert code_in(last_event(client)) == "backend_error"
    assert busy.is_at_rest


def test_anthropic_s_clients_receive_events_in_their_format(busy: Rig) -> None:
    client = send_request(busy, "/v1/messages")
    busy.advance(100)

    assert so_far(client).chunks[-1].startswith(b"event: error\ndata: ")
    assert last_event(client)["type"] == "error"


@pytest.mark.parametrize("has_slot", [False, True])
def test_a_client_that_leaves_gives_back_what_it_held(has_slot: bool, busy: Rig) -> None:
    client = send_request(busy)
    busy.advance(10)
    if has_slot:
        busy.upstreams[0].send(OK)
    client.disconnect()
    busy.upstreams[0].send(OK)
    busy.upstream.close()

    assert busy.is_at_rest
    phase = "before_first_byte" if has_slot else "queued"
    assert +busy.metrics.client_disconnects == {phase: 1}


def test_a_refused_wait_costs_the_key_nothing(busy: Rig) -> None:
    send_request(busy)
    busy.advance(50)
    principal = busy.services.authenticator.holder(KEY.encode())
    busy.engine(ChildState.FAILED)

    assert principal is not None
    assert principal.limiter is not None
    assert principal.limiter.remaining(busy.clock.now) == 999


# Tokens -------------------------------------------------------------------------------------------


def test_its_tokens_and_its_first_event_are_the_engine_s(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    client = send_request(rig)
    rig.advance(10)
    assert so_far(client).chunks == (WAITING,)
    rig.upstream.send(STREAM_HEAD)
    rig.advance(20)
    told = b'data: {"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
    rig.upstream.send(event(1), chunk(told), LAST_CHUNK)
    (exchange,) = rig.records

    assert exchange.first_token == 30
    assert exchange.usage == Usage(9, 3, None)


def test_a_refusal_by_the_engine_has_no_tokens(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    send_request(rig)
    rig.advance(10)
    rig.upstream.send(OK.replace(b"200 OK", b"400 Bad Request"))
    (exchange,) = rig.records

    assert (exchange.first_token, exchange.usage) == (0.0, None)
    assert rig.metrics.tokens == {}
