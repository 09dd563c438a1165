"""One connection to llama-server.

It sends a request and relays the response. An event of a stream is one whole chunk in one read: it
costs a look at its size line and one write to the client's transport, nothing else. Where a body
ends is decided in ``http1/response_body.py``, what is kept for counting tokens in
``telemetry/response_window.py``.

Rule: ``phase`` decides how incoming bytes are interpreted, and every change of it is in
``TRANSITIONS``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Final, Protocol

from llama_gguf.errors import (
    IllegalTransition,
    UpstreamBusy,
    UpstreamClosedKept,
    UpstreamError,
    UpstreamLost,
)
from llama_gguf.http1.chunked import TAIL_BYTES, ChunkedError, is_one_chunk
from llama_gguf.http1.engine_errors import MAX_BYTES as MAX_CORRECTED_BYTES
from llama_gguf.http1.fields import Framing, read_response
from llama_gguf.http1.known_head import NO_HEAD, KnownHead
from llama_gguf.http1.parser import HEAD_END, check_response_start, parse_response
from llama_gguf.http1.response import Response, ResponseHead
from llama_gguf.http1.response_body import ResponseBody
from llama_gguf.net.transport import Receiver, Transport
from llama_gguf.telemetry.response_window import ResponseWindow

MAX_HEAD_BYTES: Final = 65536
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_COMMENTS: Final = re.compile(rb"(?:(?:[0-9a-fA-F]+\r\n)?(?::[^\n]*\n\n)+(?:\r\n)?)*")
"""Comments of a stream alone, each whole, with or without the lines of the chunked coding."""


class Phase(enum.IntEnum):
    IDLE = 0  # kept for reuse, or not used yet: any byte that arrives is unexpected
    HEAD = 1  # a request was sent; the response's head is awaited
    BODY = 2  # the response's body is being read
    BETWEEN_CHUNKS = 3  # in a chunked body, at the end of a chunk: the next may be relayed whole
    ABANDONED = 4  # the client has disconnected; the connection stays open until the engine notices
    CLOSED = 5  # not connected yet, or closed


P = Phase
TRANSITIONS: Final[dict[Phase, frozenset[Phase]]] = {
    P.CLOSED: frozenset({P.IDLE, P.CLOSED}),
    P.IDLE: frozenset({P.HEAD, P.CLOSED}),
    # A response in one read is over when its head has been read.
    P.HEAD: frozenset({P.IDLE, P.BODY, P.ABANDONED, P.CLOSED}),
    P.BODY: frozenset({P.BETWEEN_CHUNKS, P.IDLE, P.CLOSED}),
    P.BETWEEN_CHUNKS: frozenset({P.BODY, P.IDLE, P.CLOSED}),
    P.ABANDONED: frozenset({P.CLOSED}),
}
"""From each phase, those that may follow."""

# What the hot path uses: looking up a member of an enum takes a call each time.
_IDLE: Final = P.IDLE
_HEAD: Final = P.HEAD
_BODY: Final = P.BODY
_BETWEEN_CHUNKS: Final = P.BETWEEN_CHUNKS
_ABANDONED: Final = P.ABANDONED
_CLOSED: Final = P.CLOSED
_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED
# Before the first response. Nothing is ever added to them.
_NO_BODY: Final = ResponseBody(Framing.NONE, 0, reads_chunks=True)
_NO_WINDOW: Final = ResponseWindow(is_event_stream=False)


class ResponseReceiver(Protocol):
    """The client's side of the exchange."""

    @property
    def transport(self) -> Transport:
        """Receives the response's bytes."""
        ...

    @property
    def reads_chunks(self) -> bool:
        """False for HTTP/1.0: it receives a chunked body decoded."""
        ...

    @property
    def holds_head(self) -> bool:
        """Whether the head of a stream is passed on with the first event, and not before."""
        ...

    def on_whole_response(self, response: Response, body: bytes) -> None: ...
    def on_response(self, response: Response, length: int) -> bytes: ...
    def on_body_begun(self) -> None: ...
    def on_response_done(self) -> None: ...
    def on_upstream_failed(self, error: UpstreamError) -> None: ...
    def on_cut(self, error: UpstreamError, *, may_insert: bool, has_begun: bool) -> None: ...


class Owner(Protocol):
    """Keeps connections for later requests: ``pool.py``."""

    last_head: tuple[KnownHead, Response] | None
    """The last head that was parsed: a new connection mostly begins with the same."""

    passes_refusals: bool
    """Whether clients get the engine's 429 and 503."""

    def give_back(self, connection: UpstreamConnection) -> None: ...
    def give_back_after_stream(self, connection: UpstreamConnection) -> None: ...


class UpstreamConnection(Receiver):
    """An ``asyncio.Protocol`` by its methods; compiled classes do not inherit from it.

    Args:
        pool: receives the connection when a response is over.
        on_made: called once it is connected.
    """

    __slots__ = (
        "_body",
        "_client_transport",
        "_is_head_request",
        "_known",
        "_on_gone",
        "_on_made",
        "_pool",
        "_received",
        "_receiver",
        "_response",
        "_saw_interim",
        "bytes_passed",
        "had_stream",
        "idle_since",
        "phase",
        "requests",
        "transport",
        "window",
    )

    def __init__(self, pool: Owner, on_made: Callable[[], None] | None = None) -> None:
        self._pool = pool
        self._on_made = on_made
        self.transport: Transport
        self.phase = _CLOSED
        self._receiver: ResponseReceiver | None = None
        self._client_transport: Transport
        """To which the response is written."""
        self._received = b""
        """Of a head that is not complete."""
        self._saw_interim = False
        """An interim response has arrived."""
        self._is_head_request = False
        self._on_gone: Callable[[], None] | None = None
        # The engine repeats its heads too: the last one is kept with its meaning.
        self._known: KnownHead = NO_HEAD
        self._response: Response
        if pool.last_head is not None:
            self._known, self._response = pool.last_head
        self._body = _NO_BODY
        self.window = _NO_WINDOW
        self.bytes_passed = 0
        """Bytes of the response that the client was sent, its head included."""
        self.requests = 0
        self.had_stream = False
        """It is reused after a stream, so most likely for another one."""
        self.idle_since = 0.0

    def _to(self, phase: Phase) -> None:
        if phase not in TRANSITIONS[self.phase]:
            raise IllegalTransition(f"{self.phase.name} to {phase.name}")
        self.phase = phase

    # What the client's side calls ---------------------------------------------------------------

    @property
    def owner(self) -> Owner:
        """The pool of its engine."""
        return self._pool

    @property
    def may_insert_event(self) -> bool:
        """Whether an event of the gateway may follow: between chunks, after no partial event."""
        tail = self.tail
        return (
            self.phase in (_BODY, _BETWEEN_CHUNKS)
            and self._body.is_between_chunks
            and self._response.is_event_stream
            # After an event that is not whole, another would become a part of it.
            and (not tail or tail.endswith(_EVENT_ENDS))
        )

    @property
    def has_begun(self) -> bool:
        """Whether the client has received what no other response can continue.

        That is any of the body, where comments of a stream do not count; and of any response other
        than a stream, the head, which may have been another.
        """
        response = self._response
        if not response.is_event_stream or response.framing is _LENGTH:
            return True
        return bool(self.window.opening) or _COMMENTS.fullmatch(self.window.ending) is None

    @property
    def bytes_received(self) -> int:
        """Bytes of the response, with those that the client has not been sent yet."""
        return self.bytes_passed + len(self._received)

    @property
    def tail(self) -> bytes:
        """The last bytes of a chunked body."""
        chunk = self.window.last_chunk
        return chunk[-TAIL_BYTES - 2 : -2] if chunk else self._body.tail

    def send(self, receiver: ResponseReceiver, request: bytes, *, is_head_request: bool) -> None:
        """Send *request*, whole, on behalf of *receiver*."""
        if self.phase is not _IDLE:  # as _to, which would cost each request a call
            raise IllegalTransition(f"{self.phase.name} to HEAD")
        self.phase = _HEAD
        self._receiver = receiver
        self._is_head_request = is_head_request
        self._saw_interim = False
        self.bytes_passed = 0
        self.requests += 1
        if self.requests == 1 or self.had_stream:
            # Of many streams, the engine begins with the first while others are read.
            self.transport.write_now(request)
        else:
            self.transport.write(request)

    def hand_over(self, receiver: ResponseReceiver) -> None:
        """Call *receiver* from now on: the response has not begun."""
        self._receiver = receiver

    def close(self) -> None:
        """Close the connection without calling the receiver."""
        self._to(_CLOSED)
        self._receiver = None
        self.transport.close()

    def abort(self) -> None:
        """Cut the connection at once, so that the engine stops working on the request."""
        self._to(_CLOSED)
        self._receiver = None
        self.transport.abort()

    @property
    def may_leave(self) -> bool:
        """Whether the engine can notice ``leave``: it has the request, and has not begun."""
        return (
            self.phase is _HEAD
            and HEAD_END not in self._received
            and self.transport.can_write_eof()
            and not self.transport.get_write_buffer_size()
        )

    def leave(self, on_gone: Callable[[], None]) -> None:
        """Close our half, and call *on_gone* when the engine has dropped the request as well.

        A cut frees the slot no sooner, but would not show when: docs/adr/0010.
        """
        self._to(_ABANDONED)
        self._receiver = None
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

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self._to(_IDLE)
        if self._on_made is not None:
            on_made, self._on_made = self._on_made, None
            on_made()

    def data_received(self, data: bytes) -> None:
        if self.phase is _BETWEEN_CHUNKS and is_one_chunk(data):
            # The streaming path: no callback, no copy.
            self.bytes_passed += len(data)
            window = self.window
            window.before_last = window.last_chunk
            window.last_chunk = data
            self._client_transport.write_now(data)
            return
        receiver = self._receiver
        if self.phase is _ABANDONED:
            pass
        elif receiver is None:
            self.close()  # bytes without a request are never the response to the next one
        elif self.phase is _HEAD:
            self._read_head(receiver, data)
        else:
            self._read_body(receiver, data)

    def eof_received(self) -> bool:
        return False  # closes our half, too: llama-server sends nothing more

    def pause_writing(self) -> None:
        """Nothing to pause: a request is one write, bounded by MAX_REQUEST_BODY_SIZE."""

    def resume_writing(self) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        receiver, phase, may_insert = self._receiver, self.phase, self.may_insert_event
        self._receiver = None
        self._to(_CLOSED)
        if self._on_gone is not None:
            self._on_gone()
        if receiver is None:
            return
        if phase is _HEAD:
            is_stale = self.requests > 1 and not self._received and not self._saw_interim
            kind = UpstreamClosedKept if is_stale else UpstreamLost
            receiver.on_upstream_failed(
                kind("The engine closed the connection before it responded.")
            )
            return
        end = self._body.end() if exc is None else None
        if end is None:
            broken = UpstreamLost(
                "The engine closed the connection before its response was complete."
            )
            receiver.on_cut(broken, may_insert=may_insert, has_begun=self.has_begun)
            return
        if end:
            self._pass_on(end)
        receiver.on_response_done()

    # The response's head ------------------------------------------------------------------------

    def _read_head(self, receiver: ResponseReceiver, data: bytes) -> None:
        if not self._received and not self._is_head_request:
            end, length = self._known.match(data)
            if end >= 0:
                rest = data[end:]
                if not self._awaits(receiver, self._response, length, rest):
                    self._begin_body(receiver, self._response, length, rest)
                    return
        self._received += data
        try:
            found = self._take_head()
            if found is None:
                return
            response, length = self._understand(*found)
            rest = self._received
            if self._awaits(receiver, response, length, rest):
                self._received = found[0] + rest
                return
            self._received = b""
            self._begin_body(receiver, response, length, rest)
        except UpstreamError as error:
            self.abort()
            receiver.on_upstream_failed(error)

    def _awaits(
        self, receiver: ResponseReceiver, response: Response, length: int, rest: bytes
    ) -> bool:
        """Whether the head, and *rest* behind it, are passed on with more of the body, and not yet.

        Until then, another engine can still respond. The head of a stream is passed on at once,
        since llama-server sends it long before its first event, unless the receiver holds it: then
        it waits for an event, and comments wait with it. Short errors are passed on whole, since
        some are corrected.
        """
        if response.is_event_stream:
            return receiver.holds_head and _COMMENTS.fullmatch(rest) is not None
        if rest:
            may_be_corrected = response.is_correctable and length <= MAX_CORRECTED_BYTES
            return may_be_corrected and len(rest) < length
        return response.framing is _CHUNKED or (response.framing is _LENGTH and length > 0)

    def _take_head(self) -> tuple[bytes, ResponseHead] | None:
        """The final head of what has been received; None while it is not complete.

        Raises:
            UpstreamError: it is too long, not HTTP, or accepts an upgrade that was not requested.
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
            self._saw_interim = True  # an interim response; the final one follows

    def _understand(self, raw: bytes, head: ResponseHead) -> tuple[Response, int]:
        """The meaning of *head*, and the body's length; *raw* is kept for its repetition.

        Raises:
            UpstreamError: its framing is ambiguous or malformed.
        """
        read = read_response(head.fields, status=head.status, is_head_request=self._is_head_request)
        response = Response(head, read)
        # A response to HEAD means something else by the same bytes, so it is not kept.
        self._known = NO_HEAD
        if not self._is_head_request:
            self._known = KnownHead(raw, read.length)
            self._pool.last_head = self._known, response
        return response, read.length or 0

    # The response's body ------------------------------------------------------------------------

    def _begin_body(
        self, receiver: ResponseReceiver, response: Response, length: int, rest: bytes
    ) -> None:
        self._response = response
        framing = response.framing
        if response.is_refusal and not self._pool.passes_refusals:
            self.abort()
            receiver.on_upstream_failed(
                UpstreamBusy("The engine refused the request.", retry_after=response.retry_after)
            )
            return
        if (
            framing is _LENGTH
            and len(rest) == length
            and (response.keep_alive or response.is_correctable)
        ):
            # All of it in one read, as most responses that are not streams. The client may send
            # the next request at once, so the connection is returned before the client has this.
            self._receiver = None
            if response.keep_alive:
                self.phase = _IDLE  # from HEAD, as _to, which would cost each request a call
                self._pool.give_back(self)
            else:
                self.close()
            receiver.on_whole_response(response, rest)
            return
        head = receiver.on_response(response, length)
        self._client_transport = receiver.transport
        self._body = ResponseBody(framing, length, reads_chunks=receiver.reads_chunks)
        self.window = ResponseWindow(is_event_stream=response.is_event_stream)
        self._to(_BODY)
        self._read_body(receiver, rest, head)

    def _pass_on(self, data: bytes) -> None:
        self.bytes_passed += len(data)
        self._client_transport.write_now(data)

    def _read_body(self, receiver: ResponseReceiver, data: bytes, head: bytes = b"") -> None:
        """Relay what belongs to the response; *head* is sent before it, in the same write."""
        body, window = self._body, self.window
        if window.last_chunk:
            body.follow_chunks(self.tail)
            window.join_chunks()
        try:
            taken, relayed = body.feed(data)
        except ChunkedError:
            if head:
                self._pass_on(head)
            self.abort()
            error = UpstreamError("The engine's response has invalid chunked coding.")
            receiver.on_cut(error, may_insert=False, has_begun=self.has_begun)
            return
        if head or relayed:
            self._pass_on(head + relayed)
        if taken and window.add(data):
            receiver.on_body_begun()
        if body.is_complete:
            self._finish(receiver, has_surplus=taken < len(data))
        elif body.is_relayed and window.opening:
            phase = _BETWEEN_CHUNKS if body.is_between_chunks else _BODY
            if phase is not self.phase:
                self._to(phase)

    def _finish(self, receiver: ResponseReceiver, *, has_surplus: bool) -> None:
        self._receiver = None
        if self._response.keep_alive and not has_surplus and not self.transport.is_closing():
            self._to(_IDLE)
            # A client that was slow until the end has left reading paused.
            self.transport.resume_reading()
            if self._response.framing is _CHUNKED:
                self.had_stream = True
                self._pool.give_back_after_stream(self)
            else:
                self._pool.give_back(self)
        else:
            self.close()
        receiver.on_response_done()
