from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from llama_gguf.supervisor.health_server import (
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    HealthServer,
    response_to,
)
from tests.support.messages import Response, read_responses

GET = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"


class Health:
    """A running health server, and the status that it shows."""

    def __init__(self) -> None:
        self.status = 200
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listener.setblocking(False)
        self.address: tuple[str, int] = listener.getsockname()
        self.server = HealthServer(listener, lambda: self.status)
        self.server.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def send_request(self, raw: bytes = GET, *, is_head_request: bool = False) -> Response:
        with self.connect() as sock:
            sock.sendall(raw)
            (found,) = read_responses(everything(sock), is_head_request=is_head_request)
            return found


def everything(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.fixture
def health() -> Iterator[Health]:
    health = Health()
    yield health
    health.server.stop()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"ok\n"), (204, b""), (503, b"service unavailable\n")]
)
def test_the_status_of_a_response_is_the_one_provided(
    status: int, body: bytes, health: Health
) -> None:
    health.status = status
    found = health.send_request()

    assert (found.status, found.body) == (status, body)
    assert found["connection"] == "close"
    assert found.is_whole


def test_a_changed_status_is_effective_at_once(health: Health) -> None:
    for status in (204, 200, 503, 200):
        health.status = status
        assert health.send_request().status == status


@pytest.mark.parametrize("path", ["/", "/ping", "/health", "/any/thing?x=y", "//..//"])
def test_any_path_is_accepted(path: str, health: Health) -> None:
    assert health.send_request(GET.replace(b"/ping", path.encode())).status == 200


@pytest.mark.parametrize("status", [200, 204, 503])
def test_a_response_to_head_has_no_body(status: int, health: Health) -> None:
    health.status = status
    found = health.send_request(GET.replace(b"GET", b"HEAD"), is_head_request=True)

    assert found.status == status
    assert found.body == b""
    assert ("content-length" in found) is (status != 204)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_405(method: str, health: Health) -> None:
    found = health.send_request(GET.replace(b"GET", method.encode()))

    assert found.status == 405
    assert found["allow"] == "GET, HEAD"


@pytest.mark.parametrize("raw", [b"get / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"\r\n\r\n"])
def test_a_malformed_request_is_400(raw: bytes, health: Health) -> None:
    assert health.send_request(raw).status == 400


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00\x01", b"\x05\x01\x00", b"\0"])
def test_bytes_that_start_no_request_are_400_without_waiting_for_their_end(
    raw: bytes, health: Health
) -> None:
    with health.connect() as sock:
        sock.sendall(raw)

        assert read_responses(everything(sock))[0].status == 400


def test_a_request_in_pieces_is_a_request(health: Health) -> None:
    with health.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(GET)):
            sock.sendall(GET[i : i + 1])

        assert read_responses(everything(sock))[0].status == 200


def test_bare_line_feeds_are_accepted(health: Health) -> None:
    assert health.send_request(b"GET / HTTP/1.0\n\n").status == 200


def test_a_peer_that_sends_nothing_delays_no_other(health: Health) -> None:
    with health.connect(), health.connect() as half:
        half.sendall(GET[:-1])
        for _ in range(5):
            assert health.send_request().status == 200


def test_a_peer_that_reads_nothing_delays_no_other(health: Health) -> None:
    with health.connect() as sock:
        sock.sendall(GET)
        for _ in range(5):
            assert health.send_request().status == 200


def test_a_head_without_end_is_cut(health: Health) -> None:
    with health.connect() as sock:
        sock.sendall(b"x" * (MAX_HEAD_BYTES + 1))

        assert sock.recv(1) == b""


def test_the_maximum_of_concurrent_connections_is_served(health: Health) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(health.connect()) for _ in range(100)]
        for sock in socks:
            sock.sendall(GET)
        for sock in socks:
            assert read_responses(everything(sock))[0].status == 200


def test_connections_above_the_maximum_are_cut_and_it_recovers(health: Health) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(health.connect()) for _ in range(MAX_CONNECTIONS)]
        with health.connect() as one_more:
            assert one_more.recv(1) == b""
        for sock in socks:
            sock.sendall(GET)
            assert read_responses(everything(sock))[0].status == 200

    assert health.send_request().status == 200


def test_after_stopping_nothing_listens() -> None:
    health = Health()
    health.server.stop()

    with pytest.raises(ConnectionRefusedError):
        health.connect()


def test_stopping_closes_open_connections() -> None:
    health = Health()
    with health.connect() as sock:
        assert health.send_request().status == 200  # so that the other connection has been accepted
        health.server.stop()

        sock.settimeout(2)
        assert sock.recv(1) == b""


@pytest.mark.parametrize("status", [200, 503])
def test_a_response_has_the_length_that_it_declares(status: int) -> None:
    (found,) = read_responses(response_to(GET, status))

    assert int(found["content-length"]) == len(found.body) > 0
