"""Requests that are sent ahead, by clients that take their responses, late, or never."""

from __future__ import annotations

import pytest

from llama_gguf.engines.status import ChildState
from llama_gguf.gateway.client_connection import MAX_HELD_BYTES
from llama_gguf.net.transport import HIGH_WATER_BYTES, READ_BYTES
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import KEY
from tests.support.messages import OK, request

HEALTH = request("GET", "/health", key=None)
ENDING_AT_ONCE = {
    "health": HEALTH,
    "a page": request("GET", "/dashboard", key=None),
    "a preflight": request("OPTIONS", "/v1/health", "Origin: https://a.example", key=None),
    "401": request(body=b"{}", key="sk-wrong-0123456789ab"),
    "403": request("GET", "/slots"),
    "429": request(body=b"{}"),
    "503": request(body=b"{}"),
    "usage": request("GET", "/usage"),
}
"""Requests that are answered in the call in which they are read."""
SETTINGS: dict[str, dict[str, object]] = {
    "429": {"max_requests_per_minute": 1},
    "503": {"state": ChildState.FAILED},
    "401": {"auth_failures_per_minute": 0},
}


def stalled(rig: Rig) -> FakeClient:
    client = rig.client()
    client.stall()
    return client


def flood(client: FakeClient, raw: bytes, total: int) -> None:
    """Send *raw* over and over, as a socket delivers it: in reads of some size."""
    stream = raw * (total // len(raw))
    client.send(*(stream[i : i + READ_BYTES] for i in range(0, len(stream), READ_BYTES)))


@pytest.mark.parametrize("name", ENDING_AT_ONCE)
def test_a_client_that_reads_nothing_gets_no_more_than_the_high_water_mark(
    name: str, new_rig: NewRig
) -> None:
    rig = new_rig(**SETTINGS.get(name, {}))
    rig.respond = lambda _: OK
    client = stalled(rig)

    flood(client, ENDING_AT_ONCE[name], 4_000_000)

    largest = max(len(written) for written in client.transport.writes)
    assert HIGH_WATER_BYTES < client.transport.unsent <= HIGH_WATER_BYTES + largest
    assert not client.transport.is_reading()
    assert len(client.connection._received) <= MAX_HELD_BYTES + READ_BYTES


@pytest.mark.slow
def test_every_request_sent_ahead_is_answered_once_the_client_reads(rig: Rig) -> None:
    client = stalled(rig)
    flood(client, HEALTH, 300_000)
    while client.transport.unsent:
        client.resume_reading()
        client.stall()

    client.resume_reading()

    assert {response.status for response in client.responses} == {200}
    assert len(client.responses) == 300_000 // len(HEALTH)
    assert client.transport.is_reading()


def test_reading_stays_paused_until_what_is_held_has_been_used(rig: Rig) -> None:
    client = rig.client()
    first = request(body=b"1")
    client.send(first, *[HEALTH * (READ_BYTES // len(HEALTH))] * 2)
    assert not client.transport.is_reading()
    held = [len(client.connection._received)]
    client.transport.on_write = lambda _: held.append(
        0 if client.transport.is_reading() else len(client.connection._received)
    )

    rig.upstream.send(OK)

    assert len(client.responses) == 1 + 2 * (READ_BYTES // len(HEALTH))
    assert 0 not in held[:-1]
    assert client.transport.is_reading()


def test_what_is_sent_ahead_has_one_turn_at_a_time(rig: Rig) -> None:
    client = rig.client()
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        if len(client.transport.writes) < 40:
            rig.loop.call_soon(count)

    rig.loop.call_soon(count)

    def receive_more(_: bytes) -> None:
        rig.loop.call_soon(client.transport.receive, b"")

    client.transport.on_write = receive_more
    client.send(HEALTH * 40)

    assert len(client.responses) == 40
    assert turns >= 40


def test_a_client_that_takes_nothing_of_our_responses_is_reset(new_rig: NewRig) -> None:
    rig = new_rig(keepalive_timeout=20)
    client = stalled(rig)
    flood(client, HEALTH, 1_000_000)

    rig.advance(19)
    assert not client.is_closed
    rig.advance(2)

    assert client.was_cut
    assert not rig.services.connections
    assert rig.is_at_rest


def test_a_client_that_takes_its_responses_slowly_is_not_reset(new_rig: NewRig) -> None:
    rig = new_rig(keepalive_timeout=20)
    client = stalled(rig)
    flood(client, HEALTH, 1_000_000)

    for _ in range(10):
        client.transport.unsent -= 1000
        rig.advance(15)

    assert not client.is_closed


def test_a_client_that_takes_nothing_of_the_engine_s_response_is_reset(new_rig: NewRig) -> None:
    rig = new_rig(request_timeout=20, keepalive_timeout=20)
    client = stalled(rig)
    client.send(request(body=b"{}"))
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"x" * 200_000)

    rig.advance(41)

    assert client.was_cut
    assert rig.is_at_rest


def test_what_comes_from_a_client_that_is_refused_is_read_over_though_reading_was_paused(
    rig: Rig,
) -> None:
    client = rig.client()
    client.send(request(body=b"1"), b"G" * (MAX_HELD_BYTES + 1))
    assert not client.transport.is_reading()

    rig.upstream.send(OK)

    assert [response.status for response in client.responses] == [200, 414]
    assert client.transport.has_written_eof
    assert client.transport.is_reading()  # unread bytes would turn the close into a reset


def test_a_key_is_not_charged_for_what_is_not_begun(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1000)
    client = stalled(rig)
    rig.respond = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000
    client.send(request(body=b"{}") * 100)

    assert len(rig.requests) < 10
    principal = rig.services.authenticator.holder(KEY.encode())
    assert principal is not None
    assert principal.limiter is not None
    assert principal.limiter.remaining(rig.clock.now) == 1000 - len(rig.requests)
