"""An engine that fails before the head of its answer is complete."""

from __future__ import annotations

import json
import logging
from collections.abc import Coroutine
from typing import Any, NoReturn

import pytest

from tests.support.fakes import NewRig, Rig
from tests.support.keys import KEY
from tests.support.messages import OK, bytewise, code_of, request

GET = request("GET", "/v1/health")


def test_an_engine_that_refuses_the_connection_is_502_for_what_does_not_wait(rig: Rig) -> None:
    rig.accepts = False
    client = rig.send_request(GET)
    rig.dials[0].refuse()
    rig.spin()

    assert client.response.status == 502
    assert code_of(client.response) == "backend_error"
    assert not client.is_closed
    assert rig.is_at_rest
    assert rig.metrics.backend_failures["connect"] == 1


def test_an_engine_that_does_not_take_the_connection_in_time_is_502(rig: Rig) -> None:
    rig.accepts = False
    client = rig.send_request(GET)
    rig.advance(9)
    assert client.received == b""

    rig.advance(2)

    assert client.response.status == 502
    assert rig.dials[0].was_cancelled
    assert rig.is_at_rest


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_engine_that_goes_before_its_head_is_502(said: bytes, how: str, new_rig: NewRig) -> None:
    rig = new_rig(max_replays=0)
    client = rig.send_request()
    if said:
        rig.upstream.send(said)
    getattr(rig.upstream, how)()

    assert client.response.status == 502
    assert json.loads(client.response.body)["error"]["type"] == "server_error"
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


@pytest.mark.parametrize("response", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_in_place_of_an_answer_is_502(response: bytes, rig: Rig) -> None:
    client = rig.send_request()
    upstream = rig.upstream
    upstream.send(response)

    assert client.response.status == 502
    assert code_of(client.response) == "backend_error"
    assert upstream.was_cut
    assert not client.is_closed
    assert rig.is_at_rest


HOPELESS = {
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare line feeds behind a good line": b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\n",
    "a blank line of one LF": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
    "bare line feeds behind an interim answer": b"HTTP/1.1 100 A\r\n\r\nHTTP/1.1 200 OK\n\n",
    "TLS": b"\x15\x03\x03\x00\x02\x02\x0a",
    "another banner": b"SSH-2.0-OpenSSH_9.9\r\n",
    "another version": b"HTTP/2.0 200",
    "no status": b"HTTP/1.1 OK\r\n",
    "an empty line": b"\r\n",
    "a body": b'{"ok":true}',
}


@pytest.mark.parametrize("response", HOPELESS.values(), ids=HOPELESS.keys())
def test_what_cannot_become_an_answer_is_502_without_waiting_for_its_end(
    response: bytes, rig: Rig
) -> None:
    for pieces in ((response,), bytewise(response)):
        client = rig.send_request()
        upstream = rig.upstream
        upstream.send(*pieces)

        assert client.response.status == 502, pieces
        assert code_of(client.response) == "backend_error"
        assert upstream.was_cut
        assert rig.is_at_rest


def test_a_head_in_pieces_may_not_be_over_64_kib_either(rig: Rig) -> None:
    client = rig.send_request()
    upstream = rig.upstream
    upstream.send(b"HTTP/1.1 200 OK\r\n")
    for _ in range(70):
        upstream.send(b"X: " + b"x" * 1000 + b"\r\n")

    assert client.response.status == 502
    assert upstream.was_cut


def test_thousands_of_interim_answers_in_one_read_do_no_harm(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(b"HTTP/1.1 103 X\r\n\r\n" * 3000 + OK)

    assert client.response.status == 200


def test_an_engine_that_says_nothing_but_interim_answers_is_504(rig: Rig) -> None:
    client = rig.send_request()
    for _ in range(31):
        rig.upstream.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        rig.advance(10)

    assert client.response.status == 504


def test_a_silent_engine_is_504_and_its_clients_are_told_not_to_retry(rig: Rig) -> None:
    client = rig.send_request()
    upstream = rig.upstream
    rig.advance(299)
    assert client.received == b""

    rig.advance(2)

    assert client.response.status == 504
    assert code_of(client.response) == "backend_timeout"
    assert client.response["x-should-retry"] == "false"
    assert upstream.was_half_closed
    assert not client.is_closed
    upstream.close()
    assert rig.is_at_rest
    assert rig.metrics.backend_failures["timeout"] == 1
    assert rig.records[0].outcome == "backend_timeout"


def test_half_a_head_does_not_keep_an_engine_from_being_silent(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(b"HTTP/1.1 200 OK\r\n")
    rig.advance(301)

    assert client.response.status == 504


def test_the_cap_on_a_whole_answer_is_504_before_its_head(new_rig: NewRig) -> None:
    rig = new_rig(max_request_duration=30.0)
    client = rig.send_request()
    rig.advance(31)

    assert client.response.status == 504
    assert rig.upstreams[0].was_half_closed
    rig.upstreams[0].close()
    assert rig.is_at_rest


def test_the_cap_holds_while_connecting_too(new_rig: NewRig) -> None:
    rig = new_rig(max_request_duration=5.0)
    rig.accepts = False
    client = rig.send_request()
    rig.advance(6)

    assert client.response.status == 504
    assert rig.dials[0].was_cancelled


def test_the_cap_of_one_request_is_not_the_next_one_s(new_rig: NewRig) -> None:
    rig = new_rig(max_request_duration=30.0)
    client = rig.send_request()
    rig.advance(20)
    rig.upstream.send(OK)
    rig.advance(15)
    assert not client.is_closed
    client.send(request(body=b"{}"))
    rig.advance(20)
    assert len(client.responses) == 1
    rig.upstream.send(OK)

    assert [a.status for a in client.responses] == [200, 200]


def test_a_bug_of_ours_cuts_its_request_names_it_and_takes_nobody_else_down(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(coroutine: Coroutine[Any, Any, object], **_: str) -> NoReturn:
        coroutine.close()
        raise ZeroDivisionError

    other = rig.send_request()
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(rig.loop, "create_task", break_down)
        client = rig.send_request(request("POST", "/reload", "x-request-id: named-by-me"))

    assert client.was_cut
    assert "Request named-by-me was cut because of a bug; please report it" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert KEY not in caplog.text
    rig.upstream.send(OK)
    assert other.response.status == 200
    assert rig.is_at_rest
