"""One client connection: its requests are processed in order, one at a time.

What the bytes that come in are is told by the exchange alone: without one they
are a head, while it is READING they are its body, later they are the next
request, held back until this one is answered.

Once a head has gone out, the only honest way to report a failure is to cut the
connection (or, in an event stream, to send an error event and close).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from llama_gguf.core import replies
from llama_gguf.core.admission import Admission, Verdict
from llama_gguf.core.bodies import IncomingBody
from llama_gguf.core.chunked import frame
from llama_gguf.core.exchange import PHASES, Event, Exchange, State
from llama_gguf.core.fields import Framing, check_head_size, find
from llama_gguf.core.limits import SlidingWindow
from llama_gguf.core.messages import LENGTH_LINES, NEVER, Answer, Pattern, Request
from llama_gguf.core.replies import OwnAnswer
from llama_gguf.core.routes import Kind
from llama_gguf.core.stream_member import StreamSearch
from llama_gguf.errors import (
    ConcurrencyLimited,
    GatewayError,
    Limited,
    PayloadTooLarge,
    QueueFull,
    QueueTimeout,
    RequestTimeout,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llama_gguf.events import EventLog
from llama_gguf.gateway import own, sockets
from llama_gguf.gateway.connection import NO_DEADLINE, Connection
from llama_gguf.gateway.dialer import Cancellable
from llama_gguf.gateway.heads import HEAD_END, check_request_start, parse_request
from llama_gguf.gateway.opened import OpenedStream
from llama_gguf.gateway.principals import Principal, Principals

if TYPE_CHECKING:
    from llama_gguf.gateway.shared import Shared
    from llama_gguf.gateway.upstream import UpstreamConnection

_log: Final = EventLog(__name__)

MAX_SKIPPED_BYTES: Final = 65536
"""Of a refused body that is read over, so that the connection can be used again."""
CLOSE: Final = b"Connection: close\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"

# What the hot path asks for: a member of an enum is looked up anew each time.
_READING: Final = State.READING
_FORWARD: Final = Event.FORWARD
_HEAD_SENT: Final = Event.HEAD_SENT
_RESPONSE_SENT: Final = Event.RESPONSE_SENT
_LENGTH: Final = Framing.LENGTH
_PROXIED: Final = Kind.PROXIED


class ClientConnection(Connection):
    """The other half: requests and answers."""

    __slots__ = (
        "_body",
        "_errand",
        "_exchange",
        "_has_head_begun",
        "_incoming",
        "_is_turn_due",
        "_is_write_paused",
        "_opened",
        "_principal",
        "_request",
        "_ring",
        "_seen",
        "_unread",
        "_unsent",
        "_upstream",
        "key_id",
    )

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._is_write_paused = False
        self._unsent = 0
        """Bytes that the client had still to take when that was last looked at."""
        self._is_turn_due = False
        """``_take_held`` is going to be called: what was sent ahead comes first."""
        # From the connection on: whoever connects has something to say.
        self._has_head_begun = True
        self._exchange: Exchange | None = None
        self._upstream: UpstreamConnection | None = None
        self._errand: Cancellable | None = None
        """What it waits for besides the engine: a connection to it, or a reload."""
        self._opened: OpenedStream | None = None
        self._unread = 0
        """Of a body with a length, the bytes that have not been taken out of ``_received``."""
        self._incoming: IncomingBody | None = None
        self._body: bytes | bytearray = b""
        """Read whole; held until the engine begins to answer."""
        self._seen = 0
        """Of the answer's bytes, at the last tick."""
        self.key_id = "-"
        # A connection mostly repeats its head: what was found out about the last one is kept.
        self._request: Request = shared.unread
        self._principal: Principal | None = None
        self._ring = shared.principals.ring

    # What the loop calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._attach(transport)
        shared = self._shared
        shared.connections.add(self)
        if len(shared.connections) > shared.max_connections:
            self._reply_error(QueueFull("Too many connections.", retry_after=1.0, close=True))

    def data_received(self, data: bytes) -> None:
        try:
            exchange = self._exchange
            if exchange is None:
                if self._is_write_paused or self._is_turn_due:
                    self._hold_next(data)
                else:
                    self._next_request(self._received + data if self._received else data)
            elif exchange.state is _READING:
                self._read_body(exchange, data)
            else:
                self._hold(data)
        except GatewayError as error:
            self._reply_error(error)
        except Exception:  # a bug of ours, of which it is known here whom it concerns
            self._on_bug()

    def _on_bug(self) -> None:
        """Cut this connection alone; what it held is given back when it is lost."""
        _log.error(
            "bug",
            "Request {request_id} was cut because of a bug; please report it",
            exc_info=True,
            request_id=self._exchange.request_id if self._exchange else "-",
        )
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self.deadline = NO_DEADLINE
        exchange = self._exchange
        if exchange is None:
            return
        phase = PHASES[exchange.state]
        self._shared.metrics.client_disconnects[phase] += 1
        if not exchange.status:
            exchange.status = 499  # nginx's word for it, known to every log reader
        self._abandon(exchange, f"client_left:{phase}")

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._unsent = self._transport.get_write_buffer_size()
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._seen = -1  # the client moves again
        if self._upstream is not None:
            self._upstream.resume_reading()
        elif self._exchange is None and self._received:
            self._begin_turn()

    # Deadlines ----------------------------------------------------------------------------------

    def on_tick(self, now: float) -> None:
        """Twice a second: look whether something is overdue."""
        try:
            self._look(now)
        except Exception:  # a bug of ours: the other connections have their turn all the same
            self._on_bug()

    def _look(self, now: float) -> None:
        shared = self._shared
        upstream = self._upstream
        if upstream is not None and upstream.bytes_passed != self._seen:
            self._seen = upstream.bytes_passed
            shared.heard_at = now
            self.deadline = now + shared.request_timeout
        if self._is_paused and sockets.has_left(self._transport):
            self._transport.abort()
        elif self._is_over_limit(now):
            self._give_up_upstream(
                UpstreamTimeout("The response took longer than MAX_REQUEST_DURATION.")
            )
        elif now >= self.deadline:
            self._on_deadline()
        elif self._exchange is not None and shared.sse_keepalive:
            self._keep_alive(self._exchange, now)

    def _is_over_limit(self, now: float) -> bool:
        limit = self._shared.max_request_duration
        exchange = self._exchange
        if not limit or exchange is None or not exchange.forwarded_at:
            return False
        return now >= exchange.forwarded_at + limit

    def _on_deadline(self) -> None:
        exchange = self._exchange
        self.deadline = NO_DEADLINE
        if exchange is None:
            self._on_idle_deadline()
            return
        match exchange.state:
            case State.READING:
                self._reply_error(
                    RequestTimeout("The request body did not arrive in time.", close=True)
                )
            case State.QUEUED | State.OPEN_QUEUED:
                self._reply_error(self._queue_timeout())
            case _ if self._is_write_paused:
                self._check_reader(self._shared.request_timeout)
            case _:
                timeout = self._shared.request_timeout
                self._give_up_upstream(
                    UpstreamTimeout(f"The engine sent nothing for {timeout:g} seconds.")
                )

    def _on_idle_deadline(self) -> None:
        if self._is_lingering:
            self._on_lingering_deadline()
        elif self._is_write_paused:
            self._check_reader(self._shared.keepalive_timeout)
        elif self._received:
            self._reply_error(
                RequestTimeout("The request head did not arrive in time.", close=True)
            )
        else:
            self._close()

    def _check_reader(self, seconds: float) -> None:
        """Reset a client that took nothing of its response; give one that did *seconds* more."""
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent = unsent
            self.deadline = self._shared.now() + seconds
        else:
            sockets.reset(self._transport)

    def _queue_timeout(self) -> GatewayError:
        shared = self._shared
        if not shared.engine_is_ready:
            return shared.unavailable()
        return QueueTimeout("No slot became free in time.", retry_after=1.0)

    # A request's head ---------------------------------------------------------------------------

    def _next_request(self, received: bytes) -> None:
        """Take the next whole head out of *received*: everything that has not been looked at."""
        pattern = self._pattern
        end = pattern.end_in(received)
        if end >= 0:
            exchange = self._begin_exchange(self._request)
            self._on_head(exchange, self._request, pattern.length, received[end:])
            return
        received = self._skipped(received)
        end = received.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            # What came before has been checked, unless it was sent ahead.
            seen = len(self._received) if self._has_head_begun else 0
            self._received = received
            self._read_on()
            self._check_size(received)
            check_request_start(received, seen)
            if received and not self._has_head_begun:
                self._has_head_begun = True
                self.deadline = self._head_deadline()
            return
        raw, rest = received[:end], received[end:]
        known = self._shared.last_known
        if known is not None and known[0].is_of(raw):
            self._pattern, self._request, self._principal, self._ring = known
            exchange = self._begin_exchange(self._request)
            self._on_head(exchange, self._request, self._pattern.length, rest)
            return
        self._received = rest
        self._check_size(raw)
        self._read_head(raw)

    def _check_size(self, head: bytes) -> None:
        settings = self._shared.settings
        check_head_size(
            head,
            line=settings.max_request_line_size,
            field=settings.max_header_line_size,
            total=self._shared.max_head_bytes,
        )

    def _read_head(self, raw: bytes) -> None:
        """Understand a head that is not like the last one, here or on another connection."""
        shared = self._shared
        self._may_persist = False  # nothing is known of what follows a head that is refused
        head = parse_request(raw)
        # A browser has to be able to read a refusal, too.
        cors = shared.cors.fields(find(head.fields, b"origin"))
        exchange = self._begin_exchange(Request(head, cors=cors))
        request = exchange.request = shared.understand(head, cors)
        exchange.id_bytes = request.request_id or exchange.id_bytes
        self._request = request
        self._pattern = Pattern(raw, request.read.content_length)
        self._principal = None
        self._on_head(exchange, request, self._pattern.length, self._received)

    def _begin_exchange(self, request: Request) -> Exchange:
        shared = self._shared
        request_id = request.request_id or shared.next_request_id()
        exchange = Exchange(shared.now(), request, request_id, self.address)
        self._exchange = exchange
        return exchange

    def _on_head(self, exchange: Exchange, request: Request, length: int, rest: bytes) -> None:
        """The head is understood, *rest* is behind it: answer it here, or check it and go on."""
        self._received = rest
        self._unread = length
        self._may_persist = request.may_persist
        route = request.route
        if route.kind is not _PROXIED:
            self._answer_here(exchange, request)
            return
        shared = self._shared
        principals = shared.principals
        principal = self._principal
        if (
            principal is None
            or self._ring is not principals.ring
            or self.network in principals.failures.addresses
        ):
            principal = self._authenticate(exchange, request)
        self.key_id = exchange.key_id = principal.key_id
        window = principal.window
        if window is not None and route.needs_slot:
            left = window.hit(exchange.started_at)
            if left < 0:
                self._refuse_rate(exchange, principal, window)
            exchange.is_counted = True
            exchange.rate_fields = principal.fields_after_hit(left)
        elif window is not None:
            exchange.rate_fields = principal.fields_at(exchange.started_at)
        if shared.is_draining:
            raise shared.draining()
        if length > shared.max_body_bytes:
            self._check_body_size(length)
        if length > len(rest) or request.is_chunked:
            self._want_body(exchange, request)
            return
        if length < len(rest):
            rest, self._received = rest[:length], rest[length:]
        else:
            self._received = b""
        self._unread = 0
        self._on_body(exchange, rest, exchange.started_at)

    # Our own paths ------------------------------------------------------------------------------

    def _answer_here(self, exchange: Exchange, request: Request) -> None:
        route = request.route
        if route.error is not None:
            self._reply_error(route.error)
            return
        shared = self._shared
        principal = Principals.ANYBODY
        if own.needs_key(route.kind, shared.settings):
            principal = self._authenticate(exchange, request)
            exchange.key_id = principal.key_id
            exchange.rate_fields = principal.fields_at(exchange.started_at)
            if route.kind is Kind.RELOAD:
                shared.principals.check_admin(principal)
                self._start_reload(exchange)
                return
        self._reply(exchange, own.answer(route.kind, request, shared, principal))

    def _start_reload(self, exchange: Exchange) -> None:
        self._settle_unread_body(exchange)
        exchange.on(_FORWARD)  # what comes from now on is none of it
        self.deadline = NO_DEADLINE
        self._errand = self._shared.loop.create_task(self._reload(exchange), name="POST /reload")

    async def _reload(self, exchange: Exchange) -> None:
        try:
            keys = await self._shared.reloads.reload()
        except GatewayError as error:
            self._errand = None
            self._reply_error(error)
        else:
            self._errand = None
            self._reply(exchange, own.reloaded(keys))

    # Who asks -----------------------------------------------------------------------------------

    def _authenticate(self, exchange: Exchange, request: Request) -> Principal:
        """Find out who asks. Raises what ``Principals.authenticate`` does."""
        if request.route.needs_no_key:
            if request.is_chunked or self._unread:  # room for bodies is for keys
                raise PayloadTooLarge("A request to this path must not have a body.", close=True)
            return Principals.ANYBODY
        shared = self._shared
        principals = shared.principals
        principal = principals.authenticate(
            request.read, self.network, now=exchange.started_at, wall=shared.wall
        )
        if principal.expires_at is None:  # then it is good until the keys are read again
            self._principal, self._ring = principal, principals.ring
            shared.last_known = self._pattern, request, principal, principals.ring
        return principal

    def _refuse_rate(self, exchange: Exchange, principal: Principal, window: SlidingWindow) -> None:
        """Raises Limited, with what the key may do and when."""
        now = exchange.started_at
        exchange.rate_fields = principal.fields_at(now)
        self._shared.metrics.rate_limited[exchange.key_id, "requests"] += 1
        raise Limited(
            f"Rate limit reached for this API key: {window.limit} per 60 seconds.",
            retry_after=window.retry_after(now),
        )

    def _take_back(self, exchange: Exchange) -> None:
        """A request that we refuse costs its key nothing."""
        exchange.is_counted = False
        principal = self._shared.principals.named(exchange.key_id)
        if principal is not None and principal.window is not None:
            principal.window.take_back(exchange.started_at)
            exchange.rate_fields = principal.fields_at(self._shared.now())

    # A request's body ---------------------------------------------------------------------------

    def _want_body(self, exchange: Exchange, request: Request) -> None:
        """Ask for the rest of a body."""
        if not self._shared.body_memory.has_room(exchange.key_id, self._unread):
            raise self._no_room()
        self._read_on()
        self._incoming = IncomingBody(None if request.is_chunked else self._unread)
        if self._received:
            received, self._received = self._received, b""
            self._read_body(exchange, received)
            return
        if request.read.expects_continue:
            self.write(replies.CONTINUE)
        self._set_body_deadline()

    def _set_body_deadline(self) -> None:
        self.deadline = self._shared.now() + self._shared.settings.client_body_timeout

    def _check_body_size(self, size: int) -> None:
        largest = self._shared.max_body_bytes
        if size > largest:
            raise PayloadTooLarge(f"The request body is larger than {largest} bytes.", close=True)

    def _reserve(self, exchange: Exchange, size: int) -> None:
        """Count all *size* bytes that have come of its body.

        One that came with its head, and goes on at once, is never counted: a read is no larger
        than 64 KiB, and no more of them run than there are slots.

        Raises:
            QueueFull: there is no room for it.
        """
        own = exchange.reserved_bytes
        if not self._shared.body_memory.take(exchange.key_id, size - own, own=own):
            raise self._no_room()
        exchange.reserved_bytes = size

    def _no_room(self) -> GatewayError:
        return QueueFull("The memory for waiting request bodies is full.", retry_after=1.0)

    def _read_body(self, exchange: Exchange, data: bytes) -> None:
        body = self._incoming
        assert body is not None
        behind = body.feed(data)
        self._unread = body.left
        self._check_body_size(len(body.data))
        self._reserve(exchange, len(body.data))
        if behind is None:
            self._set_body_deadline()
            return
        self._received = behind
        self._incoming = None
        self._on_body(exchange, body.data, self._shared.now())

    # To the engine ------------------------------------------------------------------------------

    def _on_body(self, exchange: Exchange, body: bytes | bytearray, now: float) -> None:
        """The request is whole: it takes a slot, or waits for one, or needs none."""
        shared = self._shared
        needs_slot = exchange.request.route.needs_slot
        exchange.bytes_in = len(body)
        self._body = body
        if not shared.engine_is_ready:
            shared.await_engine(needs_slot)
        admission = shared.admission if needs_slot else shared.side_admission
        verdict = admission.arrive(self)
        if verdict:
            self._wait_for_slot(exchange, admission, verdict, now)
            return
        exchange.runs_in = admission
        self._forward(exchange, now)

    def _wait_for_slot(
        self, exchange: Exchange, admission: Admission, verdict: Verdict, now: float
    ) -> None:
        shared = self._shared
        match verdict:
            case Verdict.QUEUED:
                exchange.on(Event.QUEUE)
                self._wait(exchange, admission, now)
            case Verdict.QUEUE_FULL:
                if not shared.engine_is_ready:
                    raise shared.unavailable()
                raise QueueFull("The queue is full.", retry_after=1.0)
            case Verdict.SHARE_IS_FULL:
                raise QueueFull(
                    "This API key has reached its share of the queue; "
                    "the rest is reserved for other keys.",
                    retry_after=1.0,
                )
            case _:
                shared.metrics.rate_limited[self.key_id, "concurrency"] += 1
                raise ConcurrencyLimited(
                    "Concurrent request limit reached for this API key.", retry_after=1.0
                )

    def _free_body(self, exchange: Exchange) -> None:
        self._body = b""
        if exchange.reserved_bytes:
            self._shared.body_memory.give_back(exchange.key_id, exchange.reserved_bytes)
            exchange.reserved_bytes = 0

    def on_slot(self) -> None:
        """The queue grants a slot. Nothing is raised: the others' turn comes after this one."""
        exchange = self._current()
        exchange.runs_in, exchange.waits_in = exchange.waits_in, None
        try:
            self._forward(exchange, self._shared.now())
        except Exception:  # a bug of ours; the slot is given back when the connection is lost
            self._on_bug()

    def on_refused(self, error: GatewayError) -> None:
        """The wait is over, and not because a slot came free."""
        try:
            self._reply_error(error)
        except Exception:  # as in on_slot
            self._on_bug()

    def _forward(self, exchange: Exchange, now: float) -> None:
        exchange.on(_FORWARD)
        shared = self._shared
        exchange.forwarded_at = now
        self.deadline = now + shared.request_timeout
        self._seen = 0
        upstream = shared.pool.take()
        if upstream is None:
            self._connect()
        else:
            self._ask(exchange, upstream)

    def _connect(self) -> None:
        self._errand = self._shared.pool.connect(self._on_connected, self._on_connect_failed)

    def _on_connected(self, upstream: UpstreamConnection) -> None:
        self._errand = None
        self._ask(self._current(), upstream)

    def _on_connect_failed(self, error: UpstreamError) -> None:
        self._errand = None
        exchange = self._current()
        exchange.forwarded_at = 0.0  # nothing of it was sent
        if (
            isinstance(error, UpstreamRefused)
            and exchange.request.route.needs_slot
            and exchange.runs_in is not None
            and self._shared.suspect_engine()
        ):
            self._wait_again(exchange, exchange.runs_in)
            return
        self._shared.metrics.backend_failures["connect"] += 1
        self._reply_error(error)

    def _wait_again(self, exchange: Exchange, admission: Admission) -> None:
        """The engine has died before it had anything of the request: its next life will do."""
        exchange.runs_in = None
        admission.done(self.key_id)
        verdict = admission.arrive(self)
        if verdict is not Verdict.QUEUED:
            self._reply_error(self._shared.unavailable())
            return
        exchange.on(Event.REQUEUE)
        try:
            self._wait(exchange, admission, self._shared.now())
        except QueueFull as error:
            self._reply_error(error)

    def _wait(self, exchange: Exchange, admission: Admission, now: float) -> None:
        """Raises QueueFull where there is no room for its body."""
        exchange.waits_in = admission
        exchange.queued_at = exchange.queued_at or now
        self.deadline = now + self._shared.settings.max_queue_wait
        self._reserve(exchange, exchange.bytes_in)

    def _ask(self, exchange: Exchange, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        request = exchange.request
        if self._is_write_paused:
            upstream.pause_reading()
        message = request.serialised(exchange.id_bytes, self._body)
        upstream.ask(self._opened or self, message, to_head=request.is_to_head)

    # The engine's answer ------------------------------------------------------------------------

    def on_response(self, answer: Answer, length: int, body: bytes = b"") -> bytes:
        """The head of the engine's answer is there; return what the client gets for it.

        With *body* behind it, where all of that has come.
        """
        exchange = self._current()
        exchange.on(_HEAD_SENT)
        exchange.status = answer.status
        shared = self._shared
        exchange.first_byte_at = shared.now()
        if answer.status < 500:
            shared.heard_at = exchange.first_byte_at
        self._free_body(exchange)
        if shared.is_draining:
            self._may_persist = False
        return b"".join(
            (
                answer.opening,
                LENGTH_LINES[length]
                if answer.framing is _LENGTH
                else self._framing_field(answer, length),
                b"x-request-id: ",
                exchange.id_bytes,
                b"\r\n",
                exchange.rate_fields,
                exchange.request.cors,
                b"" if answer.has_date else shared.date,
                b"\r\n" if self._may_persist else b"Connection: close\r\n\r\n",
                body,
            )
        )

    def _framing_field(self, answer: Answer, length: int) -> bytes:
        if answer.framing is Framing.NONE:
            return LENGTH_LINES[length] if answer.has_length else b""
        if self.reads_chunks:
            return CHUNKED
        self._may_persist = False  # only the end of the connection tells the end
        return b""

    def on_whole_response(self, answer: Answer, body: bytes) -> None:
        """An answer that came in one read, and ends with its length."""
        exchange = self._current()
        message = self.on_response(answer, len(body), body)
        # First, so that a client that is slow to take it pauses nobody else's connection.
        self._upstream = None
        self.write(message)
        exchange.bytes_out = len(message)
        exchange.ending = body
        exchange.ended_at = exchange.first_byte_at
        self._finish(exchange)

    def on_first_event(self) -> None:
        """The engine's stream begins to say something."""
        self._current().first_token_at = self._shared.now()

    def on_response_done(self) -> None:
        exchange = self._current()
        self._let_go_of_upstream(exchange)
        self._finish(exchange)

    def on_upstream_failed(self, error: UpstreamError, *, is_stale: bool) -> None:
        """The engine's connection is gone before a head came; *is_stale*: it was a kept one."""
        self._upstream = None
        exchange = self._current()
        if is_stale and not exchange.has_retried and exchange.request.is_idempotent:
            # RFC 9110 section 9.2.2: only what is idempotent may be sent again.
            exchange.has_retried = True
            self._connect()
            return
        self._shared.metrics.backend_failures["no_answer"] += 1
        self._shared.suspect_engine()
        self._reply_error(error)

    def on_cut(self, error: GatewayError, *, may_insert: bool) -> None:
        """The answer broke off after its head: say so in a stream, and cut."""
        exchange = self._current()
        self._let_go_of_upstream(exchange)
        self._shared.metrics.backend_failures["broken_off"] += 1
        if isinstance(error, UpstreamError):
            self._shared.suspect_engine()
        self._break_off(exchange, error.code, self._event_of(exchange, error, may_insert))

    def _event_of(self, exchange: Exchange, error: GatewayError, may_insert: bool) -> bytes:
        if not may_insert:
            return b""
        return replies.error_event(
            error,
            is_anthropic=exchange.request.route.is_anthropic,
            request_id=exchange.request_id,
        )

    def _break_off(self, exchange: Exchange, outcome: str, event: bytes) -> None:
        """End an answer that is not whole, after *event* where there may be one."""
        if event:
            event = frame(event) if self.reads_chunks else event
            self.write(event)
            exchange.bytes_out += len(event)
        exchange.on(Event.LOST)
        exchange.outcome = outcome
        self._end_exchange(exchange)
        if event:
            self._close()  # without the last chunk: never a clean end
        else:
            sockets.reset(self._transport)

    # A stream that waits ------------------------------------------------------------------------

    def _keep_alive(self, exchange: Exchange, now: float) -> None:
        """Say something on a stream on which nothing has been said for SSE_KEEPALIVE."""
        opened = self._opened
        horizon = now - self._shared.sse_keepalive
        if opened is not None:
            if exchange.is_open and opened.said_at <= horizon and not self._is_write_paused:
                opened.wait(now)
        elif (
            exchange.may_reply
            and 0 < exchange.waits_since <= horizon
            and exchange.stream_search is None
            and exchange.request.route.may_stream
        ):
            exchange.stream_search = StreamSearch()
            self._shared.stream_searches.add(self, exchange)

    def search_body(self, exchange: Exchange, effort: int, now: float) -> int:
        """Search on for ``stream`` in the body of *exchange*; open the stream if it asks for one.

        Returns:
            The effort that it took, as ``StreamSearch.advance`` counts it.
        """
        search = exchange.stream_search
        assert search is not None
        if self._exchange is not exchange or not exchange.may_reply:
            search.answer = False  # it no longer waits
            return 0
        try:
            spent = search.advance(self._body, effort)
            if search.answer:
                self._open(exchange, now)
        except Exception:  # a bug of ours: the other searches have their turn all the same
            search.answer = False
            self._on_bug()
            return effort
        return spent

    def _open(self, exchange: Exchange, now: float) -> None:
        exchange.on(Event.OPEN)
        exchange.status = 200
        opened = self._opened = OpenedStream(self, now)
        framing = CHUNKED if self.reads_chunks else b""
        lines = [replies.NO_BUFFERING, framing, *self._usual_lines(exchange)]
        head = replies.head(200, lines, length=None, content_type=replies.EVENT_STREAM)
        opened.send(head, replies.WAITING)
        if self._upstream is not None:
            self._upstream.hand_over(opened)

    def on_opened_response(self) -> None:
        """The engine begins the stream whose head has gone out."""
        exchange = self._current()
        exchange.on(Event.BEGIN)
        exchange.first_byte_at = self._shared.now()
        self._free_body(exchange)

    def on_engine_refused(self, body: bytes) -> None:
        """The engine has answered with *body* where a stream was to come."""
        exchange = self._current()
        self._let_go_of_upstream(exchange)
        exchange.bytes_out = 0
        event = replies.refusal_event(body, is_anthropic=exchange.request.route.is_anthropic)
        error = UpstreamError("The engine did not respond with a stream.")
        self._break_off(exchange, error.code, event or self._event_of(exchange, error, True))

    def _let_go_of_upstream(self, exchange: Exchange) -> UpstreamConnection | None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            exchange.bytes_out = upstream.bytes_passed
            if exchange.first_byte_at:
                exchange.opening = upstream.opening
                exchange.ending = upstream.ending
        return upstream

    def _drop_upstream(self, exchange: Exchange) -> None:
        """Stop the work that the engine does for *exchange*."""
        upstream = self._let_go_of_upstream(exchange)
        if upstream is None:
            return
        admission = exchange.runs_in
        if admission is None or not upstream.may_leave:
            upstream.abort()
            return
        # The slot is given back when the engine has noticed, which may take it a while. Sooner,
        # the next request would wait inside the engine, where a departure goes unseen.
        exchange.runs_in = None
        key_id = self.key_id
        admission.depart(key_id)
        self._shared.pool.leave(upstream, lambda: admission.done(key_id, has_departed=True))

    def _give_up_upstream(self, error: GatewayError) -> None:
        """The engine is too slow: let go of it, and tell the client as far as that can be done."""
        exchange = self._current()
        if self._stop_errand():
            exchange.forwarded_at = 0.0  # it was not connected: nothing was sent
        may_insert = self._upstream is not None and self._upstream.may_insert_event
        self._drop_upstream(exchange)
        self._shared.metrics.backend_failures["timeout"] += 1
        if exchange.may_reply or exchange.is_open:
            self._reply_error(error)
        else:
            self._break_off(exchange, error.code, self._event_of(exchange, error, may_insert))

    # Answers of our own -------------------------------------------------------------------------

    def _reply_error(self, error: GatewayError) -> None:
        exchange = self._exchange
        if exchange is None:  # of what came, not even the head could be read
            exchange = self._begin_exchange(self._shared.unread)
            self._may_persist = False
        if error.close:
            self._may_persist = False
            self._must_linger = True
        self._shared.metrics.rejections[error.code] += 1
        if exchange.is_counted and not exchange.forwarded_at:
            self._take_back(exchange)
        if exchange.is_open:
            self._let_go_of_upstream(exchange)
            self._break_off(exchange, error.code, self._event_of(exchange, error, True))
            return
        exchange.outcome = error.code
        body = replies.envelope(
            error,
            is_anthropic=exchange.request.route.is_anthropic,
            request_id=exchange.request_id,
        )
        self._reply(
            exchange, OwnAnswer(error.status, body, replies.JSON, replies.error_fields(error))
        )

    def _reply(self, exchange: Exchange, answer: OwnAnswer) -> None:
        self._settle_unread_body(exchange)
        lines = [*answer.fields, *self._usual_lines(exchange)]
        head = replies.head(
            answer.status, lines, length=len(answer.body), content_type=answer.content_type
        )
        message = head if exchange.request.is_to_head else head + answer.body
        self.write(message)
        exchange.bytes_out = len(message)
        exchange.on(_HEAD_SENT)
        exchange.status = answer.status
        self._finish(exchange)

    def _usual_lines(self, exchange: Exchange) -> list[bytes]:
        """The header lines of every answer that is begun here."""
        shared = self._shared
        if shared.is_draining:
            self._may_persist = False
        return [
            b"x-request-id: %b\r\n" % exchange.id_bytes,
            exchange.rate_fields,
            exchange.request.cors,
            shared.date,
            b"" if self._may_persist else CLOSE,
        ]

    def _settle_unread_body(self, exchange: Exchange) -> None:
        """Read over a short rest of a body, so that the connection can go on; else it goes."""
        if exchange.state is not State.READING:
            return
        request = exchange.request
        is_chunked = request.is_chunked and (self._incoming is not None or not exchange.bytes_in)
        # With 100-continue unanswered, whether the body will come is the client's choice.
        may_not_come = request.read.expects_continue and self._unread > len(self._received)
        if is_chunked or self._unread > MAX_SKIPPED_BYTES or may_not_come:
            self._may_persist = False
            self._must_linger = True
        elif self._unread:
            self._skip = self._unread
            self._pattern = NEVER  # what comes next is no head

    # The end of an exchange ---------------------------------------------------------------------

    def _current(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    def _end_exchange(self, exchange: Exchange) -> None:
        """Give back what it held, and account for it."""
        shared = self._shared
        self._exchange = None
        self._incoming = None
        if exchange.reserved_bytes or self._body:
            self._free_body(exchange)
        if self._opened is not None:
            exchange.bytes_out += self._opened.bytes_sent
            self._opened = None
        if not exchange.ended_at:
            exchange.ended_at = shared.now()
        shared.accounts.close(exchange)
        if shared.is_draining:
            shared.notice_idle()
        if exchange.runs_in is not None:
            exchange.runs_in.done(self.key_id)
        elif exchange.waits_in is not None:
            exchange.waits_in.leave(self)

    def _finish(self, exchange: Exchange) -> None:
        """The answer is whole: wait for the next request, or let the connection go."""
        exchange.on(_RESPONSE_SENT)
        self._end_exchange(exchange)
        if not self._may_persist:
            self._part()
            return
        self._has_head_begun = False
        self.deadline = exchange.ended_at + self._shared.keepalive_timeout
        if not self._received:
            self._read_on()
        elif not self._is_write_paused:
            self._begin_turn()

    # Requests that were sent ahead --------------------------------------------------------------

    def _hold_next(self, data: bytes) -> None:
        """Begin no request: the client has to take its responses first, or an earlier one waits."""
        if not self._is_lingering:
            self._hold(data)

    def _begin_turn(self) -> None:
        """Go on with what was sent ahead, in a turn of the loop of its own."""
        if not self._is_turn_due:
            self._is_turn_due = True
            self._shared.loop.call_soon(self._take_held)

    def _take_held(self) -> None:
        self._is_turn_due = False
        if not self._transport.is_closing():
            self.data_received(b"")

    @property
    def reads_chunks(self) -> bool:
        """False for HTTP/1.0: it gets a chunked body decoded."""
        return self._current().request.reads_chunks

    @property
    def is_busy(self) -> bool:
        return self._exchange is not None

    @property
    def upstream(self) -> UpstreamConnection | None:
        """Where its request is, while it is at the engine."""
        return self._upstream

    def drain(self) -> None:
        """Close the connection, unless there is something under way or about to come."""
        is_silent = not (self._has_head_begun or self._received)
        if self._exchange is None and is_silent and not self._is_lingering:
            self._close()

    def abort(self) -> None:
        """Cut the connection, unless it is closing already and has only to be read."""
        if self._exchange is not None:
            sockets.reset(self._transport)
        elif not self._is_lingering:
            self._transport.abort()

    def _abandon(self, exchange: Exchange, outcome: str) -> None:
        """The client has left: stop the work that was done for it, wherever it stands."""
        self._stop_errand()
        self._drop_upstream(exchange)
        exchange.on(Event.LOST)
        exchange.outcome = outcome
        self._end_exchange(exchange)

    def _stop_errand(self) -> bool:
        """Whether there was one."""
        errand, self._errand = self._errand, None
        if errand is None:
            return False
        errand.cancel()
        return True
