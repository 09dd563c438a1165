"""Streams over real sockets: without delay, in bounded memory, and cut when the client leaves.

All tests run without TLS and with it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import pytest

from tests.support.clients import Wire
from tests.support.engines import ScriptedEngine
from tests.support.gateways import GatewayProcess
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, chunk, event, request
from tests.support.processes import until
from tests.wire.conftest import NewGateway

STREAM = request(body=b'{"stream":true}')


@pytest.fixture(params=["new_gateway", "new_tls_gateway"], ids=["http", "https"])
def any_gateway(request: pytest.FixtureRequest) -> NewGateway:
    starts: NewGateway = request.getfixturevalue(request.param)
    return starts


@pytest.fixture
def gateway(any_gateway: NewGateway) -> GatewayProcess:
    return any_gateway()


def test_events_arrive_one_by_one_while_the_stream_runs(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as wire:
        wire.send(STREAM)
        visit = engine.visit()
        visit.send(STREAM_HEAD)
        assert b"200 OK" in wire.read_until(b"\r\n\r\n")
        for n in range(5):
            visit.send(event(n))
            assert wire.read_until(event(n)) == event(n)
        visit.finish(LAST_CHUNK)
        assert wire.read_until(LAST_CHUNK) == LAST_CHUNK

        wire.send(request("GET", "/ping", key=None))
        assert wire.response().status == 200, "the client's connection is kept"


def test_a_slow_reader_pauses_the_engine_and_memory_stays_bounded(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    piece = chunk(b"data: " + b"x" * 65000 + b"\n\n")
    total = 64 << 20
    with gateway.connect() as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        wire.send(STREAM)
        visit = engine.visit()
        visit.send(STREAM_HEAD)
        wire.read_until(b"\r\n\r\n")
        before = gateway.resident_bytes

        visit.sock.setblocking(False)
        sent = 0
        # Not writable for a while means that the gateway does not read: a machine that is too slow
        # makes this pass for the wrong reason, and never fail.
        while sent < total and select.select([], [visit.sock], [], 0.5)[1]:
            sent += visit.sock.send((piece * 2)[sent % len(piece) :][: len(piece)])
        assert sent < total, "the engine was never held up"
        assert gateway.resident_bytes - before < 16 << 20

        visit.sock.settimeout(15)
        got = 0
        visit.sock.setblocking(False)
        whole = -(-sent // len(piece)) * len(piece)
        while got < whole:
            if sent < whole and select.select([], [visit.sock], [], 0)[1]:
                sent += visit.sock.send(
                    (piece * 2)[sent % len(piece) :][: min(whole - sent, 65000)]
                )
            wire.buffer = b""
            assert wire.receive()
            got += len(wire.buffer)
        assert got == whole


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset, Wire.close_half])
@pytest.mark.parametrize("sent", [b"", STREAM_HEAD, STREAM_HEAD + event(1)])
def test_the_request_of_a_client_that_leaves_is_cancelled_at_the_engine(
    leave: Callable[[Wire], None], sent: bytes, gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    wire = gateway.connect()
    wire.send(STREAM)
    visit = engine.visit()
    if sent:
        visit.send(sent)
        wire.read_until(sent.partition(b"\r\n\r\n")[2] or b"\r\n\r\n")
    leave(wire)

    visit.wait_until_cut()
    until(lambda: gateway.health()["slots"]["used"] == 0)


def test_a_request_whose_client_leaves_during_its_body_never_reaches_the_engine(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as wire:
        wire.send(STREAM[:-3])
        wire.close()
    text = request("GET", "/metrics?format=prometheus", key=None)
    left = b'llama_gguf_client_disconnects_total{phase="request"} 1.0'
    until(lambda: left in gateway.send_request(text).body)

    assert not engine.has_visit


def test_the_end_of_a_client_that_pipelined_many_requests_is_noticed(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    wire = gateway.connect()
    wire.send(STREAM)
    visit = engine.visit()
    # More than the gateway holds, so that it pauses reading, and less than also fills the
    # kernel's buffer: if that were full, the end of the connection could not arrive at all.
    ping = request("GET", "/ping", key=None)
    wire.send(ping * (100_000 // len(ping)))
    wire.close()

    visit.wait_until_cut()


@pytest.mark.parametrize("how", ["finish", "reset"])
def test_a_stream_that_the_engine_cuts_never_looks_complete(
    how: str, gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as wire:
        wire.send(STREAM)
        visit = engine.visit()
        visit.send(STREAM_HEAD + event(1))
        wire.read_until(event(1))
        getattr(visit, how)()
        rest = wire.read_rest()

    assert b'"code": "backend_error"' in rest
    assert not rest.endswith(LAST_CHUNK)


def test_a_cut_response_with_a_length_stays_short(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as wire:
        wire.send(STREAM)
        visit = engine.visit()
        visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        wire.read_until(b"half")
        visit.finish()
        wire.was_reset()

        assert wire.buffer == b"", "nothing is added to it"


@pytest.mark.parametrize(
    ("raw", "sent"),
    [
        (STREAM, b"HTTP/1.1 200 OK\r\n\r\nuntil "),
        (request(body=b"{}", version="1.0"), b"HTTP/1.1 200 OK\r\n\r\nuntil "),
        (request(body=b"{}", version="1.0"), STREAM_HEAD + chunk(b"until ")),
    ],
)
def test_a_cut_is_a_reset_for_a_response_that_ends_with_its_connection(
    raw: bytes, sent: bytes, gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as wire:
        wire.send(raw)
        visit = engine.visit()
        visit.send(sent)
        wire.read_until(b"until ")
        visit.reset()

        assert wire.was_reset()


def test_a_client_that_did_not_read_in_time_can_see_that_its_response_is_incomplete(
    any_gateway: NewGateway, engine: ScriptedEngine
) -> None:
    # Unread bytes are dropped, and a FIN after that would be a clean end for HTTP/1.0.
    gateway = any_gateway(REQUEST_TIMEOUT=1)
    with gateway.connect() as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        wire.send(request(body=b"{}", version="1.0"))
        visit = engine.visit()
        visit.send(STREAM_HEAD)
        visit.send_until_cut(chunk(b"x" * 65536))

        assert wire.was_reset()


def test_a_401_can_be_read_after_sending_all_of_a_large_body(
    gateway: GatewayProcess,
) -> None:
    with gateway.connect() as wire:
        wire.send(request(body=b"x" * (4 << 20), key=None))
        response = wire.response()

    assert response.status == 401
    assert response["connection"] == "close"


def test_a_body_of_megabytes_arrives_completely(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    body = bytes(range(256)) * 20_000
    with gateway.connect() as wire:
        wire.send(request(body=body))
        visit = engine.visit()
        assert visit.body == body
        visit.send(OK)

        assert wire.response().status == 200
