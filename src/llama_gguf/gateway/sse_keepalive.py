"""Streams that wait: the sign of life that keeps proxies on the line (SSE_KEEPALIVE).

Proxies at the edge give up a connection that has been silent for a minute or two. So a stream that
waits longer gets its head, 200, before the engine has responded, and then comments. A status cannot
be sent any more: what goes wrong from then on comes as an error event.

Which bodies ask for a stream is found out here as well, with a bounded effort per tick.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol

from llama_gguf.errors import UpstreamError
from llama_gguf.http1 import local_response
from llama_gguf.http1.chunked import frame
from llama_gguf.http1.fields import Framing
from llama_gguf.http1.response import Answer
from llama_gguf.http1.stream_member import StreamSearch
from llama_gguf.net.transport import SocketTransport

MAX_REFUSAL_BYTES: Final = 65536
"""Of an engine's answer that is no stream: some JSON that says why."""
EFFORT_PER_TICK: Final = 524_288
"""For all searches together, in the unit of ``http1/stream_member.py``: 1 to 5 ms."""
EFFORT_PER_TURN: Final = 32_768
"""For one of them, before the next has its turn: a long body does not delay the short ones."""


class Request(Protocol):
    """The request whose stream waits."""

    @property
    def write(self) -> Callable[[bytes], None]: ...
    @property
    def sink(self) -> SocketTransport | None: ...
    @property
    def reads_chunks(self) -> bool: ...

    def on_early_response(self) -> None:
        """The engine begins the stream whose head has gone out."""
        ...

    def on_engine_refused(self, body: bytes) -> None:
        """The engine has responded with *body*, and that is no stream."""
        ...

    def on_first_event(self) -> None: ...
    def on_response_done(self) -> None: ...
    def on_upstream_failed(self, error: UpstreamError) -> None: ...
    def on_cut(self, error: UpstreamError, *, may_insert: bool) -> None: ...

    def search_body(self, search: StreamSearch, effort: int, now: float) -> int:
        """Search on for ``stream`` in the body. Returns the effort that it took."""
        ...


class EarlyStream:
    """A stream whose head was sent early: takes the engine's response in the request's place.

    An ``upstream.Asker`` by its methods.

    Args:
        request: whose response it is; an HTTP/1.0 client gets no chunked coding.
        now: when its head is sent.
    """

    __slots__ = (
        "_is_chunked",
        "_refusal",
        "_request",
        "bytes_sent",
        "reads_chunks",
        "sent_at",
        "sink",
        "write",
    )

    def __init__(self, request: Request, now: float) -> None:
        self._request = request
        self._is_chunked = request.reads_chunks
        self._refusal: bytearray | None = None
        """Of an answer that is no stream, what has come."""
        self.reads_chunks = request.reads_chunks
        self.write: Callable[[bytes], None] = request.write
        self.sink = request.sink
        self.sent_at = now
        self.bytes_sent = 0
        """Those that did not come from the engine."""

    def send(self, head: bytes, event: bytes) -> None:
        """Say *event*, whole, behind *head*."""
        data = head + (frame(event) if self._is_chunked else event)
        self.bytes_sent += len(data)
        self._request.write(data)

    def wait(self, now: float) -> None:
        """Say that there is nothing to say yet."""
        self.sent_at = now
        self.send(b"", local_response.WAITING)

    # What the engine's connection calls ---------------------------------------------------------

    def on_response(self, answer: Answer, length: int) -> bytes:
        del length
        if (
            answer.status == HTTPStatus.OK
            and answer.is_event_stream
            and answer.framing in (Framing.CHUNKED, Framing.CLOSE)
        ):
            self._request.on_early_response()
        else:
            self._refusal = bytearray()
            self.reads_chunks = False  # it is for us to read, without the chunks
            self.write = self._collect
            self.sink = None
        return b""

    def _collect(self, data: bytes) -> None:
        assert self._refusal is not None
        self._refusal += data[: MAX_REFUSAL_BYTES - len(self._refusal)]

    def on_whole_response(self, answer: Answer, body: bytes) -> None:
        del answer
        self._request.on_engine_refused(body)

    def on_first_event(self) -> None:
        self._request.on_first_event()

    def on_response_done(self) -> None:
        if self._refusal is None:
            self._request.on_response_done()
        else:
            self._request.on_engine_refused(bytes(self._refusal))

    def on_upstream_failed(self, error: UpstreamError) -> None:
        self._request.on_upstream_failed(error)

    def on_cut(self, error: UpstreamError, *, may_insert: bool) -> None:
        self._request.on_cut(error, may_insert=may_insert or self._refusal is not None)


class StreamSearches:
    """The bodies that are searched for ``stream``, in turn."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[Request, StreamSearch]] = deque()

    def add(self, request: Request, search: StreamSearch) -> None:
        """Search the body of *request*, from the next ``advance`` on."""
        self._waiting.append((request, search))

    def advance(self, now: float) -> None:
        """Search on for one tick."""
        waiting = self._waiting
        effort = EFFORT_PER_TICK
        while waiting and effort > 0:
            request, search = waiting.popleft()
            effort -= request.search_body(search, EFFORT_PER_TURN, now)
            if search.answer is None:
                waiting.append((request, search))
