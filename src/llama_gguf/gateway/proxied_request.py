"""One request to the engine, from its key to the last byte of its response.

``_run`` is its life, and reads from top to bottom. It is a generator, not a task: each ``yield``
waits for one thing, and what it waited for calls ``_resume``, or ``_interrupt`` with what went
wrong. So nothing is scheduled on the way, and ``finally`` gives back all that the request held,
whatever ended it.

The bytes of a response do not pass here: the engine's connection writes them to the client's
transport.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llama_gguf.access.authenticator import Authenticator, Principal
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
from llama_gguf.gateway.client import Client
from llama_gguf.gateway.sse_keepalive import EarlyStream
from llama_gguf.http1 import local_response
from llama_gguf.http1.chunked import frame
from llama_gguf.http1.fields import Framing
from llama_gguf.http1.request import LENGTH_LINES
from llama_gguf.http1.response import Answer
from llama_gguf.http1.stream_member import StreamSearch
from llama_gguf.scheduling import failure_policy
from llama_gguf.scheduling.admission import Admission, Verdict
from llama_gguf.scheduling.exchange import Event, Exchange, State
from llama_gguf.scheduling.failure_policy import Action
from llama_gguf.telemetry.metrics import Failure

if TYPE_CHECKING:
    from llama_gguf.gateway.pool import Dialling
    from llama_gguf.gateway.services import Services
    from llama_gguf.gateway.upstream_connection import Asker, UpstreamConnection
    from llama_gguf.net.transport import Transport

CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"

_FORWARD: Final = Event.FORWARD
_HEAD_SENT: Final = Event.HEAD_SENT
_RESPONDED: Final = Event.RESPONDED
_LENGTH: Final = Framing.LENGTH

Steps = Generator[None, None, None]


_CONNECT: Final[Failure] = "connect"


class ClientLeft(Exception):
    """The client is gone, so there is no response."""


class RefusedStream(UpstreamError):
    """The engine has responded with an error where a stream had begun.

    Args:
        event: the error, as an event of the stream; empty where it could not be read.
    """

    def __init__(self, event: bytes) -> None:
        super().__init__("The engine did not respond with a stream.")
        self.event = event


class ProxiedRequest:
    """An ``upstream.Asker`` by its methods, and a ``Ticket`` of the queue.

    Args:
        services: of the gateway.
        client: whose request it is.
        exchange: its head, and what there will be to log.
        length: of its body; 0 if that is not known.
        body: None if more of it is to come.
    """

    # Most requests leave most of these as they are, and on the class they cost nothing.
    key_id = "-"
    _body: bytes | bytearray = b""
    """Held until the engine begins to respond."""
    _upstream: UpstreamConnection | None = None
    _connecting: Dialling | None = None
    _early: EarlyStream | None = None
    _may_insert = False
    """Whether an error event may follow what the client has got, when the response fails."""
    _failure: Failure = "no_answer"
    """In which phase the engine failed, as the metrics have it."""
    _seen = 0
    """Bytes of the response that had passed at the last tick."""
    _deadline = math.inf
    _is_over = False

    def __init__(
        self,
        services: Services,
        client: Client,
        exchange: Exchange,
        length: int,
        body: bytes | None,
    ) -> None:
        self._services = services
        self._client = client
        self._exchange = exchange
        self.steps = self._run(length, body)
        """The first ``next`` begins; from then on the request resumes itself."""

    # What the engine's response is written to ---------------------------------------------------

    @property
    def transport(self) -> Transport:
        return self._client.transport

    @property
    def reads_chunks(self) -> bool:
        """False for HTTP/1.0: it gets a chunked body decoded."""
        return self._exchange.request.reads_chunks

    @property
    def upstream(self) -> UpstreamConnection | None:
        """The engine's connection, while the request uses one."""
        return self._upstream

    # Its life -----------------------------------------------------------------------------------

    def _run(self, length: int, body: bytes | bytearray | None) -> Steps:
        exchange = self._exchange
        now = exchange.started_at
        try:
            self._authorise(exchange, length)
            if body is None:
                body = yield from self._read_body(exchange, length)
                now = self._services.clock.now()
            self._body = body
            exchange.bytes_in = len(body)
            while True:
                if exchange.runs_in is None and not self._admit(exchange, now):
                    yield  # until a slot is granted
                try:
                    if not self._connect(exchange):
                        yield  # until there is a connection
                    self._send(exchange)
                    yield  # until the response is whole
                    break
                except UpstreamError as error:
                    self._prepare_to_send_again(exchange, error)
                    now = self._services.clock.now()
            if self._early is not None:
                self._let_go()
            self._client.finish(exchange)
        except GatewayError as error:
            self._end_with(error)
        except ClientLeft:
            self._let_go()
        finally:
            self._give_back(exchange)

    def _resume(self) -> None:
        next(self.steps, None)

    def _interrupt(self, error: GatewayError | ClientLeft) -> None:
        """Raise *error* where the request waits."""
        if not self._is_over:  # as it is by a bug; then the connection is being cut
            with suppress(StopIteration):
                self.steps.throw(error)

    # What the client's connection calls ---------------------------------------------------------

    def on_body_grown(self, size: int) -> None:
        """*size* bytes of the body have arrived.

        Raises:
            PayloadTooLarge: they are too many.
            QueueFull: there is no memory for them.
        """
        self._check_size(size)
        self._reserve(size)
        self._set_body_deadline()

    def on_body(self, body: bytearray) -> None:
        """The body is whole."""
        self._body = body
        self._resume()

    def fail(self, error: GatewayError) -> None:
        """Refuse the request, or break off its response."""
        self._interrupt(error)

    def abandon(self) -> None:
        """The client is gone: stop the work that is done for it, wherever it stands."""
        self._interrupt(ClientLeft())

    def pause(self) -> None:
        """The client takes nothing: neither does the gateway take anything from the engine."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_reading(self) -> None:
        self._seen = -1  # the client reads again
        if self._upstream is not None:
            self._upstream.resume_reading()

    # Authorise ----------------------------------------------------------------------------------

    def _authorise(self, exchange: Exchange, length: int) -> None:
        """Find out whose request it is, and count it.

        Raises:
            Unauthorized, KeyExpired: its key is none, or no longer one.
            Limited: its key is over its rate, or its address has tried too many wrong keys.
            PayloadTooLarge, Draining: it is not served, whoever sends it.
        """
        services, client = self._services, self._client
        principal = client.principal
        authenticator = services.authenticator
        if (
            principal is None
            or client.ring is not authenticator.ring
            or client.network in authenticator.failures.addresses
        ):
            principal = self._authenticate(length)
        self.key_id = exchange.key_id = principal.key_id
        limiter = principal.limiter
        if limiter is not None:
            if exchange.request.route.needs_slot:
                left = limiter.hit(exchange.started_at)
                if left < 0:
                    raise self._over_rate(principal)
                exchange.is_counted = True
                exchange.rate_fields = principal.fields_after_hit(left)
            else:
                exchange.rate_fields = principal.fields_at(exchange.started_at)
        if services.connections.is_draining:
            raise services.connections.draining()
        if length > services.limits.max_request_body_size:
            self._check_size(length)

    def _authenticate(self, length: int) -> Principal:
        request = self._exchange.request
        if request.route.needs_no_key:
            if request.is_chunked or length:  # memory for bodies is for keys
                raise PayloadTooLarge("A request to this path must not have a body.", close=True)
            return Authenticator.ANONYMOUS
        return self._client.authenticate(self._exchange)

    def _over_rate(self, principal: Principal) -> Limited:
        exchange = self._exchange
        now = exchange.started_at
        exchange.rate_fields = principal.fields_at(now)
        self._services.metrics.rate_limited[exchange.key_id, "requests"] += 1
        limiter = principal.limiter
        assert limiter is not None
        return Limited(
            f"Rate limit reached for this API key: {limiter.limit} per 60 seconds.",
            retry_after=limiter.retry_after(now),
        )

    # Its body -----------------------------------------------------------------------------------

    def _read_body(
        self, exchange: Exchange, length: int
    ) -> Generator[None, None, bytes | bytearray]:
        """Wait for the rest of the body.

        Raises:
            QueueFull: there is no memory for *length* bytes, or for what has come.
            PayloadTooLarge, BadRequest, RequestTimeout: it is refused while it comes.
        """
        if not self._services.body_memory.has_room(self.key_id, length):
            raise _no_memory()
        self._set_body_deadline()
        body = self._client.expect_body(self, exchange.request)
        if body is not None:
            return body
        yield  # until the body is whole
        return self._body

    def _set_body_deadline(self) -> None:
        self._deadline = self._services.clock.now() + self._services.limits.client_body_timeout

    def _check_size(self, size: int) -> None:
        largest = self._services.limits.max_request_body_size
        if size > largest:
            raise PayloadTooLarge(f"The request body is larger than {largest} bytes.", close=True)

    def _reserve(self, size: int) -> None:
        """Count all *size* bytes that have arrived of its body.

        A body that came with its head, and goes on at once, is never counted: a read is no larger
        than 64 KiB, and no more of them run than there are slots.

        Raises:
            QueueFull: there is no memory for it.
        """
        exchange = self._exchange
        own = exchange.reserved_bytes
        if not self._services.body_memory.take(self.key_id, size - own, own=own):
            raise _no_memory()
        exchange.reserved_bytes = size

    def _free_body(self) -> None:
        exchange = self._exchange
        self._body = b""
        if exchange.reserved_bytes:
            self._services.body_memory.give_back(self.key_id, exchange.reserved_bytes)
            exchange.reserved_bytes = 0

    # Admit --------------------------------------------------------------------------------------

    def _admit(self, exchange: Exchange, now: float) -> bool:
        """Whether it has a slot; else it waits in the queue for one.

        Raises:
            ConcurrencyLimited, QueueFull, ModelLoading, BackendUnavailable: it may not wait.
        """
        services = self._services
        needs_slot = exchange.request.route.needs_slot
        if not services.engine.is_ready:
            services.engine.require(may_wait=needs_slot)
        admission = services.admission if needs_slot else services.side_admission
        verdict = admission.arrive(self)
        if not verdict:
            self._forward(exchange, admission, now)
            return True
        if verdict is not Verdict.QUEUED:
            raise self._not_admitted(verdict)
        exchange.waits_in = admission
        if exchange.state is State.READING:
            exchange.on(Event.QUEUE)
        exchange.queued_at = exchange.queued_at or now
        self._deadline = now + services.queue.max_queue_wait
        self._reserve(exchange.bytes_in)
        return False

    def _forward(self, exchange: Exchange, admission: Admission, now: float) -> None:
        """It has a slot from *now* on."""
        exchange.runs_in = admission  # first, so that it is given back in any case
        exchange.on(_FORWARD)
        exchange.forwarded_at = now
        self._deadline = now + self._services.timeouts.request_timeout

    def _not_admitted(self, verdict: Verdict) -> GatewayError:
        services = self._services
        if verdict is Verdict.KEY_IS_BUSY:
            services.metrics.rate_limited[self.key_id, "concurrency"] += 1
            return ConcurrencyLimited(
                "Concurrent request limit reached for this API key.", retry_after=1.0
            )
        if not services.engine.is_ready:
            return services.engine.unavailable()
        if verdict is Verdict.SHARE_IS_FULL:
            return QueueFull(
                "This API key has reached its share of the queue; "
                "the rest is reserved for other keys.",
                retry_after=1.0,
            )
        return QueueFull("The queue is full.", retry_after=1.0)

    def on_slot(self) -> None:
        """The queue grants a slot. Nothing is raised: the others' turn comes after this one."""
        exchange = self._exchange
        admission, exchange.waits_in = exchange.waits_in, None
        assert admission is not None
        try:
            self._forward(exchange, admission, self._services.clock.now())
            self._resume()
        except Exception:  # a bug in the gateway; the slot is given back as the request ends
            self._client.on_bug()

    def on_refused(self, error: GatewayError) -> None:
        """The wait is over, and not because a slot came free."""
        try:
            self._interrupt(error)
        except Exception:  # as in on_slot
            self._client.on_bug()

    # Connect and send ---------------------------------------------------------------------------

    def _connect(self, exchange: Exchange) -> bool:
        """Whether there is a connection by now."""
        pool = self._services.pool
        if not exchange.has_retried:
            self._upstream = pool.take()
            if self._upstream is not None:
                return True
        self._connecting = pool.connect(self)
        return self._upstream is not None

    def on_connected(self, upstream: UpstreamConnection) -> None:
        """The pool has made a connection; maybe within ``connect``."""
        self._upstream = upstream
        if self._connecting is not None:
            self._connecting = None
            self._resume()

    def on_connect_failed(self, error: UpstreamError) -> None:
        """The pool could not make a connection."""
        self._connecting = None
        self._failure = _CONNECT
        self._exchange.forwarded_at = 0.0  # nothing of it was sent
        self._interrupt(error)

    def _send(self, exchange: Exchange) -> None:
        upstream = self._upstream
        assert upstream is not None
        request = exchange.request
        if self._client.is_write_paused:
            upstream.pause_reading()
        asker: Asker = self if self._early is None else self._early
        message = request.serialised(
            self._services.pool.header_lines, exchange.id_bytes, self._body
        )
        upstream.ask(asker, message, to_head=request.is_to_head)

    # The engine's response ----------------------------------------------------------------------

    def on_response(
        self, answer: Answer, length: int, body: bytes = b"", event: Event = _HEAD_SENT
    ) -> bytes:
        """The head of the engine's response is there; return what the client gets for it.

        With *body* behind it, where all of that has come.
        """
        exchange, services, client = self._exchange, self._services, self._client
        exchange.on(event)
        exchange.status = answer.status
        exchange.first_byte_at = services.clock.now()
        if answer.status < 500:
            services.engine.responded_at = exchange.first_byte_at
        self._body = b""
        if exchange.reserved_bytes:
            self._free_body()
        if services.connections.is_draining:
            client.keep_alive = False
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
                b"" if answer.has_date else services.clock.date,
                b"\r\n" if client.keep_alive else b"Connection: close\r\n\r\n",
                body,
            )
        )

    def _framing_field(self, answer: Answer, length: int) -> bytes:
        if answer.framing is Framing.NONE:
            return LENGTH_LINES[length] if answer.has_length else b""
        if self.reads_chunks:
            return CHUNKED
        self._client.keep_alive = False  # only the end of the connection marks the end
        return b""

    def on_whole_response(self, answer: Answer, body: bytes) -> None:
        """A response that came in one read, and ends with its length."""
        exchange = self._exchange
        message = self.on_response(answer, len(body), body, _RESPONDED)
        # First, so that a client that is slow to take it pauses no other client's connection.
        self._upstream = None
        self._client.transport.write(message)
        exchange.bytes_out = len(message)
        exchange.ending = body
        exchange.ended_at = exchange.first_byte_at
        next(self.steps, None)

    def on_early_response(self) -> None:
        """The engine begins the stream whose head has gone out."""
        exchange = self._exchange
        exchange.on(Event.BEGIN)
        exchange.first_byte_at = self._services.clock.now()
        self._free_body()

    def on_first_event(self) -> None:
        """The engine's stream has its first event with content."""
        self._exchange.first_token_at = self._services.clock.now()

    def on_response_done(self) -> None:
        self._exchange.on(Event.RESPONSE_SENT)
        self._release_upstream()
        self._resume()

    def on_upstream_failed(self, error: UpstreamError) -> None:
        """The engine's connection is gone before a head came."""
        self._upstream = None
        self._failure = "no_answer"
        self._interrupt(error)

    def on_cut(self, error: GatewayError, *, may_insert: bool) -> None:
        """The response broke off after its head."""
        self._release_upstream()
        self._may_insert = may_insert
        self._failure = "broken_off"
        self._interrupt(error)

    def on_engine_refused(self, body: bytes) -> None:
        """The engine has responded with *body* where a stream was to come."""
        self._release_upstream()
        exchange = self._exchange
        exchange.bytes_out = 0
        event = local_response.refusal_event(body, is_anthropic=exchange.request.route.is_anthropic)
        self._interrupt(RefusedStream(event or b""))

    # Time ---------------------------------------------------------------------------------------

    def on_tick(self, now: float) -> None:
        """End the request, or what it waits for, when that is overdue."""
        services, upstream = self._services, self._upstream
        if upstream is not None and upstream.bytes_passed != self._seen:
            self._seen = upstream.bytes_passed
            services.engine.responded_at = now
            self._deadline = now + services.timeouts.request_timeout
        limit, forwarded_at = services.timeouts.max_request_duration, self._exchange.forwarded_at
        if limit and forwarded_at and now >= forwarded_at + limit:
            self._give_up(UpstreamTimeout("The response took longer than MAX_REQUEST_DURATION."))
        elif now >= self._deadline:
            self._on_deadline(now)
        elif services.timeouts.sse_keepalive:
            self._keep_alive(now)

    def _on_deadline(self, now: float) -> None:
        timeout = self._services.timeouts.request_timeout
        match self._exchange.state:
            case State.READING:
                self._interrupt(
                    RequestTimeout("The request body did not arrive in time.", close=True)
                )
            case State.QUEUED | State.OPEN_QUEUED:
                self._interrupt(self._queue_timeout())
            case _ if self._client.is_write_paused:
                self._deadline = now + timeout
                self._client.check_reader()
            case _:
                message = f"The engine sent nothing for {timeout:g} seconds."
                self._give_up(UpstreamTimeout(message))

    def _queue_timeout(self) -> GatewayError:
        services = self._services
        if not services.engine.is_ready:
            return services.engine.unavailable()
        return QueueTimeout("No slot became free in time.", retry_after=1.0)

    def _give_up(self, error: UpstreamTimeout) -> None:
        """The engine is too slow."""
        if self._connecting is not None:
            self._exchange.forwarded_at = 0.0  # it was not connected: nothing was sent
        self._may_insert = self._upstream is not None and self._upstream.may_insert_event
        self._services.metrics.backend_failures["timeout"] += 1
        self._interrupt(error)

    # A stream that waits ------------------------------------------------------------------------

    def _keep_alive(self, now: float) -> None:
        """Send a sign of life on a stream that has been silent for SSE_KEEPALIVE."""
        exchange, early = self._exchange, self._early
        horizon = now - self._services.timeouts.sse_keepalive
        if early is not None:
            if exchange.is_open and early.sent_at <= horizon and not self._client.is_write_paused:
                early.wait(now)
        elif (
            exchange.may_reply
            and 0 < exchange.waits_since <= horizon
            and exchange.stream_search is None
            and exchange.request.route.may_stream
        ):
            exchange.stream_search = StreamSearch()
            self._services.stream_searches.add(self, exchange.stream_search)

    def search_body(self, search: StreamSearch, effort: int, now: float) -> int:
        """Search on for ``stream`` in the body; begin the stream if it asks for one.

        Returns:
            The effort that it took, as ``StreamSearch.advance`` counts it.
        """
        if self._is_over or not self._exchange.may_reply:
            search.answer = False  # it no longer waits
            return 0
        try:
            spent = search.advance(self._body, effort)
            if search.answer:
                self._begin_early(now)
        except Exception:  # a bug in the gateway: the other searches have their turn all the same
            search.answer = False
            self._client.on_bug()
            return effort
        return spent

    def _begin_early(self, now: float) -> None:
        exchange = self._exchange
        exchange.on(Event.OPEN)
        exchange.status = 200
        early = self._early = EarlyStream(self, now)
        framing = CHUNKED if self.reads_chunks else b""
        lines = [local_response.NO_BUFFERING, framing, *self._client.common_lines(exchange)]
        head = local_response.head(
            200, lines, length=None, content_type=local_response.EVENT_STREAM
        )
        early.send(head, local_response.WAITING)
        if self._upstream is not None:
            self._upstream.hand_over(early)

    # Failures -----------------------------------------------------------------------------------

    def _prepare_to_send_again(self, exchange: Exchange, error: UpstreamError) -> None:
        """Raises *error* where the client is to learn of it."""
        if isinstance(error, RefusedStream):  # the engine did respond
            raise error
        services = self._services
        may_come_back = (
            isinstance(error, UpstreamRefused)
            and exchange.request.route.needs_slot
            and services.engine.suspect()
        )
        match failure_policy.decide(error, exchange, may_come_back=may_come_back):
            case Action.REQUEUE:
                exchange.on(Event.REQUEUE)
                assert exchange.runs_in is not None
                exchange.runs_in.done(self.key_id)
                exchange.runs_in = None
                self._seen = 0
            case Action.RETRY:
                exchange.has_retried = True
            case _:
                services.metrics.backend_failures[self._failure] += 1
                if self._failure is not _CONNECT:
                    services.engine.suspect()
                raise error

    def _end_with(self, error: GatewayError) -> None:
        """Respond with *error*, or break off the response that has begun."""
        self._let_go()
        exchange, client = self._exchange, self._client
        if exchange.is_counted and not exchange.forwarded_at:
            self._take_back()
        if exchange.may_reply:
            client.respond_error(exchange, error)
            return
        event = error.event if isinstance(error, RefusedStream) else b""
        if not event and (self._may_insert or exchange.is_open):
            event = local_response.error_event(
                error,
                is_anthropic=exchange.request.route.is_anthropic,
                request_id=exchange.request_id,
            )
        client.break_off(exchange, error, frame(event) if event and self.reads_chunks else event)

    def _take_back(self) -> None:
        """A request that is refused costs its key nothing."""
        exchange = self._exchange
        exchange.is_counted = False
        principal = self._services.authenticator.named(exchange.key_id)
        if principal is not None and principal.limiter is not None:
            principal.limiter.take_back(exchange.started_at)
            exchange.rate_fields = principal.fields_at(self._services.clock.now())

    # The end ------------------------------------------------------------------------------------

    def _give_back(self, exchange: Exchange) -> None:
        """Give back all that the request holds, whatever ended it."""
        self._is_over = True
        if self._upstream is not None or self._connecting is not None:
            self._let_go()
        if exchange.reserved_bytes:
            self._free_body()
        if exchange.runs_in is not None:
            exchange.runs_in.done(self.key_id)
        elif exchange.waits_in is not None:
            exchange.waits_in.leave(self)

    def _let_go(self) -> None:
        """Stop the work that the engine does for this request."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        upstream = self._upstream
        if upstream is not None:
            self._release_upstream()
            self._stop(upstream)
        if self._early is not None:
            self._exchange.bytes_out += self._early.bytes_sent
            self._early = None

    def _stop(self, upstream: UpstreamConnection) -> None:
        exchange = self._exchange
        admission = exchange.runs_in
        if admission is None or not upstream.may_leave:
            upstream.abort()
            return
        # The slot is given back when the engine has noticed, which may take it a while. Sooner,
        # the next request would wait inside the engine, where a departure goes unseen.
        exchange.runs_in = None
        key_id = self.key_id
        admission.depart(key_id)
        self._services.pool.leave(upstream, lambda: admission.done(key_id, has_departed=True))

    def _release_upstream(self) -> None:
        """The engine's connection is done with this request: keep what is to be logged."""
        upstream, self._upstream = self._upstream, None
        if upstream is None:
            return
        exchange = self._exchange
        exchange.bytes_out = upstream.bytes_passed
        if exchange.first_byte_at:
            exchange.opening = upstream.window.opening
            exchange.ending = upstream.window.ending


def _no_memory() -> GatewayError:
    return QueueFull("The memory for waiting request bodies is full.", retry_after=1.0)
