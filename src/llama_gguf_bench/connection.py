"""HTTP connections of the load generator, with as little work per event as possible.

An asyncio Protocol with llhttp, as in the gateway; the clock is read before anything is parsed.

llama-server closes the connection after a stream without announcing it. A connection is therefore
reused only after ``SETTLE_SECONDS`` of silence; until then, another or a new one is used. A
request whose kept connection is closed nevertheless, before any byte of a response, is sent once
more on a new one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import httptools

from llama_gguf import __version__
from llama_gguf.errors import UserError

SETTLE_SECONDS: Final = 0.005
CONNECT_SECONDS: Final = 30.0
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Clock = Callable[[], float]


class Sink(Protocol):
    """Receives a response."""

    def begin(self, status: int) -> None: ...
    def feed(self, data: bytes, now: float) -> None: ...
    def end(self, now: float) -> None: ...


class ConnectionLost(Exception):
    """The peer closed the connection before its response was complete."""


@dataclass(frozen=True, slots=True)
class Target:
    """The endpoint that receives the requests."""

    url: str
    host: str = ""
    port: int = 0
    socket: str = ""
    prefix: str = ""
    tls: ssl.SSLContext | None = None
    key: str = field(default="", repr=False)
    key_hint: str = (
        "Set LLAMA_API_KEY to a key of the endpoint; a new key is valid after three seconds."
    )
    """The advice if it rejects the key."""

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A request as bytes."""
        credentials = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        host = f"[{self.host}]" if ":" in self.host else self.host or "localhost"
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return (
            f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\n{credentials}"
            f"User-Agent: llama-gguf-bench/{__version__}\r\nAccept: */*\r\n"
            f"{content if body else ''}\r\n"
        ).encode() + body


def parse_target(url: str, *, key: str = "", ca_file: str = "") -> Target:
    """Read ``http(s)://HOST[:PORT][/v1]`` or ``unix:PATH``.

    Raises:
        UserError: it is neither, or the certificate file cannot be read.
    """
    if url.startswith("unix:"):
        return Target(url, socket=url.removeprefix("unix:"), key=key)
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        parts, port = urlsplit(""), 0
    if not parts.hostname or parts.username is not None or parts.query or not url.isascii():
        raise UserError(
            f"{_without_password(url)!r} is not the URL of an endpoint; use http://HOST:PORT, "
            "https://HOST or unix:/PATH/OF.sock",
            2,
        )
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    tls = _context(ca_file) if parts.scheme == "https" else None
    return Target(url, parts.hostname, port, prefix=prefix, tls=tls, key=key)


def _without_password(url: str) -> str:
    scheme, at, rest = url.rpartition("@")
    return f"...@{rest}" if at else scheme + rest


def _context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise UserError(f"--ca-file {ca_file}: {error.strerror or error}", 2) from None


class Connection(asyncio.Protocol):
    """One connection, with one exchange at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport
        self._sink: Sink | None = None
        self._over: asyncio.Future[None] | None = None
        self._is_open = False
        self._has_answered = False
        self._is_reusable = False
        self._fields: dict[bytes, bytes] = {}
        self.fields: Mapping[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.Transport, transport
        )  # uvloop's transports are not subclasses
        self._is_open = True

    async def exchange(self, request: bytes, sink: Sink) -> None:
        """Send *request* and wait until *sink* has received the complete response.

        Raises:
            ConnectionLost: the response is missing or incomplete.
        """
        if not self._is_open:
            raise ConnectionLost("connection lost")
        self._sink, self._has_answered, self._fields = sink, False, {}
        self._is_reusable = False
        self._parser = httptools.HttpResponseParser(self)
        self._over = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._over
        finally:
            self._sink = None
            if not self._is_reusable:
                self.close()

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def has_answered(self) -> bool:
        """Whether any byte of the response to the last request has arrived."""
        return self._has_answered

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._transport.abort()

    # Callbacks of the transport -------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._now = self._clock()
        self._has_answered = True
        if self._sink is None:
            self.close()  # no request is pending
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # our bug, not the peer's
        except httptools.HttpParserError:
            self._fail("no HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        if self._sink is not None and self._ends_by_closing() and exc is None:
            self._now = self._clock()
            self.on_message_complete()
        self._fail("connection lost")

    def _ends_by_closing(self) -> bool:
        """A response without Content-Length and chunks ends when the connection is closed."""
        framed = b"content-length" in self._fields or b"transfer-encoding" in self._fields
        return self.fields is self._fields and not framed

    def _fail(self, why: str) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(ConnectionLost(why))

    # Callbacks of the parser ----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.fields = self._fields
        cast(Sink, self._sink).begin(self._parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        cast(Sink, self._sink).feed(data, self._now)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200 or self._over is None or self._over.done():
            return  # 100 Continue and the like: the final response follows
        cast(Sink, self._sink).end(self._now)
        # Read here, since llhttp resets it when this callback returns.
        self._is_reusable = self._is_open and bool(self._parser.should_keep_alive())
        self._over.set_result(None)


class Connections:
    """All connections to one target.

    Args:
        target: the endpoint.
        clock: the source of the seconds that sinks receive.
        keeps: whether connections are reused.
        settle: seconds of silence before a connection is reused.
    """

    def __init__(
        self, target: Target, clock: Clock, *, keeps: bool = True, settle: float = SETTLE_SECONDS
    ) -> None:
        self.target = target
        self._settle = settle
        self._clock = clock
        self._keeps = keeps
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self.sent_again = 0
        """Requests whose kept connection was closed, and which were sent once more."""

    async def exchange(
        self, request: bytes, sink: Sink, on_connected: Callable[[float], None] = lambda now: None
    ) -> None:
        """Send *request* on any connection and wait for the response.

        Raises:
            ConnectionLost: the response is missing or incomplete.
            OSError: no connection could be opened.
        """
        kept = self._take()
        if kept is not None:
            try:
                await kept.exchange(request, sink)
            except ConnectionLost:
                if kept.has_answered:
                    raise
                self.sent_again += 1
            else:
                self._give_back(kept)
                return
        fresh = await self._connect()
        on_connected(self._clock())
        try:
            await fresh.exchange(request, sink)
        finally:
            self._give_back(fresh)

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._open.discard(connection)
        return None

    def _give_back(self, connection: Connection) -> None:
        if not self._keeps:
            connection.close()
        if connection.is_open:
            loop = asyncio.get_running_loop()
            loop.call_later(self._settle, self._idle.append, connection)
        else:
            self._open.discard(connection)

    async def _connect(self) -> Connection:
        loop, target = asyncio.get_running_loop(), self.target
        async with asyncio.timeout(CONNECT_SECONDS):
            if target.socket:
                opening: Any = loop.create_unix_connection(self._new, target.socket)
            else:
                opening = loop.create_connection(
                    self._new, target.host, target.port, ssl=target.tls
                )
            _, opened = await opening
        connection = cast(Connection, opened)
        self._open.add(connection)
        return connection

    def _new(self) -> Connection:
        return Connection(self._clock)

    def close(self) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()
