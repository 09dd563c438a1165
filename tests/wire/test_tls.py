"""HTTPS over real sockets; ``test_streaming`` runs over TLS too."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.support.certificates import Pair, issue, names_in, trusting
from tests.support.clients import connected
from tests.support.engines import ScriptedEngine
from tests.support.gateways import GatewayProcess
from tests.support.keys import KEY
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, event, request
from tests.support.processes import DEADLINE_SECONDS, until
from tests.wire.conftest import NewGateway

PING = request("GET", "/ping", key=None)
STREAM = request(body=b'{"stream":true}')


@pytest.fixture
def gateway(new_tls_gateway: NewGateway) -> GatewayProcess:
    return new_tls_gateway()


def names_shown_by(gateway: GatewayProcess) -> set[str]:
    with gateway.connect() as wire:
        assert isinstance(wire.sock, ssl.SSLSocket)
        return names_in(wire.sock.getpeercert())


# Requests -----------------------------------------------------------------------------------------


def test_a_request_and_its_response_arrive_completely(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    body = bytes(range(256)) * 10_000
    with gateway.connect() as wire:
        wire.send(request(body=body))
        visit = engine.visit()
        assert visit.body == body
        visit.send(OK.replace(b"11", b"%d" % len(body)).replace(b'{"ok":true}', body))

        assert wire.response().body == body
        wire.send(PING)
        assert wire.response().status == 200, "the connection is kept"
    assert f"The gateway listens on https://127.0.0.1:{gateway.port}\n" in gateway.log


def plain_client(gateway: GatewayProcess) -> http.client.HTTPSConnection:
    """A client that has sent a request, and relies on a response's framing alone.

    It ignores whether the connection ended with a close_notify.
    """
    trust = trusting()
    trust.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    client = http.client.HTTPSConnection(
        "127.0.0.1", gateway.port, timeout=DEADLINE_SECONDS, context=trust
    )
    client.request("POST", "/v1/completions", b"{}", {"Authorization": f"Bearer {KEY}"})
    return client


@pytest.mark.parametrize(
    "half",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf",
        STREAM_HEAD + event(1),
        STREAM_HEAD + event(1)[:-4],
    ],
    ids=["length", "between-chunks", "in-a-chunk", "between-events", "in-an-event"],
)
@pytest.mark.parametrize("how", ["finish", "reset"])
def test_a_cut_response_is_an_error_for_every_client(
    half: bytes, how: str, gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with closing(plain_client(gateway)) as client:
        visit = engine.visit()
        visit.send(half)
        response = client.getresponse()
        getattr(visit, how)()
        # Which of the two depends on the version of Python.
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            response.read()


def test_a_cut_response_that_would_end_with_its_connection_is_an_error(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with closing(plain_client(gateway)) as client:
        visit = engine.visit()
        visit.send(b"HTTP/1.1 200 OK\r\n\r\nuntil ")
        response = client.getresponse()
        visit.reset()
        with pytest.raises((http.client.IncompleteRead, OSError)):
            response.read()


def test_a_rejection_during_the_body_ends_with_a_close_notify(gateway: GatewayProcess) -> None:
    with gateway.connect() as wire:
        wire.send(request(body=b"x" * (4 << 20), key=None)[: 1 << 20])
        assert wire.response().status == 401
        assert wire.read_rest() == b""


# The certificate ----------------------------------------------------------------------------------


def test_sighup_changes_the_certificate_without_cutting_connections(
    new_tls_gateway: NewGateway, engine: ScriptedEngine, tmp_path: Path
) -> None:
    gateway = new_tls_gateway(**issue("old.example").write(tmp_path))
    with gateway.connect() as wire:
        wire.send(STREAM)
        visit = engine.visit()
        visit.send(STREAM_HEAD + event(1))
        wire.read_until(event(1))
        issue("new.example").write(tmp_path)
        assert names_shown_by(gateway) == {"old.example"}
        gateway.signal(signal.SIGHUP)
        until(lambda: names_shown_by(gateway) == {"new.example"})

        visit.finish(event(2) + LAST_CHUNK)
        wire.read_until(event(2) + LAST_CHUNK)
        wire.send(PING)
        assert wire.response().status == 200


def test_an_invalid_certificate_is_logged_and_the_old_one_stays(
    new_tls_gateway: NewGateway, tmp_path: Path
) -> None:
    gateway = new_tls_gateway(**issue("old.example").write(tmp_path))
    new = issue("new.example")
    Pair(new.chain, new.key[:60]).write(tmp_path)
    gateway.signal(signal.SIGHUP)
    until(lambda: "The TLS certificate was not reloaded: TLS_KEY_FILE=" in gateway.log)

    assert names_shown_by(gateway) == {"old.example"}
    new.write(tmp_path)
    gateway.signal(signal.SIGHUP)
    until(lambda: names_shown_by(gateway) == {"new.example"})
    assert "Traceback" not in gateway.log


def test_a_disk_that_hangs_during_the_reload_does_not_delay_requests(
    new_tls_gateway: NewGateway, tmp_path: Path
) -> None:
    gateway = new_tls_gateway(**issue("old.example").write(tmp_path))
    (tmp_path / "cert.pem").unlink()
    os.mkfifo(tmp_path / "cert.pem")  # opening it blocks until it is opened for writing
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.log.count("API keys loaded") == 2)

    assert gateway.send_request(PING).status == 200
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0


def test_session_keys_are_not_written_to_a_file(
    new_tls_gateway: NewGateway, tmp_path: Path
) -> None:
    gateway = new_tls_gateway(SSLKEYLOGFILE=tmp_path / "session-keys")

    assert gateway.send_request(PING).status == 200
    assert not (tmp_path / "session-keys").exists()


# Clients that do not speak it ---------------------------------------------------------------------


def test_a_failed_handshake_does_not_affect_other_clients(gateway: GatewayProcess) -> None:
    address = ("127.0.0.1", gateway.port)
    logged = gateway.log
    distrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for sent in (PING, b"\x16\x03\x01\xff\xff" + bytes(70000), b"\x16\x03", b""):
        with connected(address) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            read_to_the_end(sock)
    with connected(address) as sock, pytest.raises(ssl.SSLCertVerificationError):
        distrusting.wrap_socket(sock, server_hostname="127.0.0.1")

    assert gateway.send_request(PING).status == 200
    assert gateway.log == logged


def read_to_the_end(sock: socket.socket) -> None:
    with suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass


def test_a_client_that_does_not_begin_the_handshake_is_disconnected(
    new_tls_gateway: NewGateway,
) -> None:
    gateway = new_tls_gateway(CLIENT_HEADER_TIMEOUT=0.5)
    logged = gateway.log
    with connected(("127.0.0.1", gateway.port)) as sock:
        assert sock.recv(1) == b""
    assert gateway.log == logged


# The end ------------------------------------------------------------------------------------------


def test_a_drain_closes_idle_connections_and_lets_streams_end(
    gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    with gateway.connect() as idle, gateway.connect() as streaming:
        idle.send(PING)
        idle.response()
        streaming.send(STREAM)
        visit = engine.visit()
        visit.send(STREAM_HEAD + event(1))
        streaming.read_until(event(1))
        gateway.signal(signal.SIGTERM)
        assert idle.read_rest() == b"", "and by TLS's own rules, or that would raise"

        visit.finish(event(2) + LAST_CHUNK)
        assert streaming.read_rest() == event(2) + LAST_CHUNK
    assert gateway.wait() == 0
    assert "Traceback" not in gateway.log


def test_a_stream_that_outlasts_the_drain_is_cut(
    new_tls_gateway: NewGateway, engine: ScriptedEngine
) -> None:
    gateway = new_tls_gateway(DRAIN_TIMEOUT=0.2)
    with gateway.connect() as wire:
        wire.send(STREAM)
        visit = engine.visit()
        visit.send(STREAM_HEAD + event(1))
        wire.read_until(event(1))
        gateway.signal(signal.SIGTERM)

        assert wire.was_reset()
        assert gateway.wait() == 0
    visit.wait_until_cut()
    assert "outcome=client_left:" in (gateway.folder / "logs" / "api_access.log").read_text()
