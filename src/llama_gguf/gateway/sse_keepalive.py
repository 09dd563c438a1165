"""Streams that wait: comments that keep proxies from closing the connection (SSE_KEEPALIVE).

Proxies at the edge close a connection that has been silent for a minute or two. So a stream that
waits longer is sent its head, 200, before the engine has responded, and then comments. A status can
no longer be sent after that: a failure is sent as an error event.

The bodies that request a stream are found here as well, with a bounded effort per tick.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus
from typing import Final, Protocol

from llama_gguf.errors import UpstreamError
from llama_gguf.http1 import local_response
from llama_gguf.http1.chunked import frame
from llama_gguf.http1.fields import Framing
from llama_gguf.http1.response import Response
from llama_gguf.http1.stream_member import StreamSearch
from llama_gguf.net.transport import Transport

MAX_REFUSAL_BYTES: Final = 65536
"""Of an engine's response that is not a stream: some JSON with the reason."""
EFFORT_PER_TICK: Final = 524_288
"""For all searches together, in the unit of ``http1/stream_member.py``: 1 to 5 ms."""
EFFORT_PER_TURN: Final = 32_768
"""For one search, before the next one's turn: a long body does not delay short ones."""


class Request(Protocol):
    """The request whose stream waits."""

    @property
    def transport(self) -> Transport: ...
    @property
    def reads_chunks(self) -> bool: ...

    def on_early_response(self) -> None:
        """The engine begins the stream whose head has been sent."""
        ...

    def on_engine_refused(self, body: bytes) -> None:
        """The engine has responded with *body*, which is not a stream."""
        ...

    def on_body_begun(self) -> None: ...
    def on_response_done(self) -> None: ...
    def on_upstream_failed(self, error: UpstreamError) -> None: ...
    def on_cut(self, error: UpstreamError, *, may_insert: bool, has_begun: bool) -> None: ...

    def search_body(self, search: StreamSearch, effort: int, now: float) -> int:
        """Continue the search for ``stream`` in the body. Returns the effort that it took."""
        ...


class _Refusal(Transport):
    """Collects a response that is not a stream, instead of sending it."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data[: MAX_REFUSAL_BYTES - len(self.data)]

    def write_now(self, data: bytes) -> None:
        self.write(data)


class EarlyStream:
    """A stream whose head has been sent: receives the response of an engine without its head.

    The gateway has sent the head, or an engine that failed before its first event.

    An ``upstream_connection.ResponseReceiver`` by its methods.

    Args:
        request: the request; a client of HTTP/1.0 receives no chunked coding.
        now: when the client was last sent something.
    """

    __slots__ = (
        "_is_chunked",
        "_refusal",
        "_request",
        "bytes_sent",
        "reads_chunks",
        "sent_at",
        "transport",
    )

    def __init__(self, request: Request, now: float) -> None:
        self._request = request
        self._is_chunked = request.reads_chunks
        self._refusal: _Refusal | None = None
        """A response that is not a stream."""
        self.reads_chunks = request.reads_chunks
        self.transport = request.transport
        self.sent_at = now
        self.bytes_sent = 0
        """Those that are not from the engine."""

    def send(self, head: bytes, event: bytes) -> None:
        """Send *event*, whole, after *head*."""
        data = head + (frame(event) if self._is_chunked else event)
        self.bytes_sent += len(data)
        self._request.transport.write(data)

    def wait(self, now: float) -> None:
        """Send a comment: there is no event yet."""
        self.sent_at = now
        self.send(b"", local_response.WAITING)

    # What the engine's connection calls ---------------------------------------------------------

    def on_response(self, response: Response, length: int) -> bytes:
        del length
        if (
            response.status == HTTPStatus.OK
            and response.is_event_stream
            and response.framing in (Framing.CHUNKED, Framing.CLOSE)
        ):
            self._request.on_early_response()
        else:
            self.transport = self._refusal = _Refusal()
            self.reads_chunks = False  # the gateway reads it itself, decoded
        return b""

    def on_whole_response(self, response: Response, body: bytes) -> None:
        del response
        self._request.on_engine_refused(body)

    def on_body_begun(self) -> None:
        if self._refusal is None:
            self._request.on_body_begun()

    def on_response_done(self) -> None:
        if self._refusal is None:
            self._request.on_response_done()
        else:
            self._request.on_engine_refused(bytes(self._refusal.data))

    def on_upstream_failed(self, error: UpstreamError) -> None:
        self._request.on_upstream_failed(error)

    def on_cut(self, error: UpstreamError, *, may_insert: bool, has_begun: bool) -> None:
        is_refusal = self._refusal is not None  # of which the client has nothing
        self._request.on_cut(
            error, may_insert=may_insert or is_refusal, has_begun=has_begun and not is_refusal
        )


class StreamSearches:
    """The bodies that are searched for ``stream``, in turn."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[Request, StreamSearch]] = deque()

    def add(self, request: Request, search: StreamSearch) -> None:
        """Search the body of *request*, from the next ``advance`` on."""
        self._waiting.append((request, search))

    def advance(self, now: float) -> None:
        """Continue the searches for one tick."""
        waiting = self._waiting
        effort = EFFORT_PER_TICK
        while waiting and effort > 0:
            request, search = waiting.popleft()
            effort -= request.search_body(search, EFFORT_PER_TURN, now)
            if search.answer is None:
                waiting.append((request, search))
