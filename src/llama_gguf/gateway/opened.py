"""A stream whose head is sent before the engine responds (SSE_KEEPALIVE).

Proxies at the edge give up a connection on which nothing comes for a minute or two. So one that
waits longer is answered 200 and told comments. From then on its client hears what it waits for,
or an error event: a status cannot be told any more.

Which bodies ask for a stream is found out here as well, by a bounded effort per tick.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from llama_gguf.core import replies
from llama_gguf.core.chunked import frame
from llama_gguf.core.fields import Framing
from llama_gguf.core.messages import Answer
from llama_gguf.errors import UpstreamError

if TYPE_CHECKING:
    from llama_gguf.core.exchange import Exchange
    from llama_gguf.gateway.client import ClientConnection

MAX_REFUSAL_BYTES: Final = 65536
"""Of an engine's answer that is no stream: some JSON that says why."""
EFFORT_PER_TICK: Final = 524_288
"""For all searches together, in the unit of ``core/stream_member.py``: 1 to 5 ms."""
EFFORT_PER_TURN: Final = 32_768
"""For one of them, before the next has its turn: a long body does not delay the short ones."""


class OpenedStream:
    """Hears the engine in the client's stead; an ``upstream.Asker`` by its methods.

    Args:
        client: who asks; an HTTP/1.0 client gets no chunked coding.
        now: the stream has something said on it by then.
    """

    __slots__ = (
        "_client",
        "_is_chunked",
        "_refusal",
        "bytes_sent",
        "reads_chunks",
        "said_at",
        "sink",
        "write",
    )

    def __init__(self, client: ClientConnection, now: float) -> None:
        self._client = client
        self._is_chunked = client.reads_chunks
        self._refusal: bytearray | None = None
        """Of an answer that is no stream, what has come."""
        self.reads_chunks = client.reads_chunks
        self.write: Callable[[bytes], None] = client.write
        self.sink = client.sink
        self.said_at = now
        self.bytes_sent = 0
        """Those that did not come from the engine."""

    def send(self, head: bytes, event: bytes) -> None:
        """Say *event*, whole, behind *head*."""
        data = head + (frame(event) if self._is_chunked else event)
        self.bytes_sent += len(data)
        self._client.write(data)

    def wait(self, now: float) -> None:
        """Say that there is nothing to say yet."""
        self.said_at = now
        self.send(b"", replies.WAITING)

    # What the engine's connection calls ---------------------------------------------------------

    def on_response(self, answer: Answer, length: int) -> bytes:
        del length
        if (
            answer.status == HTTPStatus.OK
            and answer.is_event_stream
            and answer.framing in (Framing.CHUNKED, Framing.CLOSE)
        ):
            self._client.on_opened_response()
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
        self._client.on_engine_refused(body)

    def on_first_event(self) -> None:
        self._client.on_first_event()

    def on_response_done(self) -> None:
        if self._refusal is None:
            self._client.on_response_done()
        else:
            self._client.on_engine_refused(bytes(self._refusal))

    def on_upstream_failed(self, error: UpstreamError, *, is_stale: bool) -> None:
        self._client.on_upstream_failed(error, is_stale=is_stale)

    def on_cut(self, error: UpstreamError, *, may_insert: bool) -> None:
        self._client.on_cut(error, may_insert=may_insert or self._refusal is not None)


class StreamSearches:
    """The bodies that are searched for ``stream``, in turn."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[ClientConnection, Exchange]] = deque()

    def add(self, client: ClientConnection, exchange: Exchange) -> None:
        """Search the body of *exchange*, from the next ``advance`` on."""
        self._waiting.append((client, exchange))

    def advance(self, now: float) -> None:
        """Search on for one tick."""
        waiting = self._waiting
        effort = EFFORT_PER_TICK
        while waiting and effort > 0:
            client, exchange = waiting.popleft()
            effort -= client.search_body(exchange, EFFORT_PER_TURN, now)
            search = exchange.stream_search
            if search is not None and search.answer is None:
                waiting.append((client, exchange))
