from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_gguf.cli.server_state import server
from tests.cli.test_bundle import context
from tests.support.certificates import issue

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


@contextmanager
def responding(listener: socket.socket, times: int) -> Iterator[None]:
    """Serves a fixed number of connections."""

    def respond() -> None:
        for _ in range(times):
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(RESPONSE)

    thread = threading.Thread(target=respond)
    thread.start()
    with listener:
        yield
        thread.join()


def test_a_gateway_with_tls_is_queried_with_any_certificate(tmp_path: Path) -> None:
    pair = issue(not_before=2001, not_after=2002).write(tmp_path)
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shows.load_cert_chain(pair["TLS_CERT_FILE"], pair["TLS_KEY_FILE"])
    listener = shows.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
    port = str(listener.getsockname()[1])

    with responding(listener, 4):
        output = server(context(tmp_path, PORT=port, **pair))

    assert output.count(f"on 127.0.0.1:{port}: 200 OK\nhello") == 4


def test_an_engine_behind_a_unix_socket_is_queried_there(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    with responding(listener, 1):
        output = server(context(tmp_path, BACKEND_SOCKET=path))

    assert f"GET /health on {path}: 200 OK\nhello" in output


def test_every_replica_is_queried(tmp_path: Path) -> None:
    output = server(context(tmp_path, PORT_BACKEND="1", REPLICAS="3"))

    assert all(f"GET /health on 127.0.0.1:{port}: " in output for port in (1, 2, 3))


def test_a_wildcard_address_is_queried_on_loopback(tmp_path: Path) -> None:
    output = server(context(tmp_path, HOST="0.0.0.0", PORT="1"))  # noqa: S104  # queried, not bound

    assert "GET /ping on 127.0.0.1:1: ConnectionRefusedError" in output


def test_an_invalid_response_is_reported(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = str(listener.getsockname()[1])

    def hang_up() -> None:
        peer, _ = listener.accept()
        peer.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    with listener:
        output = server(context(tmp_path, PORT_HEALTH=port))
        thread.join()

    assert any(
        line.startswith(f"GET / on 127.0.0.1:{port}: ") and line[-1] != ":"
        for line in output.splitlines()
    )
