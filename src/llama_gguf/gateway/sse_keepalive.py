"""Streams that wait: comments that keep the connection open (SSE_KEEPALIVE).

Proxies at the edge, and some clients, close a connection that has been silent for a minute or two.
So a stream that waits longer is sent its head, 200, before the engine has responded, and then
comments, until the engine's first event. A status can no longer be sent after that: a failure is
sent as an error event. On Responses, the head is held back instead (``Attempt.holds_head``).

The bodies that request a stream are found here as well, with a bounded effort per tick.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from llama_gguf.errors import UpstreamError
from llama_gguf.gateway.response_events import ResponseRelay
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


class Waiting(Protocol):
    """A request whose stream may have to begin early."""

    def search_body(self, search: StreamSearch, effort: int, now: float) -> int:
        """Continue the search for ``stream`` in the body. Returns the effort that it took."""
        ...


class StreamReceiver(Protocol):
    """The attempt, to which the parts of a response come without a head."""

    @property
    def transport(self) -> Transport: ...
    @property
    def reads_chunks(self) -> bool: ...

    def on_stream_begun(self) -> None:
        """The engine begins the stream whose head has been sent."""
        ...

    def on_refusal(self, body: bytes) -> None:
        """The engine has responded with *body*, which is not a stream."""
        ...

    def on_body_begun(self) -> None: ...
    def on_response_done(self) -> None: ...
    def on_upstream_failed(self, error: UpstreamError) -> None: ...
    def on_cut(self, error: UpstreamError, *, may_insert: bool, has_begun: bool) -> None: ...


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
    """What a client receives of a stream whose head has been sent, before an engine begins it.

    Args:
        transport: of the client.
        now: when it was last sent something.
        reads_chunks: False for a client of HTTP/1.0.
        sign: of life, sent while there is no event.
    """

    __slots__ = ("_reads_chunks", "_sign", "_transport", "bytes_sent", "sent_at")

    def __init__(
        self,
        transport: Transport,
        now: float,
        reads_chunks: bool,
        sign: bytes = local_response.WAITING,
    ) -> None:
        self._transport = transport
        self._reads_chunks = reads_chunks
        self._sign = sign
        self.sent_at = now
        self.bytes_sent = 0

    def send(self, head: bytes, event: bytes) -> None:
        """Send *event*, whole, after *head*."""
        data = head + (frame(event) if self._reads_chunks else event)
        self.bytes_sent += len(data)
        self._transport.write(data)

    def wait(self, now: float) -> None:
        """Send a sign of life: there is no event yet."""
        self.sent_at = now
        self.send(b"", self._sign)


class HeadlessReceiver:
    """Receives an engine's response, of which the client has a head already: ours, or another's.

    The engine's own head is checked, and not sent. An ``upstream_connection.ResponseReceiver`` by
    its methods.

    Args:
        attempt: receives the rest of the response.
        relay: takes the events; None where the client gets them as they are.
    """

    __slots__ = ("_attempt", "_refusal", "_relay", "reads_chunks", "transport")

    def __init__(self, attempt: StreamReceiver, relay: ResponseRelay | None = None) -> None:
        self._attempt = attempt
        self._relay = relay
        self._refusal: _Refusal | None = None
        """A response that is not a stream."""
        self.reads_chunks = attempt.reads_chunks and relay is None
        self.transport: Transport = attempt.transport if relay is None else relay

    @property
    def holds_head(self) -> bool:
        return False

    def on_response(self, response: Response, length: int) -> bytes:
        del length
        if (
            response.status == 200
            and response.is_event_stream
            and response.framing in (Framing.CHUNKED, Framing.CLOSE)
        ):
            self._attempt.on_stream_begun()
        else:
            self._relay = None
            self.transport = self._refusal = _Refusal()
            self.reads_chunks = False  # the gateway reads it itself, decoded
        return b""

    def on_whole_response(self, response: Response, body: bytes) -> None:
        del response
        self._attempt.on_refusal(body)

    def on_body_begun(self) -> None:
        if self._refusal is None:
            self._attempt.on_body_begun()

    def on_response_done(self) -> None:
        if self._relay is not None:
            self._relay.finish()
        if self._refusal is None:
            self._attempt.on_response_done()
        else:
            self._attempt.on_refusal(bytes(self._refusal.data))

    def on_upstream_failed(self, error: UpstreamError) -> None:
        self._attempt.on_upstream_failed(error)

    def on_cut(self, error: UpstreamError, *, may_insert: bool, has_begun: bool) -> None:
        is_refusal = self._refusal is not None  # of which the client has nothing
        has_whole_events = is_refusal or self._relay is not None
        self._attempt.on_cut(
            error, may_insert=may_insert or has_whole_events, has_begun=has_begun and not is_refusal
        )


class StreamSearches:
    """The bodies that are searched for ``stream``, in turn."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[Waiting, StreamSearch]] = deque()

    def add(self, request: Waiting, search: StreamSearch) -> None:
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
