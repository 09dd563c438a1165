"""The engine's answers: what the client gets of them, byte for byte, and what it is spared."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.support.fakes import FakeClient, Rig
from tests.support.messages import (
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    chunk,
    event,
    read_responses,
    request,
    splits,
    without_varying,
)

GET = request("GET", "/v1/health")
HEAD = request("HEAD", "/v1/health")


def lines(client: FakeClient) -> list[str]:
    """The first line and the fields of the answer, without its date."""
    head = client.received.partition(b"\r\n\r\n")[0].decode("latin-1")
    return [line for line in head.split("\r\n") if not line.startswith("Date: ")]


def test_an_answer_passes_with_its_fields_and_its_body(rig: Rig) -> None:
    client = rig.send_request(request("GET", "/v1/health", "x-request-id: r1"))
    rig.upstream.send(
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
        "x-ratelimit-limit-requests: 1000",
        "x-ratelimit-remaining-requests: 1000",
        "x-ratelimit-reset-requests: 0ms",
    ]
    assert client.response.body == b"\x00\r\n\xff"
    assert client.response["date"].endswith(" GMT")


def test_fields_of_the_engine_s_connection_and_those_that_are_ours_end_here(rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.send(
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5, max=100\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Stays: 2\r\nx-request-id: theirs\r\n"
        b"Access-Control-Allow-Origin: http://evil.example\r\nTrailer: a\r\nUpgrade: h2c\r\n"
        b"Access-Control-Allow-Credentials: true\r\nProxy-Authenticate: x\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n"
    )

    names = sorted(n.lower() for n, _ in client.response.fields)
    ours = [n for n in names if n.startswith("x-ratelimit-")]
    assert names == ["content-length", "date", *ours, "x-request-id", "x-stays"]
    assert client.response["date"] == "Thu, 01 Jan 2026 00:00:00 GMT"
    assert client.response["x-request-id"] != "theirs"


def test_the_engine_s_own_errors_pass_untouched(rig: Rig) -> None:
    body = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'
    client = rig.send_request()
    rig.upstream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    assert client.response.status == 400
    assert client.response.body == body
    assert not client.is_closed


OVERFLOW = (
    b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error",'
    b'"n_prompt_tokens":9,"n_ctx":8}}'
)
NOT_JSON = b'{"error":{"code":500,"message":"[json.exception.parse_error.101] x"}}'


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("at", [0, 1, len(OVERFLOW) - 1])
def test_a_prompt_that_is_too_long_is_refused_in_the_words_of_the_dialect(
    connection: str, at: int, rig: Rig
) -> None:
    client = rig.send_request(request("POST", "/v1/messages", body=b"{}"))
    fields = b"Connection: %b\r\nContent-Length: %d\r\n\r\n" % (
        connection.encode(),
        len(OVERFLOW),
    )
    rig.upstream.send(b"HTTP/1.1 400 Bad Request\r\n" + fields + OVERFLOW[:at])
    assert client.received == b""
    rig.upstream.send(OVERFLOW[at:])

    assert client.response.status == 400
    assert "prompt is too long: 9 tokens > 8 maximum" in client.response.json["error"]["message"]
    assert not client.is_closed
    assert rig.upstream.is_closed is (connection == "close")
    assert rig.is_at_rest


def test_json_that_the_engine_cannot_parse_gets_400_whichever_build_it_is(rig: Rig) -> None:
    client = rig.send_request()
    head = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: x/y\r\nContent-Length: %d\r\n\r\n"
    rig.upstream.send(head % len(NOT_JSON) + NOT_JSON)

    assert client.received.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: x/y\r\n")
    assert client.response.json["error"]["code"] == 400
    (record,) = rig.records
    assert (record.status, record.bytes_out) == (400, len(client.received))


def test_an_engine_that_dies_within_a_short_error_has_not_responded(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\n{")
    rig.upstream.close()
    rig.spin()
    rig.upstream.send(OK)

    assert client.response.status == 200


class Case(NamedTuple):
    response: bytes
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
    ),
    "chunks with extensions and trailers": Case(
        STREAM_HEAD + b'3;a="b"\r\nabc\r\n0;x\r\nX-Sum: 1\r\n\r\n', b"abc"
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
        OK, OK_BODY, keeps_client=False, raw=request("GET", "/v1/health", version="1.0")
    ),
    "chunks, to HTTP/1.0": Case(
        STREAM_HEAD + event(1) + chunk(b"abc") + LAST_CHUNK,
        b'data: {"n":1}\n\nabc',
        keeps_client=False,
        raw=request("GET", "/v1/health", version="1.0"),
    ),
}


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_the_same_wherever_the_network_cuts_it(case: Case, rig: Rig) -> None:
    whole = b""
    for pieces in ((case.response,), *splits(case.response)):
        client = rig.send_request(case.raw)
        upstream = rig.upstream
        upstream.send(*pieces)
        whole = whole or without_varying(client.received)

        assert without_varying(client.received) == whole
        assert client.response.is_whole
        assert client.response.body == case.body
        assert upstream.is_closed is not case.keeps_upstream
        assert client.is_closed is not case.keeps_client
        assert not client.was_cut
        assert rig.is_at_rest
        assert rig.records[-1].outcome == "done"
        client.disconnect()
        rig.replica.pool.retire_idle()


@pytest.mark.parametrize("space", [" ", "\t", " \t "])
def test_the_engine_s_framing_may_have_space_around_it(space: str, rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.send(
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding:{space}chunked{space}\r\n\r\n".encode()
        + event(1)
        + LAST_CHUNK
    )
    other = rig.send_request(GET)
    rig.upstream.send(f"HTTP/1.1 200 OK\r\nContent-Length:{space}2{space}\r\n\r\nab".encode())

    assert client.response.is_whole
    assert client.response["transfer-encoding"] == "chunked"
    assert other.response.body == b"ab"
    assert other.response["content-length"] == "2"


def test_the_boundaries_of_chunks_are_kept(rig: Rig) -> None:
    body = chunk(b"a") + chunk(b"bc" * 500) + b'001;x="y"\r\nd\r\n' + LAST_CHUNK
    client = rig.send_request(GET)
    rig.upstream.send(STREAM_HEAD + body)

    assert client.received.endswith(b"\r\n\r\n" + body)
    assert client.response.chunks == (b"a", b"bc" * 500, b"d")


def test_each_piece_of_an_answer_leaves_when_it_comes(rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.send(STREAM_HEAD)
    assert client.received.endswith(b"\r\n\r\n")
    for n in range(3):
        rig.upstream.send(event(n))
        assert client.transport.writes[-1] == event(n)


def test_half_a_chunk_leaves_when_it_comes_too(rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.send(STREAM_HEAD, event(1)[:9])
    assert client.received.endswith(event(1)[:9])

    rig.upstream.send(event(1)[9:] + LAST_CHUNK)
    assert client.response.is_whole


def test_an_answer_that_ends_with_its_connection_goes_out_chunked(rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil ", b"the end")
    so_far = client.response
    assert not so_far.is_whole
    rig.upstream.close()

    response = client.response
    assert response.is_whole
    assert response.body == b"until the end"
    assert "connection" not in response
    assert not client.is_closed
    assert rig.is_at_rest


def test_to_a_client_of_http_1_0_it_ends_with_the_client_s_connection(rig: Rig) -> None:
    client = rig.send_request(request("GET", "/v1/health", version="1.0"))
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil ", b"the end")
    assert not client.is_closed
    rig.upstream.close()

    assert client.response.body == b"until the end"
    assert client.response["connection"] == "close"
    assert client.transport.is_closed
    assert not client.was_cut


def test_an_answer_that_ends_with_its_connection_is_cut_when_that_is_reset(rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.send(b"HTTP/1.1 200 OK\r\n\r\nuntil ")
    rig.upstream.reset()

    assert client.was_cut
    assert rig.records[0].outcome == "backend_error"


@pytest.mark.parametrize(
    "response",
    [
        OK.partition(b"{")[0],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\nConnection: close\r\n\r\n",
    ],
)
def test_an_answer_to_head_has_no_body(response: bytes, rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.send_request(HEAD)
    rig.respond = None
    client.send(HEAD)
    rig.upstream.send(response)

    assert rig.requests[0].startswith(b"HEAD ")
    first, second = read_responses(client.received, is_head_request=True)
    assert first.status == 200
    assert first["content-length"] == "11"
    assert "transfer-encoding" not in second
    assert not client.is_closed


def test_our_own_answer_to_head_has_no_body_but_its_length(rig: Rig) -> None:
    client = rig.send_request(
        request("HEAD", "/v1/health", key=None), b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    refused, health = read_responses(client.received, is_head_request=True)

    assert refused.status == 401
    assert int(refused["content-length"]) > 0
    assert health.status == 200
    assert int(health["content-length"]) > 0
