"""One request and its response, however the engine ends it."""

from __future__ import annotations

import asyncio

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.http_client import send


def response_to(reply: bytes, *, closes: bool = True) -> tuple[int, bytes]:
    """What ``send`` makes of *reply*."""

    async def work() -> tuple[int, bytes]:
        is_over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            if not closes:
                await is_over.wait()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = EngineAddress("127.0.0.1", server.sockets[0].getsockname()[1])
            try:
                return await send(address, b"GET / HTTP/1.0\r\n\r\n")
            finally:
                is_over.set()

    return asyncio.run(work())


def test_a_body_ends_at_its_length_although_the_connection_stays_open() -> None:
    reply = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"

    assert response_to(reply, closes=False) == (404, b"no")


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    assert response_to(b"HTTP/1.0 200 OK\r\n\r\nall of it") == (200, b"all of it")


def test_a_body_that_is_cut_short_is_a_failure() -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        response_to(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno")


def test_what_is_not_http_is_a_failure() -> None:
    with pytest.raises(ValueError, match="not HTTP"):
        response_to(b"SSH-2.0-OpenSSH\r\n\r\n")
