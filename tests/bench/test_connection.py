from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf_bench.connection import Connection, ConnectionLost, Connections, parse_target
from tests.support.engines import ChatEngine

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


class Kept:
    """A sink that stores everything."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.body = b""
        self.ended = False

    def begin(self, status: int) -> None:
        self.statuses.append(status)

    def feed(self, data: bytes, now: float) -> None:
        self.body += data

    def end(self, now: float) -> None:
        self.ended = True


class Wire(asyncio.Transport):
    """A transport that records writes and aborts."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.cut = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.cut = True


def exchange(*parts: bytes | None) -> tuple[Kept, Connection, Wire]:
    """One exchange whose response arrives in *parts*; None is the end of the connection."""
    sink, wire = Kept(), Wire()

    async def scenario() -> Connection:
        connection = Connection(lambda: 1.0)
        connection.connection_made(wire)
        loop = asyncio.get_running_loop()
        for part in parts:
            if part is None:
                loop.call_soon(connection.connection_lost, None)
            else:
                loop.call_soon(connection.data_received, part)
        await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", sink)
        return connection

    return sink, asyncio.run(scenario()), wire


@pytest.mark.parametrize("response", [ANSWER, CHUNKED])
def test_a_response_is_passed_on_and_the_connection_is_reusable(response: bytes) -> None:
    sink, connection, wire = exchange(response)

    assert (sink.statuses, sink.body, sink.ended) == ([200], b"ok", True)
    assert connection.is_open
    assert not wire.cut
    assert wire.written.startswith(b"GET /")


def test_a_response_can_arrive_byte_by_byte() -> None:
    sink, _, _ = exchange(*(bytes([byte]) for byte in CHUNKED))

    assert (sink.body, sink.ended) == (b"ok", True)


def test_a_response_without_a_length_ends_with_the_connection() -> None:
    sink, connection, _ = exchange(b"HTTP/1.0 200 OK\r\n\r\nok", None)

    assert (sink.body, sink.ended) == (b"ok", True)
    assert not connection.is_open


def test_an_informational_response_is_not_the_final_one() -> None:
    sink, _, _ = exchange(b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER)

    assert sink.statuses[-1] == 200
    assert sink.body == b"ok"


def test_a_connection_with_connection_close_is_not_reused() -> None:
    _, connection, wire = exchange(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )

    assert wire.cut
    assert not connection.is_open


@pytest.mark.parametrize(
    "parts", [(None,), (CHUNKED[:-5], None), (ANSWER[:-1], None), (b"HTTP/1.1 20", None)]
)
def test_a_truncated_response_is_an_error(parts: tuple[bytes | None, ...]) -> None:
    with pytest.raises(ConnectionLost, match="connection lost"):
        exchange(*parts)


def test_an_invalid_http_response_is_an_error() -> None:
    with pytest.raises(ConnectionLost, match="no HTTP"):
        exchange(b"SSH-2.0-OpenSSH_9.2\r\n")


# The pool of connections --------------------------------------------------------------------------


def with_connections(
    engine: ChatEngine, scenario: Callable[[Connections], Awaitable[None]], *, keeps: bool = True
) -> Connections:
    async def run() -> Connections:
        target = parse_target(engine.url)
        connections = Connections(target, lambda: 1.0, keeps=keeps, settle=0)
        try:
            await scenario(connections)
        finally:
            connections.close()
        return connections

    return asyncio.run(run())


async def get(connections: Connections) -> bool:
    """Whether a new connection was opened for the request."""
    opened: list[float] = []
    request = connections.target.request("GET", "/v1/models")
    await connections.exchange(request, Kept(), opened.append)
    await asyncio.sleep(0.0)  # the connection settles
    await asyncio.sleep(0.0)
    return bool(opened)


def test_a_kept_connection_is_reused(engine: ChatEngine) -> None:
    async def scenario(connections: Connections) -> None:
        assert await get(connections)
        assert not await get(connections)

    with_connections(engine, scenario)


def test_without_keep_alive_every_request_uses_a_new_connection(engine: ChatEngine) -> None:
    async def scenario(connections: Connections) -> None:
        assert await get(connections)
        assert await get(connections)

    with_connections(engine, scenario, keeps=False)


def test_a_request_on_a_closed_kept_connection_is_sent_once_more() -> None:
    async def scenario() -> int:
        served = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            await reader.readuntil(b"\r\n\r\n")
            served += 1
            writer.write(ANSWER)
            if served == 1:
                await reader.readuntil(b"\r\n\r\n")  # the second request gets no response
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            target = parse_target(f"http://127.0.0.1:{port}")
            connections = Connections(target, lambda: 1.0, settle=0)
            assert await get(connections)
            assert await get(connections)
            connections.close()
        return connections.sent_again

    assert asyncio.run(scenario()) == 1


def test_a_refused_connection_is_an_os_error() -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match=r"\w"):
            await get(Connections(parse_target("http://127.0.0.1:1"), lambda: 1.0))

    asyncio.run(scenario())


# Targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, ""),
        ("http://h", "h", 80, ""),
        ("https://h/v1", "h", 443, ""),
        ("https://h/some/where/v1/", "h", 443, "/some/where"),
        ("http://[::1]:9", "::1", 9, ""),
    ],
)
def test_a_url_may_end_in_v1_or_not(url: str, host: str, port: int, prefix: str) -> None:
    target = parse_target(url)

    assert (target.host, target.port, target.prefix) == (host, port, prefix)
    assert (target.tls is not None) == url.startswith("https")


def test_a_unix_socket_is_a_target() -> None:
    assert parse_target("unix:/run/x.sock").socket == "/run/x.sock"


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://h/?a=1",
     "http://user:secret@h", "http://\u00e4"],
)  # fmt: skip
def test_an_invalid_url_is_rejected_without_showing_its_password(url: str) -> None:
    with pytest.raises(UserError, match="is not the URL of an endpoint") as refused:
        parse_target(url)

    assert refused.value.exit_status == 2
    assert "secret" not in str(refused.value)


def test_a_missing_certificate_file_is_named() -> None:
    with pytest.raises(UserError, match="--ca-file /nowhere: No such file"):
        parse_target("https://h", ca_file="/nowhere")


def test_the_key_is_sent_and_never_shown() -> None:
    target = parse_target("http://[::1]:9/x/v1", key="sk-secret")

    request = target.request("POST", "/v1/completions", b"{}")

    assert request.startswith(b"POST /x/v1/completions HTTP/1.1\r\nHost: [::1]:9\r\n")
    assert b"Authorization: Bearer sk-secret\r\n" in request
    assert request.endswith(b"Content-Length: 2\r\n\r\n{}")
    assert "secret" not in repr(target)


def test_a_unix_socket_is_used_like_a_port(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            writer.close()
            await writer.wait_closed()

        path = str(tmp_path / "x.sock")
        async with await asyncio.start_unix_server(serve, path):
            connections = Connections(parse_target(f"unix:{path}"), lambda: 1.0)
            sink = Kept()
            await connections.exchange(connections.target.request("GET", "/health"), sink)
            connections.close()
        return sink.body

    assert asyncio.run(scenario()) == b"ok"
