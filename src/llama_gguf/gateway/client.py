"""One client's connection: requests come in one after the other, answers go out in that order.

What the bytes that come in are is told by the exchange alone: without one they
are a head, while it is READING they are its body, later they are the next
request, held back until this one is answered.

Once a head has gone out, the only honest way to report a failure is to cut the
connection (or, in an event stream, to send an error event and close).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from llama_gguf.core import replies
from llama_gguf.core.admission import Verdict
from llama_gguf.core.chunked import ChunkedBody, ChunkedError, frame
from llama_gguf.core.exchange import PHASES, Event, Exchange, State
from llama_gguf.core.fields import (
    Framing,
    RequestFields,
    ResponseFields,
    find,
    invalid_key,
    presented_key,
    read_request,
)
from llama_gguf.core.routes import Kind, Route
from llama_gguf.errors import (
    BadRequest,
    ConcurrencyLimited,
    GatewayError,
    HeadTooLarge,
    KeyExpired,
    Limited,
    PayloadTooLarge,
    QueueFull,
    QueueTimeout,
    RequestTimeout,
    Unauthorized,
    UpstreamError,
    UpstreamTimeout,
    UriTooLong,
)
from llama_gguf.gateway.heads import (
    HEAD_END,
    RequestHead,
    ResponseHead,
    parse_request,
    split_length,
)

if TYPE_CHECKING:
    from llama_gguf.gateway.shared import Principal, Shared
    from llama_gguf.gateway.upstream import UpstreamConnection

_log: Final = logging.getLogger(__name__)

HIGH_WATER_BYTES: Final = 65536
"""Of an answer that waits for a slow reader; beyond it, the engine is paused."""
MAX_HELD_BYTES: Final = 65536
"""Of requests sent ahead; beyond it, reading pauses."""
MAX_SKIPPED_BYTES: Final = 65536
"""Of a refused body that is read over, so that the connection can be used again."""
LINGER_SECONDS: Final = 2.0
"""For a client that is still sending to read its answer before the connection goes."""
NO_DEADLINE: Final = math.inf
DECODED_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
EVENT_ENDS: Final = (b"\n\n\r\n", b"\r\n\r\n\r\n")
"""The end of a whole event, with the end of its chunk."""
TAIL_BYTES: Final = 6

# socket(7), SO_LINGER: on, for no time at all.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# linux/include/net/tcp_states.h
_TCP_CLOSE: Final = 7
_TCP_CLOSE_WAIT: Final = 8
_NO_ROUTE: Final = Route(Kind.REFUSED, "refused")
_NO_FIELDS: Final = RequestFields()


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        "_body",
        "_body_left",
        "_chunked",
        "_connecting",
        "_cors",
        "_deadline_is_silence",
        "_exchange",
        "_has_head_begun",
        "_has_retried",
        "_heard",
        "_holds_slot",
        "_is_event_stream",
        "_is_lingering",
        "_is_paused",
        "_is_write_paused",
        "_last",
        "_last_key",
        "_may_persist",
        "_must_linger",
        "_principal",
        "_rate_fields",
        "_read",
        "_received",
        "_request",
        "_reserved_bytes",
        "_route",
        "_shared",
        "_skip",
        "_tail",
        "_transport",
        "_upstream",
        "address",
        "deadline",
        "key_id",
        "limit",
        "reads_chunks",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: asyncio.Transport
        self.address = "-"
        self.deadline = NO_DEADLINE
        """When ``on_deadline`` is due, on the loop's clock."""
        self.limit = NO_DEADLINE
        """When the whole answer has to be out (MAX_REQUEST_DURATION)."""
        self._received = b""
        self._skip = 0
        self._is_lingering = False
        self._is_paused = False
        self._is_write_paused = False
        self._may_persist = False
        self._must_linger = False
        # From the connection on: whoever connects has something to say.
        self._has_head_begun = True
        self._exchange: Exchange | None = None
        self._upstream: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._holds_slot = False
        self._reserved_bytes = 0
        self._heard = False
        self._deadline_is_silence = False
        self.key_id = "-"
        # A connection mostly repeats its head: what was found in the last one is kept.
        self._last_key = b""
        self._last: tuple[RequestHead, RequestFields]
        self._forget_request()

    def _forget_request(self) -> None:
        self._request: RequestHead | None = None
        self._read = _NO_FIELDS
        self._route = _NO_ROUTE
        self._principal: Principal | None = None
        # One object whatever the pieces: a body sent byte by byte must not cost fifty times it.
        self._body: bytes | bytearray = b""
        self._body_left = 0
        self._chunked: ChunkedBody | None = None
        self._cors = b""
        self._rate_fields = b""
        self.reads_chunks = True
        self._has_retried = False
        self._is_event_stream = False
        self._tail = b""
        self.limit = NO_DEADLINE

    # What the loop calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of asyncio.Transport, so this cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        shared = self._shared
        shared.connections.add(self)
        self.deadline = self._head_deadline()
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        if len(shared.connections) > shared.settings.max_connections:
            self._refuse_connection()

    def data_received(self, data: bytes) -> None:
        try:
            exchange = self._exchange
            if exchange is None:
                self._received = self._received + data if self._received else data
                self._next_request()
            elif exchange.state is State.READING:
                self._read_body(data)
            else:
                self._hold(data)
        except GatewayError as error:
            self._reply_error(error)
        # The one place where a bug of ours is caught: it must not take the others down.
        except Exception:
            _log.exception("a bug, please report it; the connection is cut")
            self._transport.abort()

    def eof_received(self) -> bool:
        # Whoever closes its half has left: nothing distinguishes it from a client that is gone,
        # and the GPU is not kept busy on the chance that it is not.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self.deadline = self.limit = NO_DEADLINE
        if self._exchange is None:
            return
        phase = PHASES[self._exchange.state]
        self._shared.metrics.client_disconnects[phase] += 1
        if not self._exchange.status:
            self._exchange.status = 499  # nginx's word for it, known to every log reader
        self._abandon(f"client_left:{phase}")

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._heard = True
        if self._upstream is not None:
            self._upstream.resume_reading()

    # Deadlines ----------------------------------------------------------------------------------

    def _head_deadline(self) -> float:
        return self._shared.now() + self._shared.settings.client_header_timeout

    def on_tick(self, now: float) -> None:
        """Twice a second: look whether something is overdue."""
        if self._heard:
            self._heard = False
            if self._deadline_is_silence:
                self.deadline = now + self._shared.settings.request_timeout
        if self._is_paused and self._has_left():
            self._transport.abort()
        elif now >= self.limit:
            self._give_up_upstream(UpstreamTimeout("The answer took longer than is allowed."))
        elif now >= self.deadline:
            self._on_deadline()

    def _has_left(self) -> bool:
        """Ask the kernel, since with reading paused nobody tells us."""
        sock = self._transport.get_extra_info("socket")
        try:
            # tcp(7): the first byte of struct tcp_info is the state.
            state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except (AttributeError, OSError):  # a unix socket, or not Linux
            return False
        return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)

    def _on_deadline(self) -> None:
        exchange = self._exchange
        self.deadline = NO_DEADLINE
        if exchange is None:
            self._on_idle_deadline()
            return
        match exchange.state:
            case State.READING:
                self._reply_error(RequestTimeout("The body did not come in time.", close=True))
            case State.QUEUED:
                self.on_refused(self._queue_timeout())
            case _ if self._is_write_paused:
                self._reset()  # it is the client that does not move
            case _:
                timeout = self._shared.settings.request_timeout
                self._give_up_upstream(
                    UpstreamTimeout(f"The engine has been silent for {timeout:g} seconds.")
                )

    def _on_idle_deadline(self) -> None:
        if self._received and not self._is_lingering:
            self._reply_error(RequestTimeout("The head did not come in time.", close=True))
        elif self._is_lingering:
            self._transport.abort()
        else:
            self._close()

    def _queue_timeout(self) -> GatewayError:
        shared = self._shared
        if not shared.engine_is_ready:
            return shared.unavailable()
        return QueueTimeout("No slot came free in time.", retry_after=1.0)

    # A request's head ---------------------------------------------------------------------------

    def _next_request(self) -> None:
        """Take the next whole head out of what has been received."""
        if self._is_lingering:
            self._received = b""
            return
        if self._skip:
            skipped = min(self._skip, len(self._received))
            self._skip -= skipped
            self._received = self._received[skipped:]
        if self._received.startswith(b"\r\n"):  # RFC 9112 section 2.2: an empty line or more
            self._received = self._received.lstrip(b"\r\n")
        received = self._received
        end = received.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            self._check_sizes(received)
            if received and not self._has_head_begun:
                self._has_head_begun = True
                self.deadline = self._head_deadline()
            return
        head, self._received = received[:end], received[end:]
        self._check_sizes(head)
        self._on_head(head)

    def _check_sizes(self, head: bytes) -> None:
        """Bound what a head may be, complete or not.

        Raises:
            UriTooLong, HeadTooLarge: it is over a limit.
        """
        settings = self._shared.settings
        if len(head) <= min(settings.max_request_line_size, settings.max_header_line_size):
            return
        lines = head.split(b"\r\n")
        if len(lines[0]) > settings.max_request_line_size:
            raise UriTooLong(
                f"The request line is over {settings.max_request_line_size} bytes.", close=True
            )
        longest = max(map(len, lines[1:]), default=0)
        if longest > settings.max_header_line_size or len(head) > self._shared.max_head_bytes:
            raise HeadTooLarge("The header fields are too long.", close=True)

    def _on_head(self, head: bytes) -> None:
        key, length = split_length(head)
        if key == self._last_key:
            request, read = self._last
            if length is not None:
                read.content_length = length
            self._begin_exchange(request.method_text, request.path_text)
            self._on_request(request, read)
            return
        request = parse_request(head)
        self._begin_exchange(request.method_text, request.path_text)
        self._request = request
        if len(request.fields) > self._shared.settings.max_headers:
            raise HeadTooLarge("There are too many header fields.", close=True)
        keep = self._shared.keeps_credentials
        read = read_request(request.fields, version=request.version, keep_credentials=keep)
        read.forwarded = [b"".join(read.forwarded)]
        self._last_key, self._last = key, (request, read)
        self._on_request(request, read)

    def _on_request(self, request: RequestHead, read: RequestFields) -> None:
        """The head is understood: answer it here, or check it and go on with its body."""
        exchange = self._current()
        self._request = request
        self._read = read
        if read.request_id is not None:
            exchange.request_id = read.request_id.decode("ascii")
        self._cors = self._shared.cors.fields(read.origin)
        self.reads_chunks = request.version == "1.1"
        self._may_persist = self.reads_chunks and b"close" not in read.connection
        self._body_left = read.content_length or 0
        if read.is_chunked:
            self._chunked = ChunkedBody()
        route = self._shared.router.route(request.method, request.path)
        self._route = route
        exchange.route = route.label
        if route.kind is Kind.PROXIED:
            self._check_client(exchange)
            if route.needs_slot:
                self._check_rate()
            self._want_body()
        elif route.error is not None:
            self._reply_error(route.error)
        else:
            self._answer(route.kind, request)

    def _begin_exchange(self, method: str, path: str) -> Exchange:
        shared = self._shared
        exchange = Exchange(shared.now(), method, path, shared.next_request_id())
        self._exchange = exchange
        self.deadline = NO_DEADLINE
        self._may_persist = False
        return exchange

    # Our own paths ------------------------------------------------------------------------------

    def _answer(self, kind: Kind, request: RequestHead) -> None:
        shared = self._shared
        match kind:
            case Kind.PING:
                self._reply(200, b"")
            case Kind.HEALTH:
                self._reply(*shared.health(), content_type=replies.JSON)
            case Kind.METRICS:
                if shared.settings.metrics_auth_enabled:
                    self._check_client(self._current())
                body, content_type = self._metrics(request)
                self._reply(200, body, content_type=content_type)
            case Kind.PREFLIGHT:
                self._reply(204, b"", shared.cors.preflight(request.fields, self._read.origin))
            case _:
                self._check_client(self._current())
                loaded = b'{"status":"ok","keys_loaded":%d}' % shared.load_keys()
                self._reply(200, loaded, content_type=replies.JSON)

    def _metrics(self, request: RequestHead) -> tuple[bytes, bytes]:
        """The metrics and their content type: JSON, or what a scraper asks for."""
        shared = self._shared
        accept = (find(request.fields, b"accept") or b"").decode("latin-1")
        query = request.target.partition(b"?")[2].split(b"&")
        wants_text = b"format=prometheus" in query
        if wants_text or "openmetrics" in accept or "text/plain" in accept:
            # Imported at the first scrape: the gateway starts without it.
            from llama_gguf.gateway.exposition import render  # noqa: PLC0415

            return render(shared.metrics, shared.gauges(), accept)
        return shared.metrics_json(), replies.JSON

    # Who asks -----------------------------------------------------------------------------------

    def _check_client(self, exchange: Exchange) -> None:
        """Find out who asks.

        Raises:
            Unauthorized, KeyExpired: nobody who may.
            Limited: this address has tried too many wrong keys.
        """
        shared = self._shared
        if not shared.settings.auth_enabled:
            self.key_id = exchange.key_id = "-"
            return
        now = exchange.started_at
        wait = shared.failures.retry_after(self.address, now)
        if wait:
            raise Limited("Too many wrong keys from this address.", retry_after=wait)
        try:
            principal = shared.principal_of(presented_key(self._read))
            if principal is None:
                raise invalid_key()
            if principal.key.is_expired(shared.wall):
                raise KeyExpired("This API key has expired.")
        except Unauthorized:
            shared.failures.failed(self.address, now)
            raise
        self._principal = principal
        self.key_id = exchange.key_id = principal.key.key_id

    def _check_rate(self) -> None:
        principal = self._principal
        if principal is None:
            return
        now = self._current().started_at
        window = principal.window
        wait = window.hit(now)
        # Reset is when nothing counts any more: after a hit, a whole window from now.
        reset = window.reset(now) if wait else window.window
        self._rate_fields = (
            b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\n"
            b"x-ratelimit-reset-requests: %b\r\n"
            % (window.limit, window.left, replies.duration_text(reset))
        )
        if wait:
            self._shared.metrics.rate_limited[self.key_id, "requests"] += 1
            raise Limited(
                f"Over {window.limit} requests in 60 seconds with this key.", retry_after=wait
            )

    # A request's body ---------------------------------------------------------------------------

    def _want_body(self) -> None:
        """Ask for the body, if there is one, within what one request and all of them may hold."""
        shared = self._shared
        if shared.is_draining:
            raise shared.draining()
        if not self._body_left and self._chunked is None:
            self._on_body_read()
            return
        self._check_body_size(self._body_left)
        self._reserve(self._body_left)
        if self._received:
            received, self._received = self._received, b""
            self._read_body(received)
            return
        if self._read.expects_continue:
            self._transport.write(replies.CONTINUE)
        self.deadline = shared.now() + shared.settings.client_body_timeout

    def _check_body_size(self, size: int) -> None:
        largest = self._shared.settings.max_request_body_size
        if size > largest:
            raise PayloadTooLarge(f"The body is over {largest} bytes.", close=True)

    def _reserve(self, size: int) -> None:
        shared = self._shared
        if shared.body_bytes + size > shared.settings.max_body_memory:
            raise QueueFull("Too many bodies are waiting already.", retry_after=1.0)
        shared.body_bytes += size
        self._reserved_bytes += size

    def _read_body(self, data: bytes) -> None:
        if self._chunked is not None:
            self._read_chunks(self._chunked, data)
            return
        left = self._body_left
        if len(data) > left:
            data, self._received = data[:left], data[left:]
        if left == len(data) and not self._body:
            self._body = data  # it came in one piece, as most do
        else:
            self._body = self._body or bytearray()
            self._body += data
        self._body_left = left - len(data)
        if self._body_left:
            self.deadline = self._shared.now() + self._shared.settings.client_body_timeout
        else:
            self._on_body_read()

    def _read_chunks(self, chunked: ChunkedBody, data: bytes) -> None:
        body = self._body if isinstance(self._body, bytearray) else bytearray()
        self._body = body
        before = len(body)
        try:
            taken = chunked.feed(data, body)
        except ChunkedError as error:
            raise BadRequest(f"The body cannot be read: {error}.") from None
        self._check_body_size(len(body))
        self._reserve(len(body) - before)
        if chunked.is_done:
            self._chunked = None
            self._received = data[taken:]
            self._on_body_read()
        else:
            self.deadline = self._shared.now() + self._shared.settings.client_body_timeout

    # To the engine ------------------------------------------------------------------------------

    def _on_body_read(self) -> None:
        """The request is whole: it takes a slot, or waits for one, or needs none."""
        shared = self._shared
        exchange = self._current()
        exchange.bytes_in = len(self._body)
        self.deadline = NO_DEADLINE
        if not shared.engine_is_ready and not (shared.engine_may_come and self._route.needs_slot):
            raise shared.unavailable()
        if not self._route.needs_slot:
            self._forward(exchange)
            return
        match shared.admission.arrive(self):
            case Verdict.GRANTED:
                self._holds_slot = True
                self._forward(exchange)
            case Verdict.QUEUED:
                exchange.on(Event.QUEUE)
                exchange.queued_at = shared.now()
                self.deadline = exchange.queued_at + shared.settings.max_queue_wait
            case Verdict.QUEUE_FULL if not shared.engine_is_ready:
                raise shared.unavailable()
            case Verdict.QUEUE_FULL:
                raise QueueFull("Too many requests are waiting already.", retry_after=1.0)
            case Verdict.KEY_IS_BUSY:
                shared.metrics.rate_limited[self.key_id, "concurrency"] += 1
                raise ConcurrencyLimited(
                    "This key has as many requests here as it may.", retry_after=1.0
                )

    def on_slot(self) -> None:
        """The queue says: it is your turn."""
        self._holds_slot = True
        self._forward(self._current())

    def on_refused(self, error: GatewayError) -> None:
        """The wait is over, and not because a slot came free."""
        self._shared.admission.leave(self)
        self._reply_error(error)

    def _forward(self, exchange: Exchange) -> None:
        exchange.on(Event.FORWARD)
        shared = self._shared
        now = exchange.forwarded_at = shared.now()
        settings = shared.settings
        self.deadline = now + settings.request_timeout
        self._deadline_is_silence = True
        if settings.max_request_duration:
            self.limit = now + settings.max_request_duration
        upstream = shared.pool.take()
        if upstream is None:
            self._connecting = shared.pool.connect(self._on_connected, self._on_connect_failed)
        else:
            self._ask(upstream)

    def _on_connected(self, upstream: UpstreamConnection) -> None:
        self._connecting = None
        self._ask(upstream)

    def _on_connect_failed(self, error: UpstreamError) -> None:
        self._connecting = None
        self._shared.metrics.backend_failures["connect"] += 1
        self._reply_error(error)

    def _ask(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        request = self._request
        assert request is not None
        if self._is_write_paused:
            upstream.pause_reading()
        upstream.ask(self, self._serialised(request), to_head=request.method == b"HEAD")

    def _serialised(self, request: RequestHead) -> bytes:
        """The request as the engine gets it: parsed, and written anew."""
        shared = self._shared
        exchange = self._current()
        return b"".join(
            (
                b"%b %b HTTP/1.1\r\n" % (request.method, request.target),
                shared.upstream_prefix,
                *self._read.forwarded,
                b"x-request-id: ",
                exchange.request_id.encode("ascii"),
                shared.via if self.reads_chunks else shared.via_1_0,
                *self._length_field(request, exchange.bytes_in),
                b"\r\n",
                self._body,
            )
        )

    def _length_field(self, request: RequestHead, size: int) -> tuple[bytes, ...]:
        has_body = size or self._read.is_chunked or self._read.content_length is not None
        if has_body or request.method not in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
            return (b"Content-Length: %d\r\n" % size,)
        return ()

    # The engine's answer ------------------------------------------------------------------------

    def on_response(self, head: ResponseHead, read: ResponseFields) -> bytes:
        """The head of the engine's answer is there; return what the client gets for it."""
        exchange = self._current()
        exchange.on(Event.HEAD_SENT)
        exchange.status = head.status
        exchange.first_byte_at = self._shared.now()
        self._is_event_stream = read.is_event_stream
        self._free_body()
        if self._shared.is_draining:
            self._may_persist = False
        lines = [
            b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason),
            *read.forwarded,
            *self._framing_field(head, read),
            *self._own_fields(has_date=read.has_date),
            b"\r\n",
        ]
        return b"".join(lines)

    def _framing_field(self, head: ResponseHead, read: ResponseFields) -> tuple[bytes, ...]:
        match read.framing:
            case Framing.CHUNKED if self.reads_chunks:
                return (b"Transfer-Encoding: chunked\r\n",)
            case Framing.CHUNKED | Framing.CLOSE:
                self._may_persist = False  # only the end of the connection tells the end
                return ()
            case _ if read.length is not None and head.status != 204:
                return (b"Content-Length: %d\r\n" % read.length,)
            case _:
                return ()

    def _own_fields(self, *, has_date: bool = False) -> list[bytes]:
        """What every answer carries, the engine's and ours."""
        lines = [
            b"x-request-id: %b\r\n" % self._current().request_id.encode("ascii"),
            self._rate_fields,
            self._cors,
        ]
        if not has_date:
            lines.append(self._shared.date)
        if not self._may_persist:
            lines.append(b"Connection: close\r\n")
        return lines

    def send(self, data: bytes) -> None:
        """Pass *data* of the engine's answer on. The streaming path: one write, no copy."""
        exchange = self._exchange
        assert exchange is not None
        exchange.bytes_out += len(data)
        self._heard = True
        # The end of the last event, of which a read may have brought only the last byte.
        self._tail = data if len(data) >= TAIL_BYTES else self._tail[-TAIL_BYTES:] + data
        self._transport.write(data)

    def on_response_done(self) -> None:
        self._upstream = None
        self._current().on(Event.RESPONSE_SENT)
        self._end_exchange()
        self._next()

    def on_upstream_failed(self, error: UpstreamError, *, is_stale: bool) -> None:
        """The engine's connection is gone before a head came; *is_stale*: it was a kept one."""
        self._upstream = None
        request = self._request
        assert request is not None
        if is_stale and not self._has_retried and request.method in (b"GET", b"HEAD"):
            # RFC 9110 section 9.2.2: only what is idempotent may be sent again.
            self._has_retried = True
            pool = self._shared.pool
            self._connecting = pool.connect(self._on_connected, self._on_connect_failed)
            return
        self._shared.metrics.backend_failures["no_answer"] += 1
        self._reply_error(error)

    def on_cut(self, error: GatewayError, *, may_insert: bool) -> None:
        """The answer broke off after its head: say so in a stream, and cut."""
        self._upstream = None
        self._shared.metrics.backend_failures["broken_off"] += 1
        exchange = self._current()
        # Behind an event that was not whole, an error event would become a part of it.
        ends = EVENT_ENDS if self.reads_chunks else DECODED_EVENT_ENDS
        tells = self._is_event_stream and may_insert and self._tail.endswith(ends)
        if tells:
            event = replies.error_event(
                error, is_anthropic=self._route.is_anthropic, request_id=exchange.request_id
            )
            self._transport.write(frame(event) if self.reads_chunks else event)
        exchange.on(Event.LOST)
        exchange.outcome = error.code
        self._end_exchange()
        # Behind the end of the exchange, which forgets its deadline: closing sets one of its own.
        if tells:
            self._close()  # without the last chunk: never a clean end
        else:
            self._reset()

    def _reset(self) -> None:
        """Cut with a reset: to a body that ends with its connection, a FIN is a clean end."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def _give_up_upstream(self, error: GatewayError) -> None:
        """The engine is too slow: let go of it, and tell the client as far as that can be done."""
        exchange = self._current()
        upstream, self._upstream = self._upstream, None
        self._stop_connecting()
        may_insert = upstream is not None and upstream.is_between_chunks
        if upstream is not None:
            upstream.abort()
        self._shared.metrics.backend_failures["timeout"] += 1
        if exchange.may_reply:
            self._reply_error(error)
        else:
            self.on_cut(error, may_insert=may_insert)

    # Answers of our own -------------------------------------------------------------------------

    def _reply_error(self, error: GatewayError) -> None:
        exchange = self._exchange or self._begin_exchange("-", "-")
        if error.close:
            self._may_persist = False
            self._must_linger = True
        if not self._cors:  # refused before its fields were sorted; a browser has to read it still
            fields = self._request.fields if self._request else []
            self._cors = self._shared.cors.fields(find(fields, b"origin"))
        self._shared.metrics.rejections[error.code] += 1
        exchange.outcome = error.code
        is_anthropic = self._route.is_anthropic
        body = replies.envelope(error, is_anthropic=is_anthropic, request_id=exchange.request_id)
        self._reply(error.status, body, replies.error_fields(error), content_type=replies.JSON)

    def _reply(
        self,
        status: int,
        body: bytes,
        fields: list[bytes] | None = None,
        *,
        content_type: bytes = b"",
    ) -> None:
        exchange = self._current()
        self._settle_unread_body(exchange)
        if self._shared.is_draining:
            self._may_persist = False
        lines = [*(fields or ()), *self._own_fields()]
        head = replies.head(status, lines, length=len(body), content_type=content_type)
        is_head = self._request is not None and self._request.method == b"HEAD"
        answer = head if is_head else head + body
        self._transport.write(answer)
        exchange.bytes_out = len(answer)
        exchange.on(Event.HEAD_SENT)
        exchange.status = status
        exchange.on(Event.RESPONSE_SENT)
        self._end_exchange()
        self._next()

    def _settle_unread_body(self, exchange: Exchange) -> None:
        """Read over a short rest of a body, so that the connection can go on; else it goes."""
        if exchange.state is not State.READING:
            return
        # With 100-continue unanswered, whether the body will come is the client's choice.
        may_not_come = self._read.expects_continue and self._body_left > len(self._received)
        if self._chunked is not None or self._body_left > MAX_SKIPPED_BYTES or may_not_come:
            self._may_persist = False
            self._must_linger = True
        else:
            self._skip = self._body_left

    def _refuse_connection(self) -> None:
        self._reply_error(QueueFull("Too many connections.", retry_after=1.0, close=True))

    # The end of an exchange ---------------------------------------------------------------------

    def _current(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    def _free_body(self) -> None:
        self._shared.body_bytes -= self._reserved_bytes
        self._reserved_bytes = 0
        self._body = b""

    def _end_exchange(self) -> None:
        """Give back what it held, and account for it."""
        exchange = self._current()
        self._exchange = None
        self._free_body()
        self._shared.record(exchange, self.address)
        key_id = self.key_id
        self.deadline = NO_DEADLINE
        self._deadline_is_silence = False
        self._forget_request()
        if self._holds_slot:
            self._holds_slot = False
            self._shared.admission.done(key_id)

    def _next(self) -> None:
        """After a whole answer: wait for the next request, or let the connection go."""
        if not self._may_persist:
            self._part()
            return
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        shared = self._shared
        self._has_head_begun = False
        self.deadline = shared.now() + shared.settings.keepalive_timeout
        if self._received:
            shared.loop.call_soon(self._take_held)

    def _take_held(self) -> None:
        """Go on with what was sent ahead, in a turn of its own."""
        if not self._transport.is_closing():
            self.data_received(b"")

    def _part(self) -> None:
        """Close; but let a client that is still sending read its answer first.

        Closing with unread bytes in the socket resets the connection, and a reset
        may take the answer with it.
        """
        still_comes = self._skip > len(self._received)
        if not (self._must_linger or still_comes):
            self._close()
            return
        self._is_lingering = True
        self._received = b""
        self.deadline = self._shared.now() + LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()

    @property
    def is_busy(self) -> bool:
        return self._exchange is not None

    def _close(self) -> None:
        """Close once what was written has been read; but not wait for ever for that."""
        self._is_lingering = True
        self._received = b""
        self.deadline = self._shared.now() + self._shared.settings.client_header_timeout
        self._transport.close()

    def drain(self) -> None:
        """Close the connection as soon as it has nothing under way."""
        if self._exchange is None and not self._received and not self._is_lingering:
            self._close()

    def abort(self) -> None:
        """Cut the connection, unless it is closing already and has only to be read."""
        if self._exchange is not None:
            self._reset()
        elif not self._is_lingering:
            self._transport.abort()

    def _abandon(self, outcome: str) -> None:
        """The client has left: stop the work that was done for it, wherever it stands."""
        exchange = self._current()
        if exchange.state is State.QUEUED:
            self._shared.admission.leave(self)
        self._stop_connecting()
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        exchange.on(Event.LOST)
        exchange.outcome = outcome
        self._end_exchange()

    def _stop_connecting(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _hold(self, data: bytes) -> None:
        """Keep what was sent ahead until its turn comes; a bounded amount of it."""
        self._received += data
        if len(self._received) > MAX_HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
