"""A substitute for llama-server: fast, controlled by each request's query, with a strict parser.

It runs on the loop of the clients, so that they can await events at the engine.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple, Self, cast
from urllib.parse import parse_qsl, urlencode

from tests.support.messages import LAST_CHUNK, STREAM_HEAD, Malformed, Request, chunk, take_request

SLOTS: Final = 8
NOISE: Final = random.Random(0).randbytes(1 << 17)
EVENT_SECONDS: Final = 0.001
FLOOD_EVENT: Final = 1 << 14
"""Bytes of random data in each event for a slow reader."""
SMALL_BUFFER: Final = 1 << 14

WHOLE: Final = ("length", "chunked", "close", "last", "interim", "surplus", "error", "stream")
"""Kinds of complete responses."""
REFUSED: Final = ("cut_before", "reset_before", "nonsense")
"""Kinds of failures for which the gateway responds with 502."""
BROKEN: Final = ("cut", "cut_chunked", "cut_stream")
"""Kinds of responses that are cut after the head."""
CLOSING: Final = ("close", "last", "cut", "cut_chunked", "cut_before", "nonsense")
"""Kinds of responses after which the engine closes the connection."""


class Order(NamedTuple):
    """What the engine has to do for one request; encoded in its query."""

    how: str
    number: int
    """Unique to each request."""
    size: int = 0
    """Bytes of random data, or the number of events."""
    wait_ms: int = 0

    @property
    def query(self) -> str:
        return urlencode(self._asdict())

    @classmethod
    def of(cls, target: bytes) -> Self:
        facts = dict(parse_qsl(target.decode().partition("?")[2]))
        return cls(facts["how"], int(facts["number"]), int(facts["size"]), int(facts["wait_ms"]))

    @property
    def status(self) -> int:
        return 500 if self.how == "error" else 200

    def response_to(self, body: bytes) -> bytes:
        """The exact body of the response to a request with *body*."""
        if self.how == "stream":
            return b"".join(self.events()) + b"data: [DONE]\n\n"
        at = self.number % (len(NOISE) - self.size)
        return (
            b"%d %d %08x\n" % (self.number, len(body), zlib.crc32(body))
            + NOISE[at : at + self.size]
        )

    def events(self) -> Iterator[bytes]:
        return (b'data: {"of":%d,"n":%d}\n\n' % (self.number, n) for n in range(self.size))


class Watch:
    """Events at the engine that concern one request, for its client."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.paused = asyncio.Event()
        """Backpressure of a slow reader has stopped the engine."""
        self.gone = asyncio.Event()
        """The connection to the engine is closed."""
        self.events = 0
        """The number sent so far to a slow reader."""


class Engine:
    """The listener, and what it has received."""

    def __init__(self) -> None:
        self.connections: set[EngineConnection] = set()
        self.accepted = 0
        self.requests = 0
        self.faults: list[str] = []
        self.watches: dict[int, Watch] = {}
        self.port = 0
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: EngineConnection(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in tuple(self.connections):
            connection.abort()

    def watch(self, order: Order) -> Watch:
        return self.watches.setdefault(order.number, Watch())


class EngineConnection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._received = b""
        self._is_paused = False
        self._watch: Watch | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._engine.connections.add(self)
        self._engine.accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.connections.discard(self)
        if self._watch is not None:
            self._watch.gone.set()

    def abort(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            found = take_request(self._received)
            if found is None:
                return
            request, rest = found
            if rest:
                raise Malformed(f"{rest!r} after the request")
        except Malformed as error:
            self._engine.faults.append(
                f"the engine received an invalid request: {error}; {self._received!r}"
            )
            self._transport.abort()
            return
        self._received = b""
        self._on_request(request)

    def _on_request(self, request: Request) -> None:
        path = request.target.partition(b"?")[0]
        if path in (b"/health", b"/props", b"/v1/models"):
            self._send_whole(json.dumps({"status": "ok", "total_slots": SLOTS}).encode())
            return
        if path == b"/metrics":  # read every 5 s, so only in long runs or on slow machines
            self._send_whole(b"llamacpp:requests_processing 1\n")
            return
        self._engine.requests += 1
        order = Order.of(request.target)
        self._watch = self._engine.watches.get(order.number)
        if self._watch is not None:
            self._watch.arrived.set()
        self._loop.call_later(order.wait_ms / 1000, self._respond, order, request)

    # Responses ------------------------------------------------------------------------------------

    def _respond(self, order: Order, request: Request) -> None:
        if self._transport.is_closing():
            return
        if request.method == b"HEAD":
            self._transport.write(_head(order.status, len(order.response_to(request.body))))
            return
        match order.how:
            case "stream" | "cut_stream":
                self._transport.write(STREAM_HEAD)
                self._stream(order.events(), ends=order.how == "stream")
            case "flood":
                self._transport.set_write_buffer_limits(high=SMALL_BUFFER)
                self._transport.write(STREAM_HEAD)
                self._flood()
            case "never":
                pass
            case _:
                self._send_at_once(order, order.response_to(request.body))

    def _send_at_once(self, order: Order, body: bytes) -> None:
        if order.how == "reset_before":
            self._transport.abort()
            return
        self._transport.write(_written(order, body))
        if order.how in CLOSING:
            self._transport.close()

    def _send_whole(self, body: bytes) -> None:
        self._transport.write(_head(200, len(body)) + body)

    def _stream(self, events: Iterator[bytes], *, ends: bool) -> None:
        if self._transport.is_closing():
            return
        event = next(events, None)
        if event is not None:
            self._transport.write(chunk(event))
            self._loop.call_later(EVENT_SECONDS, lambda: self._stream(events, ends=ends))
        elif ends:
            self._transport.write(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
        else:
            self._transport.close()

    def _flood(self) -> None:
        """Send until the reader stops us, and end once it reads on."""
        watch = self._watch
        assert watch is not None
        if self._transport.is_closing():
            return
        if self._is_paused:
            watch.paused.set()
        elif watch.paused.is_set():
            self._transport.write(LAST_CHUNK)
            return
        else:
            filling = NOISE[:FLOOD_EVENT].hex().encode()
            self._transport.write(chunk(b"data: %d %b\n\n" % (watch.events, filling)))
            watch.events += 1
        self._loop.call_later(EVENT_SECONDS, self._flood)


def _written(order: Order, body: bytes) -> bytes:
    """A response that is sent in one piece, complete or not."""
    half = len(body) // 2
    head = _head(order.status, len(body))
    match order.how:
        case "length" | "error":
            return head + body
        case "chunked":
            return _head(200, None) + chunk(body[:half]) + chunk(body[half:]) + LAST_CHUNK
        case "interim":
            return b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + head + body
        case "surplus":  # in one segment, or it might be parsed as the next response
            return head + body + b"surplus"
        case "last":
            return head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body
        case "close":
            return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + body
        case "cut":
            return head + body[:half]
        case "cut_chunked":
            return _head(200, None) + chunk(body)[:half]
        case "nonsense":
            return b"220 mail.example ESMTP\r\n\r\n"
        case _:
            return b""


def flooded(events: int) -> bytes:
    """The body that a slow reader must have received at the end."""
    filling = NOISE[:FLOOD_EVENT].hex().encode()
    return b"".join(b"data: %d %b\n\n" % (n, filling) for n in range(events))


def _head(status: int, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    head = f"HTTP/1.1 {status} X\r\nContent-Type: text/plain\r\nServer: x\r\n{framing}\r\n\r\n"
    return head.encode()
