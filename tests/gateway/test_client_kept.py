"""Connections to the engine that serve one request after the other, or are found dead."""

from __future__ import annotations

import pytest

from tests.fakes import (
    LAST_CHUNK,
    OK,
    STREAM_HEAD,
    FakeClient,
    Rig,
    code_of,
    event,
    read_answers,
    request,
    without_varying,
)
from tests.gateway.test_client_answers import ANSWERS, GET, HEAD, OK_BODY, Case


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


@pytest.mark.parametrize("first", ANSWERS.values(), ids=ANSWERS.keys())
def test_no_answer_depends_on_what_came_before_it_on_its_connection(first: Case, rig: Rig) -> None:
    def answered(case: Case) -> bytes:
        client = rig.ask(case.raw)
        rig.upstream.say(case.answer)
        return without_varying(client.received)

    for second in ANSWERS.values():
        alone = answered(second)
        rig.shared.pool.retire_idle()
        answered(first)
        connections = len(rig.upstreams)

        assert answered(second) == alone
        assert len(rig.upstreams) == connections + (not first.keeps_upstream)
        rig.shared.pool.retire_idle()


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
