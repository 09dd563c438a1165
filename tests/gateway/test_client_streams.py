"""Failures behind the head of an answer, slow readers, and how long a stream may take."""

from __future__ import annotations

import json

import pytest

from llama_gguf.http1.exchange_record import Usage
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.messages import LAST_CHUNK, STREAM_HEAD, chunk, event, request

LENGTH_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
TEXT_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"


def error_in(data: bytes) -> dict[str, object]:
    """The error in one event."""
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    error = json.loads(data[6:])["error"]
    assert isinstance(error, dict)
    return error


# Broken off ---------------------------------------------------------------------------------------

# What came of the answer, where no event may be added.
CUT_SHORT = {
    "a length": LENGTH_HEAD + b"only this",
    "in an event": STREAM_HEAD + event(1) + event(2)[:8],
    "in a chunk's size": STREAM_HEAD + event(1) + b"1",
    "behind a chunk with half an event": STREAM_HEAD + event(1) + chunk(b"data: {"),
    "behind a chunk with one line of an event": STREAM_HEAD + chunk(b"data: x\n"),
    "in the last chunk": STREAM_HEAD + event(1) + b"0\r\n",
    "in a trailer": STREAM_HEAD + event(1) + b"0\r\nX: y\r\n",
    "chunks of something else": TEXT_HEAD + chunk(b"text\n\n"),
}


@pytest.mark.parametrize("said", CUT_SHORT.values(), ids=CUT_SHORT.keys())
@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_answer_that_breaks_off_is_cut_and_never_looks_whole(
    how: str, said: bytes, rig: Rig
) -> None:
    client = rig.send_request()
    rig.upstream.send(said)
    getattr(rig.upstream, how)()

    assert client.was_cut, "a FIN could be taken for the end"
    assert not client.response.is_whole
    assert len(client.responses) == 1, "no second answer behind the first"
    assert client.received.endswith(said.partition(b"\r\n\r\n")[2])
    assert rig.is_at_rest
    assert rig.records[0].outcome == "backend_error"
    assert rig.records[0].status == 200
    assert rig.metrics.backend_failures["broken_off"] == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_stream_that_breaks_off_behind_a_whole_event_says_so_and_is_not_ended(
    how: str, rig: Rig
) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1))
    getattr(rig.upstream, how)()

    assert client.response.chunks[0] == b'data: {"n":1}\n\n'
    assert error_in(client.response.chunks[1])["code"] == "backend_error"
    assert not client.response.is_whole, "the last chunk must not come"
    assert client.transport.is_closed
    assert not client.was_cut, "a reset could take the event with it"
    assert b"[DONE]" not in client.received
    assert rig.is_at_rest


@pytest.mark.parametrize("at", range(1, len(event(1))))
def test_where_the_network_cut_the_last_event_makes_no_difference(at: int, rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1)[:at], event(1)[at:])
    rig.upstream.close()

    assert error_in(client.response.chunks[-1])["code"] == "backend_error"


def test_the_event_of_an_anthropic_stream_is_anthropic_s(rig: Rig) -> None:
    client = rig.send_request(request("POST", "/v1/messages", body=b"{}"))
    rig.upstream.send(STREAM_HEAD, event(1))
    rig.upstream.close()

    last = client.response.chunks[-1]
    start = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"'
    assert last.startswith(start)


def test_http_1_0_gets_the_event_without_chunks(rig: Rig) -> None:
    client = rig.send_request(request(body=b"{}", version="1.0"))
    rig.upstream.send(STREAM_HEAD, event(1))
    rig.upstream.close()

    first, separator, rest = client.response.body.partition(b"\n\n")
    assert first + separator == b'data: {"n":1}\n\n'
    assert error_in(rest)["code"] == "backend_error"


def test_a_stream_in_broken_chunks_is_cut(rig: Rig) -> None:
    client = rig.send_request()
    upstream = rig.upstream
    upstream.send(STREAM_HEAD, event(1), b"nonsense\r\n")

    assert client.was_cut
    assert b"nonsense" not in client.received
    assert upstream.was_cut
    assert rig.is_at_rest


def test_broken_chunks_right_behind_the_head_are_cut_too(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD + b"nonsense\r\n")

    assert client.was_cut
    assert rig.is_at_rest


def test_what_a_client_sends_behind_a_cut_stream_is_not_served(rig: Rig) -> None:
    rig.send_request(request(body=b"{}") * 2)
    rig.upstream.send(STREAM_HEAD, event(1))
    rig.upstream.close()
    rig.advance(1)

    assert len(rig.requests) == 1


# Silence ------------------------------------------------------------------------------------------


def test_a_stream_may_take_as_long_as_it_likes_while_it_moves(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(0))
    for n in range(1, 20):
        rig.advance(250)
        rig.upstream.send(event(n))
    rig.upstream.send(LAST_CHUNK)

    assert client.response.is_whole
    assert len(client.response.chunks) == 20


def test_a_stream_that_falls_silent_gets_an_event_and_no_end(rig: Rig) -> None:
    client = rig.send_request()
    upstream = rig.upstream
    upstream.send(STREAM_HEAD, event(1))
    rig.advance(299)
    assert not client.is_closed

    rig.advance(2)

    assert error_in(client.response.chunks[-1])["code"] == "backend_timeout"
    assert not client.response.is_whole
    assert client.transport.is_closed
    assert upstream.was_cut
    assert rig.is_at_rest
    assert rig.records[0].outcome == "backend_timeout"


def test_a_stream_that_falls_silent_within_an_event_is_cut(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1), event(2)[:9])
    rig.advance(301)

    assert client.was_cut
    assert client.received.endswith(event(2)[:9])


def test_a_comment_counts_as_a_sign_of_life(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD)
    for _ in range(4):
        rig.advance(200)
        rig.upstream.send(chunk(b":\n\n"))

    assert not client.is_closed


def test_the_cap_on_a_whole_answer_ends_a_stream_that_moves(new_rig: NewRig) -> None:
    rig = new_rig(max_request_duration=30.0)
    client = rig.send_request()
    upstream = rig.upstream
    upstream.send(STREAM_HEAD)
    for n in range(28):
        rig.advance(1)
        upstream.send(event(n))
    assert not client.is_closed

    rig.advance(3)

    assert error_in(client.response.chunks[-1])["code"] == "backend_timeout"
    assert upstream.was_cut
    assert rig.is_at_rest


# Slow readers -------------------------------------------------------------------------------------


def fill(rig: Rig, client: FakeClient) -> int:
    """Stream to a client that does not read until the engine is paused; returns the events."""
    client.stall()
    upstream = rig.upstream
    big = chunk(b"data: " + b"x" * 4000 + b"\n\n")
    events = 0
    while upstream.transport.is_reading():
        upstream.send(big)
        events += 1
        assert events < 1000, "nothing stops the engine"
    return events


def test_a_slow_client_pauses_the_engine_and_reading_on_resumes_it(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD)
    events = fill(rig, client)
    assert client.transport.unsent < 200_000
    rig.upstream.send(event(1))
    assert event(1) not in client.received

    client.resume_reading()

    assert rig.upstream.transport.is_reading()
    rig.upstream.send(LAST_CHUNK)
    assert len(client.response.chunks) == events + 1
    assert client.response.is_whole


def test_a_slow_client_does_not_hold_up_another(rig: Rig) -> None:
    slow = rig.send_request()
    rig.upstream.send(STREAM_HEAD)
    fill(rig, slow)
    quick = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1))

    assert quick.received.endswith(event(1))


def test_a_client_that_reads_on_in_time_is_not_taken_for_a_silent_engine(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD)
    fill(rig, client)
    rig.advance(250)
    client.resume_reading()
    rig.advance(250)
    rig.upstream.send(LAST_CHUNK)

    assert client.response.is_whole
    assert not client.was_cut


def test_a_client_that_reads_nothing_at_all_is_cut_in_the_end(rig: Rig) -> None:
    client = rig.send_request()
    upstream = rig.upstream
    upstream.send(STREAM_HEAD)
    fill(rig, client)
    rig.advance(301)

    assert client.was_cut
    assert upstream.was_cut
    assert rig.is_at_rest
    assert rig.metrics.client_disconnects["streaming"] == 1


def test_a_connection_paused_by_one_client_is_not_paused_for_the_next(rig: Rig) -> None:
    slow = rig.client()
    slow.stall()
    slow.send(request(body=b"{}"))
    body = b"x" * 100_000
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body)
    other = rig.send_request()

    assert len(rig.upstreams) == 1
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert other.response.status == 200


def test_the_next_request_waits_for_a_client_that_has_not_read_the_last_response(rig: Rig) -> None:
    client = rig.client()
    client.stall()
    client.send(request(body=b"1") + request(body=b"2"))
    body = b"x" * 100_000
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body)
    assert len(rig.requests) == 1

    client.resume_reading()

    assert len(rig.requests) == 2
    assert rig.upstream.transport.is_reading()


# Tokens -------------------------------------------------------------------------------------------

TIMINGS = (
    b'data: {"timings":{"cache_n":32,"prompt_n":1,"prompt_ms":16.5,"prompt_per_token_ms":16.5,'
    b'"prompt_per_second":60.3,"predicted_n":4,"predicted_ms":45.0,"predicted_per_token_ms":11.2,'
    b'"predicted_per_second":89.2}}\n\n'
)
ENDING = chunk(TIMINGS) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK


def test_a_stream_s_first_token_is_its_first_event_and_not_its_head(rig: Rig) -> None:
    # llama-server sends the head when it begins with the prompt, which may take minutes.
    rig.send_request()
    rig.upstream.send(STREAM_HEAD)
    rig.advance(40.0)
    rig.upstream.send(chunk(b":\n\n"))
    rig.advance(10.0)
    rig.upstream.send(event(1), ENDING)
    (exchange,) = rig.records

    assert (exchange.first_byte, exchange.first_token) == (0.0, 50.0)
    histogram = rig.metrics.first_tokens["chat"]
    assert (sum(histogram.counts), histogram.sum) == (1, 50.0)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_what_a_stream_told_at_its_end_is_known(version: str, rig: Rig) -> None:
    client = rig.send_request(request(body=b"{}", version=version))
    rig.upstream.send(STREAM_HEAD + event(0), *(event(n) for n in range(20)), ENDING)
    rig.upstream.close()
    (exchange,) = rig.records

    assert exchange.usage == Usage(33, 4, 32, 0.045, prompting=0.0165)
    assert client.responses[0].body.endswith(b"data: [DONE]\n\n")


def test_a_client_that_leaves_has_tokens_that_nobody_told(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1), event(2))
    client.disconnect()
    (exchange,) = rig.records

    assert exchange.usage is None
    assert rig.metrics.usage_unknown == {"/v1/chat/completions": 1}


# What the engine is known to do -------------------------------------------------------------------


def test_an_engine_that_sends_is_heard(rig: Rig) -> None:
    began = rig.clock.now
    rig.send_request()
    assert rig.replica.tracker.responded_at < began

    rig.advance(5.0)
    rig.upstream.send(STREAM_HEAD)
    assert rig.replica.tracker.responded_at == began + 5.0

    rig.advance(5.0)
    rig.upstream.send(event(1))
    rig.advance(0.5)
    assert rig.replica.tracker.responded_at == began + 10.5

    rig.advance(5.0)
    assert rig.replica.tracker.responded_at == began + 10.5


def test_one_that_fails_is_to_be_asked_how_it_is(rig: Rig) -> None:
    began = rig.clock.now
    client = rig.send_request()
    rig.upstream.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    assert client.response.status == 503
    assert rig.replica.tracker.responded_at < began


# Tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", ["each", "with the end"])
def test_the_tokens_are_read_wherever_the_network_cut_the_event_that_tells(
    apart: str, rig: Rig
) -> None:
    tells = chunk(b'data: {"usage":{"prompt_tokens":33,"completion_tokens":6}}\n\n')
    done = chunk(b"data: [DONE]\n\n")
    behind = [done, LAST_CHUNK] if apart == "each" else [done + LAST_CHUNK]
    for at in range(1, len(tells)):
        rig.send_request()
        rig.upstream.send(STREAM_HEAD + event(1))
        for piece in (event(2), event(3), tells[:at], tells[at:], *behind):
            rig.upstream.send(piece)

    assert [record.usage for record in rig.records] == [Usage(33, 6, None)] * (len(tells) - 1)
