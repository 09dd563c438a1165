"""One connection to llama-server.

It follows the framing of the answer and hands the bytes on as they came. An
event of a stream is one whole chunk in one read: it costs a look at its size
line and one call of the client's ``send``, nothing else.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Final, Protocol, cast

from llama_gguf.core.chunked import ChunkedBody, ChunkedError
from llama_gguf.core.fields import Framing, ResponseFields, read_response
from llama_gguf.errors import UpstreamError
from llama_gguf.gateway.heads import HEAD_END, ResponseHead, parse_response, split_length

MAX_HEAD_BYTES: Final = 65536


class Phase(enum.IntEnum):
    IDLE = 0  # kept, or not used yet: any byte now is unasked for
    HEAD = 1  # a request is sent; its answer's head is awaited
    BODY = 2
    CLOSED = 3


class Asker(Protocol):
    """Who asked: the client's side of the exchange."""

    reads_chunks: bool
    """False for HTTP/1.0: it gets a chunked body decoded."""

    def on_response(self, head: ResponseHead, read: ResponseFields) -> bytes: ...
    def send(self, data: bytes) -> None: ...
    def on_response_done(self) -> None: ...
    def on_upstream_failed(self, error: UpstreamError, *, is_stale: bool) -> None: ...
    def on_cut(self, error: UpstreamError, *, may_insert: bool) -> None: ...


class Keeper(Protocol):
    """Who keeps connections for later."""

    def give_back(self, connection: UpstreamConnection) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    __slots__ = (
        "_asker",
        "_chunked",
        "_framing",
        "_has_begun",
        "_keeper",
        "_last",
        "_last_key",
        "_left",
        "_may_keep",
        "_phase",
        "_received",
        "_relays_chunks",
        "_to_head",
        "_transport",
        "idle_since",
        "requests",
    )

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._transport: asyncio.Transport
        self._phase = Phase.CLOSED
        self._asker: Asker | None = None
        self._received = b""
        self._framing = Framing.NONE
        self._left = 0
        self._chunked = ChunkedBody()
        self._relays_chunks = False
        self._has_begun = False
        self._may_keep = False
        self._to_head = False
        # The engine repeats its heads too: what was found in the last one is kept.
        self._last_key = b""
        self._last: tuple[ResponseHead, ResponseFields]
        self.requests = 0
        self.idle_since = 0.0

    # What the client's side calls ---------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        return self._phase is Phase.IDLE and not self._transport.is_closing()

    @property
    def is_between_chunks(self) -> bool:
        """Whether an event of our own may be inserted into the answer here."""
        return (
            self._phase is Phase.BODY
            and self._framing is Framing.CHUNKED
            and self._chunked.is_between_chunks
        )

    def ask(self, asker: Asker, request: bytes, *, to_head: bool) -> None:
        """Send *request*, whole, on behalf of *asker*."""
        self._phase = Phase.HEAD
        self._asker = asker
        self._received = b""
        self._to_head = to_head
        self._relays_chunks = False
        self._has_begun = False
        self.requests += 1
        self._transport.write(request)

    def close(self) -> None:
        """Let go of the connection; nobody is told."""
        self._phase = Phase.CLOSED
        self._asker = None
        self._transport.close()

    def abort(self) -> None:
        """Cut the connection at once, so that the engine notices that nobody listens."""
        self._phase = Phase.CLOSED
        self._asker = None
        self._transport.abort()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # What the loop calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of asyncio.Transport, so this cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        self._phase = Phase.IDLE

    def data_received(self, data: bytes) -> None:
        asker = self._asker
        if asker is None:
            self.close()  # what nobody asked for is never the answer to the next request
        elif self._phase is Phase.BODY:
            if self._relays_chunks and self._chunked.is_one_chunk(data):
                asker.send(data)
            else:
                self._read_body(asker, data)
        else:
            self._read_head(asker, data)

    def connection_lost(self, exc: Exception | None) -> None:
        asker, phase, may_insert = self._asker, self._phase, self.is_between_chunks
        self._asker = None
        self._phase = Phase.CLOSED
        if asker is None:
            return
        if phase is Phase.HEAD:
            is_stale = self.requests > 1 and not self._received and not self._has_begun
            error = UpstreamError("The engine closed the connection before it answered.")
            asker.on_upstream_failed(error, is_stale=is_stale)
        elif self._framing is Framing.CLOSE and exc is None:
            asker.on_response_done()
        else:
            error = UpstreamError("The engine broke off its answer.")
            asker.on_cut(error, may_insert=may_insert)

    # The answer ---------------------------------------------------------------------------------

    def _read_head(self, asker: Asker, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        try:
            found = self._take_head()
            if found is None:
                return
        except UpstreamError as error:
            self.abort()
            asker.on_upstream_failed(error, is_stale=False)
            return
        rest, self._received = self._received, b""
        self._begin_body(asker, found, rest)

    def _take_head(self) -> tuple[ResponseHead, ResponseFields] | None:
        """The final head out of what has been received; None when it is not there yet.

        Raises:
            UpstreamError: it is too long, no HTTP, or takes up an upgrade nobody offered.
        """
        while True:
            end = self._received.find(HEAD_END) + len(HEAD_END)
            if max(end, len(self._received) if end < len(HEAD_END) else 0) > MAX_HEAD_BYTES:
                raise UpstreamError("The head of the engine's answer is too long.")
            if end < len(HEAD_END):
                return None
            raw, self._received = self._received[:end], self._received[end:]
            key, length = split_length(raw)
            if key == self._last_key and not self._to_head:
                if length is not None:
                    self._last[1].length = length
                return self._last
            head = parse_response(raw)
            if head.status == 101:
                raise UpstreamError("The engine switched protocols unasked.")
            if head.status >= 200:
                return self._sorted(head, key)
            self._has_begun = True  # an interim answer; the final one follows

    def _sorted(self, head: ResponseHead, key: bytes) -> tuple[ResponseHead, ResponseFields]:
        read = read_response(head.fields, status=head.status, to_head=self._to_head)
        read.forwarded = [b"".join(read.forwarded)]
        if not self._to_head:
            self._last_key, self._last = key, (head, read)
        return head, read

    def _begin_body(
        self, asker: Asker, found: tuple[ResponseHead, ResponseFields], rest: bytes
    ) -> None:
        head, read = found
        self._phase = Phase.BODY
        self._framing = read.framing
        self._left = read.length or 0
        # Never after a stream: llama-server closes then, and does not say so.
        self._may_keep = (
            read.framing in (Framing.LENGTH, Framing.NONE)
            and head.version == "1.1"
            and b"close" not in read.connection
        )
        if read.framing is Framing.CHUNKED:
            self._chunked = ChunkedBody()
            self._relays_chunks = asker.reads_chunks
        self._read_body(asker, rest, head=asker.on_response(head, read))

    def _read_body(self, asker: Asker, data: bytes, head: bytes = b"") -> None:
        """Pass on what belongs to the answer; *head* goes out before it, in the same write."""
        try:
            taken, body = self._follow(data)
        except ChunkedError:
            if head:
                asker.send(head)
            self.abort()
            error = UpstreamError("The engine broke the framing of its answer.")
            asker.on_cut(error, may_insert=False)
            return
        if head or body:
            asker.send(head + body if head else body)
        if self._is_complete():
            self._finish(asker, has_surplus=taken < len(data))

    def _follow(self, data: bytes) -> tuple[int, bytes]:
        """How much of *data* belongs to the answer, and what of it the client gets."""
        match self._framing:
            case Framing.CHUNKED if self._relays_chunks:
                taken = self._chunked.feed(data)
            case Framing.CHUNKED:
                body = bytearray()
                return self._chunked.feed(data, body), bytes(body)
            case Framing.LENGTH:
                taken = min(self._left, len(data))
                self._left -= taken
            case Framing.CLOSE:
                taken = len(data)
            case Framing.NONE:
                taken = 0
        return taken, data if taken == len(data) else data[:taken]

    def _is_complete(self) -> bool:
        match self._framing:
            case Framing.CHUNKED:
                return self._chunked.is_done
            case Framing.LENGTH:
                return self._left == 0
            case Framing.NONE:
                return True
            case Framing.CLOSE:
                return False

    def _finish(self, asker: Asker, *, has_surplus: bool) -> None:
        self._asker = None
        self._received = b""
        if self._may_keep and not has_surplus and not self._transport.is_closing():
            self._phase = Phase.IDLE
            # A client that was slow to the end has left the reading paused.
            self._transport.resume_reading()
            self._keeper.give_back(self)
        else:
            self.close()
        asker.on_response_done()
