"""The engine's answers: what the client gets of them, byte for byte, and what it is spared."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from tests.fakes import (
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    FakeClient,
    Rig,
    chunk,
    code_of,
    event,
    read_answers,
    request,
    splits,
    without_varying,
)
from tests.gateway.conftest import NewRig

GET = request("GET", "/v1/models")
HEAD = request("HEAD", "/v1/models")


def lines(client: FakeClient) -> list[str]:
    """The first line and the fields of the answer, without its date."""
    head = client.received.partition(b"\r\n\r\n")[0].decode("latin-1")
    return [line for line in head.split("\r\n") if not line.startswith("Date: ")]


def test_an_answer_passes_with_its_fields_and_its_body(rig: Rig) -> None:
    client = rig.ask(request("GET", "/v1/models", "x-request-id: r1"))
    rig.upstream.say(
        b"HTTP/1.1 418 Any Reason\r\nX-A: 1\r\ncontent-type: text/x\r\nx-a: 2\r\nX-Empty:\r\n"
        b"Set-Cookie: a=b\r\nContent-Length: 4\r\nETag: \xe9\r\n\r\n\x00\r\n\xff"
    )

    assert lines(client) == [
        "HTTP/1.1 418 Any Reason",
        "X-A: 1",
        "content-type: text/x",
        "x-a: 2",
        "X-Empty: ",
        "Set-Cookie: a=b",
        "ETag: \xe9",
        "Content-Length: 4",
        "x-request-id: r1",
    ]
    assert client.answer.body == b"\x00\r\n\xff"
    assert client.answer["date"].endswith(" GMT")


def test_fields_of_the_engine_s_connection_and_those_that_are_ours_end_here(rig: Rig) -> None:
    client = rig.ask(GET)
    rig.upstream.say(
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5, max=100\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Stays: 2\r\nx-request-id: theirs\r\n"
        b"Access-Control-Allow-Origin: http://evil.example\r\nTrailer: a\r\nUpgrade: h2c\r\n"
        b"Access-Control-Allow-Credentials: true\r\nProxy-Authenticate: x\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n"
    )

    names = sorted(n.lower() for n, _ in client.answer.fields)
    assert names == ["content-length", "date", "x-request-id", "x-stays"]
    assert client.answer["date"] == "Thu, 01 Jan 2026 00:00:00 GMT"
    assert client.answer["x-request-id"] != "theirs"


def test_the_engine_s_own_errors_pass_untouched(rig: Rig) -> None:
    body = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'
    client = rig.ask()
    rig.upstream.say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    assert client.answer.status == 400
    assert client.answer.body == body
    assert not client.is_closed


class Case(NamedTuple):
    answer: bytes
    """As the engine sends it."""
    body: bytes
    """As the client has to see it."""
    keeps_upstream: bool = True
    keeps_client: bool = True
    raw: bytes = GET


def plain(status: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields]).encode() + b"\r\n\r\n" + body


OK_BODY = b'{"ok":true}'
ANSWERS = {
    "a length": Case(OK, OK_BODY),
    "an empty body": Case(plain("200 OK", "Content-Length: 0"), b""),
    "no reason": Case(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b""),
    "a length, and close": Case(
        plain("200 OK", "Connection: close", "Content-Length: 2", body=b"ab"), b"ab", False
    ),
    "HTTP/1.0 with a length": Case(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", b"ab", False),
    "a length, and more than that": Case(OK + b"surplus", OK_BODY, False),
    "a second answer unasked": Case(OK + OK, OK_BODY, False),
    "chunks": Case(
        STREAM_HEAD + event(1) + event(2) + LAST_CHUNK,
        b'data: {"n":1}\n\ndata: {"n":2}\n\n',
        False,
    ),
    "chunks with extensions and trailers": Case(
        STREAM_HEAD + b'3;a="b"\r\nabc\r\n0;x\r\nX-Sum: 1\r\n\r\n', b"abc", False
    ),
    "chunks, and more than that": Case(STREAM_HEAD + LAST_CHUNK + b"x", b"", False),
    "204": Case(plain("204 No Content"), b""),
    "204 with a length": Case(plain("204 X", "Content-Length: 5"), b""),
    "204 with a body": Case(plain("204 X", "Content-Length: 2", body=b"ab"), b"", False),
    "304 with a length": Case(plain("304 X", "Content-Length: 9"), b""),
    "304 with chunks": Case(plain("304 X", "Transfer-Encoding: chunked"), b""),
    "a hint first": Case(plain("103 Early Hints", "Link: </x>") + OK, OK_BODY),
    "two hints first": Case(plain("102 Wait") + plain("100 Continue") + OK, OK_BODY),
    "a length, to HTTP/1.0": Case(
        OK, OK_BODY, keeps_client=False, raw=request("GET", "/v1/models", version="1.0")
    ),
    "chunks, to HTTP/1.0": Case(
        STREAM_HEAD + event(1) + chunk(b"abc") + LAST_CHUNK,
        b'data: {"n":1}\n\nabc',
        keeps_upstream=False,
        keeps_client=False,
        raw=request("GET", "/v1/models", version="1.0"),
    ),
}


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_the_same_wherever_the_network_cuts_it(case: Case, rig: Rig) -> None:
    whole = b""
    for pieces in ((case.answer,), *splits(case.answer)):
        client = rig.ask(case.raw)
        upstream = rig.upstream
        upstream.say(*pieces)
        whole = whole or without_varying(client.received)

        assert without_varying(client.received) == whole
        assert client.answer.is_whole
        assert client.answer.body == case.body
        assert upstream.is_closed is not case.keeps_upstream
        assert client.is_closed is not case.keeps_client
        assert not client.was_cut
        assert rig.is_at_rest
        assert rig.records[-1].outcome == "done"
        client.leave()
        rig.shared.pool.retire_idle()


def test_the_boundaries_of_chunks_are_kept(rig: Rig) -> None:
    body = chunk(b"a") + chunk(b"bc" * 500) + b'001;x="y"\r\nd\r\n' + LAST_CHUNK
    client = rig.ask(GET)
    rig.upstream.say(STREAM_HEAD + body)

    assert client.received.endswith(b"\r\n\r\n" + body)
    assert client.answer.chunks == (b"a", b"bc" * 500, b"d")


def test_each_piece_of_an_answer_leaves_when_it_comes(rig: Rig) -> None:
    client = rig.ask(GET)
    rig.upstream.say(STREAM_HEAD)
    assert client.received.endswith(b"\r\n\r\n")
    for n in range(3):
        rig.upstream.say(event(n))
        assert client.transport.writes[-1] == event(n)


def test_half_a_chunk_leaves_when_it_comes_too(rig: Rig) -> None:
    client = rig.ask(GET)
    rig.upstream.say(STREAM_HEAD, event(1)[:9])
    assert client.received.endswith(event(1)[:9])

    rig.upstream.say(event(1)[9:] + LAST_CHUNK)
    assert client.answer.is_whole


def test_an_answer_that_ends_with_its_connection_ends_the_client_s_too(rig: Rig) -> None:
    client = rig.ask(GET)
    rig.upstream.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil ", b"the end")
    assert not client.is_closed
    rig.upstream.hang_up()

    assert client.answer.body == b"until the end"
    assert client.answer["connection"] == "close"
    assert client.transport.is_closed
    assert not client.was_cut
    assert rig.is_at_rest


def test_an_answer_that_ends_with_its_connection_is_cut_when_that_is_reset(rig: Rig) -> None:
    client = rig.ask(GET)
    rig.upstream.say(b"HTTP/1.1 200 OK\r\n\r\nuntil ")
    rig.upstream.reset()

    assert client.was_cut
    assert rig.records[0].outcome == "backend_error"


@pytest.mark.parametrize(
    "answer",
    [
        OK.partition(b"{")[0],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\nConnection: close\r\n\r\n",
    ],
)
def test_an_answer_to_head_has_no_body(answer: bytes, rig: Rig) -> None:
    rig.answer_with(OK)
    client = rig.ask(HEAD)
    rig.reply = None
    client.send(HEAD)
    rig.upstream.say(answer)

    assert rig.requests[0].startswith(b"HEAD ")
    first, second = read_answers(client.received, to_head=True)
    assert first.status == 200
    assert first["content-length"] == "11"
    assert "transfer-encoding" not in second
    assert not client.is_closed


def test_our_own_answer_to_head_has_no_body_but_its_length(rig: Rig) -> None:
    client = rig.ask(
        request("HEAD", "/v1/models", key=None), b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    refused, health = read_answers(client.received, to_head=True)

    assert refused.status == 401
    assert int(refused["content-length"]) > 0
    assert health.status == 200
    assert int(health["content-length"]) > 0


# Kept connections to the engine -------------------------------------------------------------------


def test_a_connection_to_the_engine_is_used_again(rig: Rig) -> None:
    rig.answer_with(OK)
    for _ in range(3):
        rig.ask()

    assert len(rig.upstreams) == 1
    assert len(rig.requests) == 3


def test_a_connection_is_not_used_again_behind_a_stream(rig: Rig) -> None:
    rig.ask()
    rig.upstream.say(STREAM_HEAD + event(1) + LAST_CHUNK)
    rig.ask()

    assert len(rig.upstreams) == 2
    assert rig.upstreams[0].is_closed


def test_what_an_idle_connection_says_is_never_the_next_answer(rig: Rig) -> None:
    first = rig.ask()
    rig.upstream.say(OK)
    rig.upstream.say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    second = rig.ask()

    assert rig.upstreams[0].is_closed
    assert len(rig.upstreams) == 2
    assert len(first.answers) == 1
    assert second.received == b""


def test_what_comes_behind_an_answer_is_never_the_next_answer(rig: Rig) -> None:
    client = rig.ask(GET + GET)
    rig.upstream.say(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    assert b"poison" not in client.received
    rig.upstream.say(OK)

    assert len(rig.upstreams) == 2
    assert [a.body for a in client.answers] == [b'{"ok":true}'] * 2


def test_a_kept_connection_that_the_engine_closes_is_forgotten(rig: Rig) -> None:
    rig.ask()
    rig.upstream.say(OK)
    rig.upstream.hang_up()
    rig.ask()

    assert len(rig.upstreams) == 2


def stale(rig: Rig, raw: bytes) -> FakeClient:
    """A client whose request goes out on a kept connection that is dead already."""
    rig.ask(GET)
    rig.upstream.say(OK)
    client = rig.ask(raw)
    assert len(rig.upstreams) == 1
    rig.upstreams[0].hang_up()
    return client


@pytest.mark.parametrize("raw", [GET, HEAD, request("GET", "/v1/models", body=b"with a body")])
def test_a_get_on_a_stale_connection_is_sent_once_more_on_a_new_one(raw: bytes, rig: Rig) -> None:
    client = stale(rig, raw)
    assert client.received == b""
    assert rig.requests[1] == rig.requests[2]
    rig.upstreams[1].say(OK)

    assert client.received.startswith(b"HTTP/1.1 200 OK")
    assert rig.records[-1].outcome == "done"


def test_it_is_sent_once_more_and_not_twice(rig: Rig) -> None:
    client = stale(rig, GET)
    rig.upstreams[1].hang_up()

    assert client.answer.status == 502
    assert len(rig.requests) == 3


def test_a_post_on_a_stale_connection_is_never_sent_again(rig: Rig) -> None:
    client = stale(rig, request(body=b"{}"))

    assert client.answer.status == 502
    assert code_of(client.answer) == "backend_error"
    assert len(rig.requests) == 2
    assert rig.is_at_rest


def test_a_get_whose_answer_had_begun_is_not_sent_again(rig: Rig) -> None:
    rig.ask(GET)
    rig.upstream.say(OK)
    client = rig.ask(GET)
    rig.upstream.say(b"HTTP/1.1 2")
    rig.upstream.hang_up()

    assert client.answer.status == 502
    assert len(rig.requests) == 2


def test_a_get_on_a_new_connection_is_not_sent_again(rig: Rig) -> None:
    client = rig.ask(GET)
    rig.upstream.hang_up()

    assert client.answer.status == 502
    assert len(rig.requests) == 1


# Failures before the head -------------------------------------------------------------------------


def test_an_engine_that_refuses_the_connection_is_502(rig: Rig) -> None:
    rig.accepts = False
    client = rig.ask()
    rig.dials[0].refuse()
    rig.spin()

    assert client.answer.status == 502
    assert code_of(client.answer) == "backend_error"
    assert not client.is_closed
    assert rig.is_at_rest
    assert rig.shared.metrics.backend_failures["connect"] == 1


def test_an_engine_that_does_not_take_the_connection_in_time_is_502(rig: Rig) -> None:
    rig.accepts = False
    client = rig.ask()
    rig.advance(9)
    assert client.received == b""

    rig.advance(2)

    assert client.answer.status == 502
    assert rig.dials[0].was_cancelled
    assert rig.is_at_rest


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
@pytest.mark.parametrize("how", ["hang_up", "reset"])
def test_an_engine_that_goes_before_its_head_is_502(said: bytes, how: str, rig: Rig) -> None:
    client = rig.ask()
    if said:
        rig.upstream.say(said)
    getattr(rig.upstream, how)()

    assert client.answer.status == 502
    assert json.loads(client.answer.body)["error"]["type"] == "server_error"
    assert not client.is_closed
    assert rig.is_at_rest
    assert rig.records[0].outcome == "backend_error"
    assert rig.records[0].status == 502


NONSENSE = {
    "no HTTP": b"!!! this is not HTTP\r\n\r\n",
    "another banner": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"200 OK\r\n\r\n",
    "status 99": b"HTTP/1.1 99 X\r\n\r\n",
    "status 000": b"HTTP/1.1 000 X\r\n\r\n",
    "status 20": b"HTTP/1.1 20 X\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 X\r\n\r\n",
    "status 600": b"HTTP/1.1 600 X\r\n\r\n",
    "status +200": b"HTTP/1.1 +200 X\r\n\r\n",
    "an unasked 101": b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "length and chunked": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
    "a huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked twice": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "a folded field": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "a NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    "a bare CR in a value": b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
    "a bare LF in a value": b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\n\r\n",
    "a bare CR in the reason": b"HTTP/1.1 200 O\rK\r\n\r\n",
    "a bad name": b"HTTP/1.1 200 OK\r\nX(: a\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "a head over 64 KiB": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 66000 + b"\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 66000,
    "a NUL in the reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "ICE": b"ICE/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_in_place_of_an_answer_is_502(answer: bytes, rig: Rig) -> None:
    client = rig.ask()
    upstream = rig.upstream
    upstream.say(answer)

    assert client.answer.status == 502
    assert code_of(client.answer) == "backend_error"
    assert upstream.was_cut
    assert not client.is_closed
    assert rig.is_at_rest


# The head of OK, which the connection has just seen, with another length in it.
OTHER_LENGTHS = [b"", b" ", b"+11", b"-1", b"11, 11", b"0x11", b"1e1", b"11 11", b"9" * 19, b"\xb2"]


@pytest.mark.parametrize("length", OTHER_LENGTHS)
def test_nonsense_is_502_behind_a_good_answer_as_well(length: bytes, rig: Rig) -> None:
    rig.ask()
    rig.upstream.say(OK)
    client = rig.ask()
    rig.upstream.say(OK.replace(b": 11\r\n", b": " + length + b"\r\n"))

    assert client.answer.status == 502
    assert rig.upstream.was_cut
    assert len(rig.upstreams) == 1


@pytest.mark.parametrize("second", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("first", ANSWERS.values(), ids=ANSWERS.keys())
def test_no_answer_depends_on_what_came_before_it_on_its_connection(
    first: Case, second: Case, rig: Rig
) -> None:
    alone = rig.ask(second.raw)
    rig.upstream.say(second.answer)
    rig.shared.pool.retire_idle()
    rig.ask(first.raw)
    rig.upstream.say(first.answer)
    client = rig.ask(second.raw)
    rig.upstream.say(second.answer)

    assert len(rig.upstreams) == (2 if first.keeps_upstream else 3)
    assert without_varying(client.received) == without_varying(alone.received)
    assert client.answer.body == second.body


@pytest.mark.parametrize("raw", [GET, HEAD])
def test_a_head_and_a_get_on_one_connection_are_not_confused(raw: bytes, rig: Rig) -> None:
    other = GET if raw is HEAD else HEAD
    for method in (raw, other, raw, other):
        client = rig.ask(method)
        rig.upstream.say(OK if method is GET else OK.partition(b"{")[0])
        (answer,) = read_answers(client.received, to_head=method is HEAD)
        assert answer["content-length"] == "11"

    assert len(rig.upstreams) == 1
    assert len(rig.records) == 4


@pytest.mark.parametrize("length", [0, 1, 10, 12, 100])
def test_the_same_head_with_another_length_has_another_body(length: int, rig: Rig) -> None:
    body = b"x" * length
    answers = (OK, OK.partition(b"{")[0].replace(b"11", b"%d" % length) + body, OK)
    for answer, expected in zip(answers, (OK_BODY, body, OK_BODY), strict=True):
        client = rig.ask()
        rig.upstream.say(answer)
        assert client.answer.is_whole
        assert client.answer.body == expected

    assert len(rig.upstreams) == 1


def test_a_head_in_pieces_may_not_be_over_64_kib_either(rig: Rig) -> None:
    client = rig.ask()
    upstream = rig.upstream
    upstream.say(b"HTTP/1.1 200 OK\r\n")
    for _ in range(70):
        upstream.say(b"X: " + b"x" * 1000 + b"\r\n")

    assert client.answer.status == 502
    assert upstream.was_cut


def test_thousands_of_interim_answers_in_one_read_do_no_harm(rig: Rig) -> None:
    client = rig.ask()
    rig.upstream.say(b"HTTP/1.1 103 X\r\n\r\n" * 3000 + OK)

    assert client.answer.status == 200


def test_an_engine_that_says_nothing_but_interim_answers_is_504(rig: Rig) -> None:
    client = rig.ask()
    for _ in range(31):
        rig.upstream.say(b"HTTP/1.1 102 Processing\r\n\r\n")
        rig.advance(10)

    assert client.answer.status == 504


def test_a_silent_engine_is_504_and_its_clients_are_told_not_to_retry(rig: Rig) -> None:
    client = rig.ask()
    upstream = rig.upstream
    rig.advance(299)
    assert client.received == b""

    rig.advance(2)

    assert client.answer.status == 504
    assert code_of(client.answer) == "backend_timeout"
    assert client.answer["x-should-retry"] == "false"
    assert upstream.was_cut
    assert not client.is_closed
    assert rig.is_at_rest
    assert rig.shared.metrics.backend_failures["timeout"] == 1
    assert rig.records[0].outcome == "backend_timeout"


def test_half_a_head_does_not_keep_an_engine_from_being_silent(rig: Rig) -> None:
    client = rig.ask()
    rig.upstream.say(b"HTTP/1.1 200 OK\r\n")
    rig.advance(301)

    assert client.answer.status == 504


def test_the_cap_on_a_whole_answer_is_504_before_its_head(new_rig: NewRig) -> None:
    rig = new_rig(max_request_duration=30.0)
    client = rig.ask()
    rig.advance(31)

    assert client.answer.status == 504
    assert rig.upstreams[0].was_cut
    assert rig.is_at_rest


def test_the_cap_holds_while_connecting_too(new_rig: NewRig) -> None:
    rig = new_rig(max_request_duration=5.0)
    rig.accepts = False
    client = rig.ask()
    rig.advance(6)

    assert client.answer.status == 504
    assert rig.dials[0].was_cancelled


def test_the_cap_of_one_request_is_not_the_next_one_s(new_rig: NewRig) -> None:
    rig = new_rig(max_request_duration=30.0)
    client = rig.ask()
    rig.advance(20)
    rig.upstream.say(OK)
    rig.advance(15)
    assert not client.is_closed
    client.send(request(body=b"{}"))
    rig.advance(20)
    assert len(client.answers) == 1
    rig.upstream.say(OK)

    assert [a.status for a in client.answers] == [200, 200]
