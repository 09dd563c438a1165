"""One connection to llama-server.

It follows the framing of the answer and hands the bytes on as they came. An
event of a stream is one whole chunk in one read: it costs a look at its size
line and one write to the client's transport, nothing else.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Final, Protocol, cast

from llama_gguf.errors import UpstreamClosedKept, UpstreamError
from llama_gguf.http1.chunked import (
    LAST_CHUNK,
    TAIL_BYTES,
    ChunkedBody,
    ChunkedError,
    frame,
    is_one_chunk,
)
from llama_gguf.http1.fields import Framing, read_response
from llama_gguf.http1.known_head import NO_HEAD, KnownHead
from llama_gguf.http1.parser import HEAD_END, check_response_start, parse_response
from llama_gguf.http1.response import Answer, ResponseHead
from llama_gguf.net.transport import Receiver, SocketTransport
from llama_gguf.telemetry.token_usage import ENDING_BYTES, OPENING_BYTES

MAX_HEAD_BYTES: Final = 65536
_EVENT: Final = b"data:"
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")


class Phase(enum.IntEnum):
    IDLE = 0  # kept for reuse, or not used yet: any byte that arrives is unexpected
    HEAD = 1  # a request was sent; the response's head is awaited
    BODY = 2  # the response's body is being read
    BETWEEN_CHUNKS = 3  # in a chunked body, at the end of a chunk: the next may be relayed whole
    LEFT = 4  # the client has disconnected; the connection stays open until the engine notices
    CLOSED = 5  # not connected yet, or closed


_IDLE: Final = Phase.IDLE
_HEAD: Final = Phase.HEAD
_BODY: Final = Phase.BODY
_BETWEEN_CHUNKS: Final = Phase.BETWEEN_CHUNKS
_LEFT: Final = Phase.LEFT
_CLOSED: Final = Phase.CLOSED
_LENGTH: Final = Framing.LENGTH


class Asker(Protocol):
    """Who asked: the client's side of the exchange."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """What the response's bytes go to."""
        ...

    @property
    def sink(self) -> SocketTransport | None:
        """The transport whose ``write`` that is, if it is one of ours: it gets them at once."""
        ...

    @property
    def reads_chunks(self) -> bool:
        """False for HTTP/1.0: it gets a chunked body decoded."""
        ...

    def on_whole_response(self, answer: Answer, body: bytes) -> None: ...
    def on_response(self, answer: Answer, length: int) -> bytes: ...
    def on_first_event(self) -> None: ...
    def on_response_done(self) -> None: ...
    def on_upstream_failed(self, error: UpstreamError) -> None: ...
    def on_cut(self, error: UpstreamError, *, may_insert: bool) -> None: ...


class Keeper(Protocol):
    """The pool: it keeps connections for later."""

    header_lines: bytes
    """The lines that are the engine's own in the head of each request."""

    last_head: tuple[KnownHead, Answer] | None
    """The last one that was understood: a new connection mostly begins with it again."""

    def give_back(self, connection: UpstreamConnection) -> None: ...


class UpstreamConnection(Receiver):
    """An ``asyncio.Protocol`` by its methods; compiled classes do not inherit from it.

    Args:
        keeper: who gets it back.
        on_made: is told when it is connected.
    """

    __slots__ = (
        "_answer",
        "_asker",
        "_before_last",
        "_chunked",
        "_framing",
        "_has_begun",
        "_keeper",
        "_known",
        "_last_chunk",
        "_late",
        "_left",
        "_may_persist",
        "_on_gone",
        "_on_made",
        "_reads_chunks",
        "_received",
        "_sink",
        "_to_head",
        "_write",
        "bytes_passed",
        "idle_since",
        "opening",
        "phase",
        "requests",
        "transport",
    )

    def __init__(self, keeper: Keeper, on_made: Callable[[], None] | None = None) -> None:
        self._keeper = keeper
        self._on_made = on_made
        self.transport: asyncio.Transport
        self.phase = _CLOSED
        self._asker: Asker | None = None
        self._write: Callable[[bytes], None]
        self._sink: SocketTransport | None = None
        self._received = b""
        self._framing = Framing.NONE
        self._left = 0
        self._may_persist = False
        self._reads_chunks = True
        self._on_gone: Callable[[], None] | None = None
        self._chunked = ChunkedBody()
        self._has_begun = False
        self._to_head = False
        # The engine repeats its heads too: what was found in the last one is kept.
        self._known: KnownHead = NO_HEAD
        self._answer: Answer
        if keeper.last_head is not None:
            self._known, self._answer = keeper.last_head
        self.bytes_passed = 0
        """Bytes of the answer that the client got, the head's included."""
        self._last_chunk = b""
        """The last of them, if they are a chunk that came in one read."""
        self._before_last = b""
        """The chunk before that."""
        self._late = b""
        """The last bytes before these two."""
        self.opening = b""
        """The first bytes of the body that say something, where it did not come in one read."""
        self.requests = 0
        self.idle_since = 0.0

    # What the client's side calls ---------------------------------------------------------------

    @property
    def may_insert_event(self) -> bool:
        """Whether an event of our own may follow here: behind a whole one, between two chunks."""
        return (
            self.phase in (_BODY, _BETWEEN_CHUNKS)
            and self._framing is Framing.CHUNKED
            and self._chunked.is_between_chunks
            and self._answer.is_event_stream
            # Behind an event that was not whole, another would become a part of it.
            and self.tail.endswith(_EVENT_ENDS)
        )

    @property
    def tail(self) -> bytes:
        """The last bytes of a chunked body."""
        if self._last_chunk:
            return self._last_chunk[-TAIL_BYTES - 2 : -2]
        return self._chunked.tail

    @property
    def ending(self) -> bytes:
        """The last bytes of the body, as they came: some KB, where there are so many."""
        return self._late + self._before_last + self._last_chunk

    def ask(self, asker: Asker, request: bytes, *, to_head: bool) -> None:
        """Send *request*, whole, on behalf of *asker*."""
        self.phase = _HEAD
        self._asker = asker
        self._to_head = to_head
        self._has_begun = False
        self.bytes_passed = 0
        self.requests += 1
        ours: object = self.transport
        if self.requests == 1 and isinstance(ours, SocketTransport):
            # In a crowd, the engine begins with the first while the last are still being read.
            ours.write_now(request)
        else:
            self.transport.write(request)

    def hand_over(self, asker: Asker) -> None:
        """Tell *asker* from now on: the answer has not begun."""
        self._asker = asker

    def close(self) -> None:
        """Let go of the connection; nobody is told."""
        self.phase = _CLOSED
        self._asker = None
        self.transport.close()

    def abort(self) -> None:
        """Cut the connection at once, so that the engine notices that nobody listens."""
        self.phase = _CLOSED
        self._asker = None
        self.transport.abort()

    @property
    def may_leave(self) -> bool:
        """Whether ``leave`` can be told to the engine: it has the request, and has not begun."""
        return (
            self.phase is _HEAD
            and self.transport.can_write_eof()
            and not self.transport.get_write_buffer_size()
        )

    def leave(self, on_gone: Callable[[], None]) -> None:
        """Hang up, and call *on_gone* when the engine has let go of the request as well.

        A cut frees no sooner, but would not tell when: docs/adr/0010.
        """
        self.phase = _LEFT
        self._asker = None
        self._on_gone = on_gone
        self.transport.write_eof()
        self.resume_reading()

    def pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # What the loop calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of asyncio.Transport, so this cannot be asserted.
        self.transport = cast("asyncio.Transport", transport)
        self.phase = _IDLE
        if self._on_made is not None:
            on_made, self._on_made = self._on_made, None
            on_made()

    def data_received(self, data: bytes) -> None:
        if self.phase is _BETWEEN_CHUNKS and is_one_chunk(data):
            # The streaming path: nobody is asked and nothing is copied.
            self.bytes_passed += len(data)
            self._before_last = self._last_chunk
            self._last_chunk = data
            sink = self._sink
            if sink is not None:  # and so called without the interpreter in between
                sink.write_now(data)
            else:
                self._write(data)
            return
        asker = self._asker
        if self.phase is _LEFT:
            pass
        elif asker is None:
            self.close()  # what nobody asked for is never the answer to the next request
        elif self.phase is _HEAD:
            self._read_head(asker, data)
        else:
            self._read_body(asker, data)

    def eof_received(self) -> bool:
        return False  # closing our half, too: whoever has said all has nothing to hear

    def pause_writing(self) -> None:
        """Nothing to pause: a request is one write, bounded by MAX_REQUEST_BODY_SIZE."""

    def resume_writing(self) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        asker, phase, may_insert = self._asker, self.phase, self.may_insert_event
        self._asker = None
        self.phase = _CLOSED
        if self._on_gone is not None:
            self._on_gone()
        if asker is None:
            return
        if phase is _HEAD:
            is_stale = self.requests > 1 and not self._received and not self._has_begun
            kind = UpstreamClosedKept if is_stale else UpstreamError
            asker.on_upstream_failed(kind("The engine closed the connection before it responded."))
        elif self._framing is Framing.CLOSE and exc is None:
            if self._reads_chunks:
                self._pass_on(LAST_CHUNK)
            asker.on_response_done()
        else:
            broken = UpstreamError(
                "The engine closed the connection before its response was complete."
            )
            asker.on_cut(broken, may_insert=may_insert)

    # The answer's head --------------------------------------------------------------------------

    def _read_head(self, asker: Asker, data: bytes) -> None:
        if not self._received and not self._to_head:
            end, length = self._known.match(data)
            if end >= 0:
                self._begin_body(asker, self._answer, length, data[end:])
                return
        self._received += data
        try:
            found = self._take_head()
            if found:
                answer, length = self._understand(*found)
                rest, self._received = self._received, b""
                self._begin_body(asker, answer, length, rest)
        except UpstreamError as error:
            self.abort()
            asker.on_upstream_failed(error)

    def _take_head(self) -> tuple[bytes, ResponseHead] | None:
        """The final head out of what has been received; None when it is not there yet.

        Raises:
            UpstreamError: it is too long, no HTTP, or takes up an upgrade nobody offered.
        """
        while True:
            end = self._received.find(HEAD_END) + len(HEAD_END)
            if max(end, len(self._received) if end < len(HEAD_END) else 0) > MAX_HEAD_BYTES:
                raise UpstreamError("The head of the engine's response is too long.")
            if end < len(HEAD_END):
                check_response_start(self._received)
                return None
            raw, self._received = self._received[:end], self._received[end:]
            head = parse_response(raw)
            if head.status == 101:
                raise UpstreamError("The engine switched protocols without a request to do so.")
            if head.status >= 200:
                return raw, head
            self._has_begun = True  # an interim answer; the final one follows

    def _understand(self, raw: bytes, head: ResponseHead) -> tuple[Answer, int]:
        """The answer that *head* begins, and its length; *raw* is kept for its repetition.

        Raises:
            UpstreamError: its framing is double or malformed.
        """
        read = read_response(head.fields, status=head.status, to_head=self._to_head)
        answer = Answer(head, read)
        # What an answer to HEAD means is another thing, and its pattern would not say so.
        self._known = NO_HEAD
        if not self._to_head:
            self._known = KnownHead(raw, read.length)
            self._keeper.last_head = self._known, answer
        return answer, read.length or 0

    # The answer's body --------------------------------------------------------------------------

    def _begin_body(self, asker: Asker, answer: Answer, length: int, rest: bytes) -> None:
        self._answer = answer
        framing = answer.framing
        if framing is _LENGTH and len(rest) == length and answer.may_persist:
            # All there at once, as most are that are no stream. Whoever is told may ask again
            # at once, so the connection is kept before.
            self._asker = None
            self.phase = _IDLE
            self._keeper.give_back(self)
            asker.on_whole_response(answer, rest)
            return
        self._framing = framing
        self._may_persist = answer.may_persist
        head = asker.on_response(answer, length)
        self._reads_chunks = asker.reads_chunks
        sink = self._sink = asker.sink
        self._write = asker.write if sink is None else sink.write_now
        self.phase = _BODY
        if framing is Framing.CHUNKED:
            self._chunked = ChunkedBody()
        self._left = length
        self.opening = self._late = self._before_last = b""
        self._read_body(asker, rest, head)

    def _pass_on(self, data: bytes) -> None:
        self.bytes_passed += len(data)
        self._write(data)

    def _read_body(self, asker: Asker, data: bytes, head: bytes = b"") -> None:
        """Pass on what belongs to the answer; *head* goes out before it, in the same write."""
        if self._last_chunk:
            self._chunked.tail = self.tail
            self._add_to_late(self._before_last + self._last_chunk)
            self._before_last = self._last_chunk = b""
        try:
            taken, body = self._follow(data)
        except ChunkedError:
            if head:
                self._pass_on(head)
            self.abort()
            error = UpstreamError("The engine's response has invalid chunked coding.")
            asker.on_cut(error, may_insert=False)
            return
        if head or body:
            self._pass_on(head + body)
        if taken:
            self._keep(asker, data)
        if self._is_complete():
            self._finish(asker, has_surplus=taken < len(data))
        elif self._framing is Framing.CHUNKED and self._reads_chunks and self.opening:
            self.phase = _BETWEEN_CHUNKS if self._chunked.is_between_chunks else _BODY

    def _keep(self, asker: Asker, data: bytes) -> None:
        """Keep what tells, once all is over, how many tokens there were."""
        if not self.opening and (not self._answer.is_event_stream or _EVENT in data):
            # Comments come before: they only say that there is nothing to say yet.
            self.opening = data[:OPENING_BYTES]
            if self._answer.is_event_stream:
                asker.on_first_event()
        self._add_to_late(data)

    def _add_to_late(self, data: bytes) -> None:
        """What came before stays: an event that did not come in one read may tell the tokens."""
        self._late = data if len(data) >= ENDING_BYTES else self._late[-ENDING_BYTES:] + data

    def _follow(self, data: bytes) -> tuple[int, bytes]:
        """How much of *data* belongs to the answer, and what of it the client gets."""
        match self._framing:
            case Framing.CHUNKED if self._reads_chunks:
                taken = self._chunked.feed(data)
            case Framing.CHUNKED:
                body = bytearray()
                return self._chunked.feed(data, body), bytes(body)
            case Framing.CLOSE if self._reads_chunks:
                return len(data), frame(data) if data else b""
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
        if self._may_persist and not has_surplus and not self.transport.is_closing():
            self.phase = _IDLE
            # A client that was slow to the end has left the reading paused.
            self.transport.resume_reading()
            self._keeper.give_back(self)
        else:
            self.close()
        asker.on_response_done()
