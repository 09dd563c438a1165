"""A fast substitute for llama-server, so that the gateway in front of it is the bottleneck.

The response is fixed JSON. A request with ``"stream": true`` in its body gets server-sent events:
their number is ``events``, their interval ``tick_ms``, and each contains the time at which it was
sent. Without the backend's key the status is 401: a gateway must replace the client's credentials.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final, cast

import httptools
import uvloop

KEY: Final = "gateway-" + "b" * 43
ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "All llamas hum. " * 30},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 120, "completion_tokens": 64, "total_tokens": 184},
    }
).encode()
LAST_EVENT: Final = b"data: [DONE]\n\n"
_EVENT: Final = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m","born":%d,'
    b'"choices":[{"index":0,"delta":{"content":" hum"},"finish_reason":null}]}\n\n'
)
_JSON_HEAD: Final = (
    b"HTTP/1.1 %b\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
)
_OK: Final = _JSON_HEAD % (b"200 OK", len(ANSWER)) + ANSWER
_UNAUTHORIZED: Final = _JSON_HEAD % (b"401 Unauthorized", 2) + b"{}"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_CREDENTIALS: Final = f"Bearer {KEY}".encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Backend(asyncio.Protocol):
    """One connection, which only the gateway closes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._next_event: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._next_event:
            self._next_event.cancel()

    # Callbacks of httptools ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._is_authorized = False
        self._body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._is_authorized = value == _CREDENTIALS

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        # Parsing the JSON of every request would cost as much as all the rest.
        options = json.loads(self._body) if b'"stream"' in self._body else {}
        if not self._is_authorized:
            self._transport.write(_UNAUTHORIZED)
        elif options.get("stream"):
            self._begin_stream(options)
        else:
            self._transport.write(_OK)

    # Streams ------------------------------------------------------------------------------------

    def _begin_stream(self, options: dict[str, Any]) -> None:
        self._remaining_events = int(options["events"])
        self._tick_seconds = options["tick_ms"] / 1000
        self._due_at = self._loop.time()
        self._transport.write(_STREAM_HEAD)
        self._on_tick()

    def _on_tick(self) -> None:
        if not self._remaining_events:
            self._transport.write(_chunk(LAST_EVENT) + b"0\r\n\r\n")
            return
        self._transport.write(_chunk(_EVENT % time.monotonic_ns()))
        self._remaining_events -= 1
        self._due_at += self._tick_seconds
        self._next_event = self._loop.call_at(self._due_at, self._on_tick)


async def _serve(port: int, path: str) -> None:
    loop = asyncio.get_running_loop()
    local = await loop.create_unix_server(Backend, path, backlog=4096)
    server = await loop.create_server(Backend, "127.0.0.1", port, backlog=4096)
    async with local:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))
