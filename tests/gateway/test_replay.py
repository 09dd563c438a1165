"""Requests that an engine has failed before their response began, and that are sent again."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from llama_gguf.engines.status import ChildState
from llama_gguf.gateway.replay import MARGIN_SECONDS
from llama_gguf.gateway.upstream_connection import Phase
from llama_gguf.scheduling.crash_memory import SECONDS
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import OTHER_KEY
from tests.support.messages import (
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    bytewise,
    chunk,
    code_of,
    event,
    read_responses,
    request,
)

STREAM: Final = b'{"stream":true}'
COMMENT: Final = chunk(b":\n\n")
TARGETS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
    "/v1/embeddings",
)
NOTHING_OF_THE_BODY: Final = {
    "nothing": [],
    "a part of the head": [b"HTTP/1.1 200 OK\r\nContent-Le"],
    "a head with a length": [b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n"],
    "a head with chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    "a stream's head": [STREAM_HEAD],
    "a stream's head and a comment": [STREAM_HEAD, COMMENT],
    "a stream's head and two comments at once": [STREAM_HEAD + COMMENT + COMMENT],
}


@pytest.fixture
def rig(new_rig: NewRig) -> Rig:
    rig = new_rig(slots=8)
    rig.replica.tracker.is_supervised = True
    return rig


def engine_dies(rig: Rig) -> None:
    """The engine accepts no connection any more, resets those it has, and that is reported."""
    rig.accepts = False
    for upstream in list(rig.upstreams):
        if not upstream.is_closed:
            upstream.reset()
    for dial in rig.dials:
        dial.refuse()
    rig.spin()
    rig.engine(ChildState.BACKOFF)


def engine_returns(rig: Rig) -> None:
    rig.accepts = True
    rig.engine(ChildState.LOADING)
    rig.engine(ChildState.READY, slots=8)


def bodies(rig: Rig) -> list[bytes]:
    """Of the requests that the engines have received."""
    return [raw.partition(b"\r\n\r\n")[2] for raw in rig.requests]


def post(rig: Rig, body: bytes = b"{}", target: str = TARGETS[0], **fields: Any) -> FakeClient:
    return rig.send_request(request("POST", target, body=body, **fields))


# What is sent again -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_request_survives_the_death_of_its_engine(target: str, rig: Rig) -> None:
    client = post(rig, b'{"a":1}', target)
    engine_dies(rig)
    assert client.received == b""
    engine_returns(rig)
    rig.upstream.send(OK)

    assert client.response.status == 200
    assert client.response.body == b'{"ok":true}'
    assert bodies(rig) == [b'{"a":1}'] * 2
    assert rig.requests[0] == rig.requests[1]
    assert (rig.records[0].outcome, rig.records[0].replays) == ("done", 1)
    assert rig.is_at_rest


@pytest.mark.parametrize("sent", NOTHING_OF_THE_BODY.values(), ids=NOTHING_OF_THE_BODY.keys())
def test_it_survives_as_long_as_the_client_has_nothing_of_the_body(
    sent: list[bytes], rig: Rig
) -> None:
    client = post(rig, STREAM)
    rig.upstream.send(*sent)
    engine_dies(rig)
    engine_returns(rig)
    rig.upstream.send(STREAM_HEAD, event(1), LAST_CHUNK)

    assert client.response.is_whole
    assert client.received.count(b"HTTP/1.1 200 OK") == 1, "the second head is not sent"
    assert client.received.count(b'{"n":1}') == 1
    assert rig.records[0].outcome == "done"
    assert rig.records[0].bytes_out == len(client.received)
    assert rig.is_at_rest


def test_eight_of_eight_survive(rig: Rig) -> None:
    clients = [post(rig, b'{"stream":true,"n":%d}' % n) for n in range(8)]
    for upstream in list(rig.upstreams)[:4]:
        upstream.send(STREAM_HEAD)
    engine_dies(rig)
    rig.respond_with(STREAM_HEAD + event(1) + LAST_CHUNK)
    engine_returns(rig)

    assert all(client.response.is_whole for client in clients)
    assert sorted(bodies(rig)) == sorted([b'{"stream":true,"n":%d}' % n for n in range(8)] * 2)
    assert rig.metrics.backend_failures["no_response"] + rig.metrics.backend_failures[
        "broken_off"
    ] == len(clients)
    assert rig.is_at_rest


def test_a_chunked_upload_is_sent_again_whole(rig: Rig) -> None:
    body = chunk(b'{"a":') + chunk(b"1}") + LAST_CHUNK
    client = rig.send_request(
        request("POST", TARGETS[0], "Transfer-Encoding: chunked", body=None) + body
    )
    engine_dies(rig)
    engine_returns(rig)
    rig.upstream.send(OK)

    assert client.response.status == 200
    assert bodies(rig) == [b'{"a":1}'] * 2


def test_a_request_counts_once_however_often_it_is_sent(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=7)
    client = post(rig)
    rig.upstream.reset()
    rig.upstream.send(OK)

    assert client.response["x-ratelimit-remaining-requests"] == "6"
    assert len(rig.records) == 1
    assert rig.metrics.responses == 1
    assert +rig.metrics.replays == {"no_response": 1}


def test_a_request_is_sent_again_as_often_as_max_replays_allows(new_rig: NewRig) -> None:
    rig = new_rig(max_replays=3)
    client, other = post(rig, b"1"), post(rig, b"2")
    rig.upstreams[1].reset()
    for _ in range(4):
        rig.upstreams[0].reset()
        for upstream in rig.upstreams:
            if upstream.phase is Phase.HEAD and upstream.received.endswith(b"2"):
                upstream.send(OK)
        rig.upstreams[:] = [u for u in rig.upstreams if u.phase is Phase.HEAD]

    assert client.response.status == 502
    assert bodies(rig).count(b"1") == 4
    assert other.response.status == 200
    assert rig.is_at_rest


def test_an_engine_that_cuts_a_connection_without_dying_gets_the_request_at_once(rig: Rig) -> None:
    client = post(rig)
    rig.upstream.reset()
    assert len(rig.requests) == 2
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_a_replay_waits_even_when_the_queue_is_full(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_size=1)
    first, second = post(rig, b"1"), post(rig, b"2")
    engine_dies(rig)
    rig.accepts = True
    rig.respond_with(OK)
    rig.engine(ChildState.READY, slots=1)

    assert sorted(bodies(rig)) == [b"1", b"1", b"2"]
    assert [client.response.status for client in (first, second)] == [200, 200]


def test_it_is_not_sent_on_a_kept_connection_which_the_same_death_has_ended(rig: Rig) -> None:
    client, other = post(rig, b"1"), post(rig, b"2")
    busy, kept = rig.upstreams
    kept.send(OK)
    assert other.response.status == 200
    rig.accepts = False
    busy.reset()
    kept.reset()
    engine_dies(rig)
    engine_returns(rig)
    rig.upstream.send(OK)

    assert client.response.status == 200
    assert bodies(rig) == [b"1", b"2", b"1"]


def test_turns_are_so_short_that_each_request_is_sent_before_its_time_to_wait_is_over(
    new_rig: NewRig,
) -> None:
    rig = new_rig(slots=8, max_queue_wait=100.0)
    for n in range(8):
        post(rig, b"%d" % n)
    rig.advance(60)
    engine_dies(rig)
    rig.advance(20)
    engine_returns(rig)
    rig.advance(80)

    assert sorted(bodies(rig)) == sorted([b"%d" % n for n in range(8)] * 2)


# What is not --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 20\r\n\r\n",
    ],
    ids=["until the end of the connection", "a stream with a length"],
)
def test_a_head_that_no_other_response_may_follow_is_cut(head: bytes, rig: Rig) -> None:
    client = post(rig, STREAM)
    rig.upstream.send(head)
    received = client.received
    assert received
    rig.upstream.reset()

    assert len(rig.requests) == 1
    assert client.received == received
    assert client.transport.is_closed


@pytest.mark.parametrize(
    "begun",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"],
        [STREAM_HEAD, event(1)],
        [STREAM_HEAD, b"9\r\nevent: a"],
        [STREAM_HEAD, chunk(b"event: message_start\n")],
    ],
)
def test_what_the_client_has_a_part_of_is_cut(begun: list[bytes], rig: Rig) -> None:
    client = post(rig, STREAM)
    rig.upstream.send(*begun)
    engine_dies(rig)
    engine_returns(rig)

    assert len(rig.requests) == 1
    assert not client.response.is_whole
    assert client.transport.is_closed
    assert rig.records[0].outcome == "backend_error"


def test_without_replays_a_stream_without_an_event_gets_an_error_event(new_rig: NewRig) -> None:
    rig = new_rig(max_replays=0)
    for head in ([STREAM_HEAD], [STREAM_HEAD, COMMENT]):
        client = post(rig, STREAM)
        rig.upstream.send(*head)
        rig.upstream.reset()

        last = client.response.chunks[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "backend_error"
        assert not client.response.is_whole
        assert client.transport.is_closed


def test_a_second_head_that_is_another_ends_the_stream_with_an_error_event(rig: Rig) -> None:
    client = post(rig, STREAM)
    rig.upstream.send(STREAM_HEAD)
    engine_dies(rig)
    engine_returns(rig)
    body = b'{"error":{"message":"too long","code":400}}'
    rig.upstream.send(b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    assert json.loads(client.response.chunks[-1].removeprefix(b"data: ")) == json.loads(body)
    assert not client.response.is_whole
    assert rig.is_at_rest


@pytest.mark.parametrize("stage", ["dead", "loading", "sent"])
def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(stage: str, rig: Rig) -> None:
    client = post(rig)
    engine_dies(rig)
    if stage != "dead":
        rig.engine(ChildState.LOADING)
    if stage == "sent":
        engine_returns(rig)
    client.disconnect()
    rig.upstream.reset()

    assert rig.is_at_rest
    assert rig.records[0].outcome.startswith("client_left")
    assert len(rig.fleet.replay_order) == 0


def test_when_no_engine_comes_its_clients_learn_why(rig: Rig) -> None:
    clients = [post(rig) for _ in range(3)]
    engine_dies(rig)
    rig.engine(ChildState.FAILED)

    for client in clients:
        assert client.response.status == 503
        assert code_of(client.response) == "backend_unavailable"
    assert rig.is_at_rest


def test_a_replay_waits_for_max_queue_wait(new_rig: NewRig) -> None:
    rig = new_rig(max_queue_wait=30.0)
    client = post(rig)
    engine_dies(rig)
    rig.advance(29)
    assert client.received == b""
    rig.advance(2)

    assert client.response.status == 503
    assert rig.is_at_rest


def test_comments_go_on_while_the_next_engine_loads(new_rig: NewRig) -> None:
    rig = new_rig(sse_keepalive=10)
    client = post(rig, STREAM)
    rig.upstream.send(STREAM_HEAD)
    engine_dies(rig)
    rig.advance(25)
    engine_returns(rig)
    rig.upstream.send(STREAM_HEAD, event(1), LAST_CHUNK)

    (response,) = read_responses(client.received)
    assert response.is_whole
    assert response.chunks == (b": waiting\n\n", b": waiting\n\n", b'data: {"n":1}\n\n')
    assert rig.records[0].bytes_out == len(client.received)


# Requests that end engines ------------------------------------------------------------------------


def test_a_request_that_has_ended_two_engines_is_refused_and_not_tried_again(rig: Rig) -> None:
    client = post(rig, b"deadly")
    for _ in range(2):
        engine_dies(rig)
        engine_returns(rig)

    assert client.response.status == 502
    assert code_of(client.response) == "engine_crashed"
    assert client.response["x-should-retry"] == "false"
    assert rig.records[0].outcome == "engine_crashed"
    assert bodies(rig) == [b"deadly"] * 2

    again = post(rig, b"deadly", key=OTHER_KEY)
    assert code_of(again.response) == "engine_crashed"
    assert bodies(rig) == [b"deadly"] * 2
    rig.respond_with(OK)
    assert post(rig, b"harmless").response.status == 200
    assert post(rig, b"deadly", "/v1/completions").response.status == 200

    rig.advance(SECONDS + 1)
    assert post(rig, b"deadly").response.status == 200


def test_others_that_were_there_lose_nothing(rig: Rig) -> None:
    harmless = [post(rig, b"%d" % n, key=OTHER_KEY) for n in range(3)]
    deadly = post(rig, b"deadly")
    others = [post(rig, b"%d" % n, key=OTHER_KEY) for n in range(3, 6)]
    engine_dies(rig)
    engine_returns(rig)
    while working := [u for u in rig.upstreams if u.phase is Phase.HEAD]:
        if any(u.received.endswith(b"deadly") for u in working):
            engine_dies(rig)
            engine_returns(rig)
        else:
            working[0].send(OK)

    assert bodies(rig).count(b"deadly") == 2
    assert code_of(deadly.response) == "engine_crashed"
    assert [client.response.status for client in harmless + others] == [200] * 6
    assert rig.is_at_rest


def test_a_replay_does_not_hold_up_the_next_for_longer_than_it_had_run(rig: Rig) -> None:
    slow, next_one = post(rig, b"slow"), post(rig, b"next")
    rig.advance(5)
    engine_dies(rig)
    engine_returns(rig)
    assert bodies(rig)[2:] == [b"slow"]
    rig.advance(5 + MARGIN_SECONDS - 0.5)
    assert bodies(rig)[2:] == [b"slow"]
    rig.advance(1.5)

    assert bodies(rig)[2:] == [b"slow", b"next"]
    rig.upstreams[-1].send(OK)
    assert next_one.response.status == 200
    assert slow.received == b""


def test_many_requests_that_end_engines_cost_another_key_one_more_restart(rig: Rig) -> None:
    for n in range(4):
        post(rig, b"deadly %d" % n)
    other = post(rig, b"other", key=OTHER_KEY)
    engine_dies(rig)
    engine_returns(rig)
    assert bodies(rig)[5:] == [b"deadly 0"]
    engine_dies(rig)
    engine_returns(rig)

    assert bodies(rig)[6:] == [b"other"]
    rig.upstream.send(OK)
    assert other.response.status == 200
    assert bodies(rig)[7:] == [b"deadly 1"]


@pytest.mark.parametrize("first_lost", [0, 1])
def test_a_request_that_runs_beside_the_one_that_ends_engines_is_not_blamed(
    first_lost: int, rig: Rig
) -> None:
    innocent, deadly = post(rig, b"innocent", key=OTHER_KEY), post(rig, b"deadly")
    rig.advance(5)
    engine_dies(rig)
    engine_returns(rig)
    rig.advance(7)
    assert bodies(rig)[2:] == [b"innocent", b"deadly"]
    rig.upstreams[2 + first_lost].reset()
    engine_dies(rig)
    engine_returns(rig)

    assert code_of(deadly.response) == "engine_crashed"
    assert code_of(innocent.response) == "backend_error", "and its client may try again"
    rig.respond_with(OK)
    assert post(rig, b"innocent", key=OTHER_KEY).response.status == 200
    assert code_of(post(rig, b"deadly").response) == "engine_crashed"


# What counts as done ------------------------------------------------------------------------------

FINAL: Final = {
    "chat": chunk(b"data: [DONE]\n\n"),
    "messages": chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
    "responses": chunk(b'event: response.completed\ndata: {"type":"response.completed"}\n\n'),
    "completion": chunk(b'data: {"content":"","stop":true}\n\n'),
}


@pytest.mark.parametrize("final", FINAL.values(), ids=FINAL.keys())
@pytest.mark.parametrize("cut", [False, True])
def test_a_client_that_leaves_after_the_last_event_has_everything(
    final: bytes, cut: bool, rig: Rig
) -> None:
    client = post(rig, STREAM)
    rig.upstream.send(STREAM_HEAD, event(1), *(bytewise(final) if cut else [final]))
    client.disconnect()

    assert rig.records[0].outcome == "done"
    assert not +rig.metrics.client_disconnects
    assert rig.is_at_rest


@pytest.mark.parametrize("final", FINAL.values(), ids=FINAL.keys())
@pytest.mark.parametrize("beyond", [b"", b"0\r", LAST_CHUNK[:-2]])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_whose_engine_dies_after_the_last_event_is_done(
    final: bytes, beyond: bytes, version: str, rig: Rig
) -> None:
    client = post(rig, STREAM, version=version)
    rig.upstream.send(STREAM_HEAD, event(1), final, *([beyond] if beyond else []))
    rig.upstream.reset()

    assert client.transport.is_closed
    assert client.response.is_whole or (beyond and version == "1.1")
    assert rig.records[0].outcome == "done"
    assert rig.records[0].bytes_out == len(client.received)
    assert not +rig.metrics.backend_failures
    assert rig.is_at_rest


def test_a_client_that_leaves_before_it_has_left(rig: Rig) -> None:
    client = post(rig, STREAM)
    rig.upstream.send(STREAM_HEAD, event(1), chunk(b'data: {"t":"data: [DONE]"}\n\n'))
    client.disconnect()

    assert rig.records[0].outcome == "client_left:streaming"


ERRORS: Final = {
    "chat": chunk(b'data: {"error":{"code":500,"message":"Context size has been exceeded."}}\n\n'),
    "completion": chunk(b'error: {"error":{"code":500}}\n\n'),
    "messages": chunk(b'event: error\ndata: {"type":"error"}\n\n'),
    "responses": chunk(b'event: response.failed\ndata: {"type":"response.failed"}\n\n'),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_an_error_event_of_the_engine_is_not_done(error: bytes, rig: Rig) -> None:
    client = post(rig, STREAM)
    rig.upstream.send(STREAM_HEAD, event(1), error, LAST_CHUNK)

    assert client.response.is_whole, "its bytes pass as they are"
    assert rig.records[0].outcome == "engine_error"
    assert +rig.metrics.backend_failures == {"engine_error": 1}
