"""One request to the engine, from its key to the last byte of its response.

``_run`` is its life, and reads from top to bottom. It is a generator, not a task: each ``yield``
waits for one thing, and what it waited for calls ``resume``, or ``_interrupt`` with what went
wrong. So nothing is scheduled on the way, and ``finally`` gives back all that the request held,
whatever ended it.

The bytes of a response do not pass here: the engine's connection writes them to the client's
transport.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llama_gguf.errors import (
    ConcurrencyLimited,
    EngineCrashed,
    GatewayError,
    QueueFull,
    QueueTimeout,
    RequestTimeout,
    UpstreamError,
    UpstreamTimeout,
)
from llama_gguf.gateway.authorisation import authorise, take_back, too_large
from llama_gguf.gateway.client import Client
from llama_gguf.gateway.sse_keepalive import EarlyStream
from llama_gguf.http1 import local_response
from llama_gguf.http1.chunked import frame
from llama_gguf.http1.fields import Framing
from llama_gguf.http1.request import LENGTH_LINES
from llama_gguf.http1.response import Response
from llama_gguf.http1.sse import has_final_event, outcome_of
from llama_gguf.http1.stream_member import StreamSearch
from llama_gguf.scheduling import failure_policy
from llama_gguf.scheduling.admission import Admission, SlotLease, Verdict
from llama_gguf.scheduling.exchange import Event, Exchange, State
from llama_gguf.scheduling.failure_policy import Action, Failure
from llama_gguf.scheduling.replay_order import MARGIN_SECONDS
from llama_gguf.telemetry.metrics import Failure as FailureKind

if TYPE_CHECKING:
    from llama_gguf.gateway.engine_tracker import EngineTracker
    from llama_gguf.gateway.pool import ConnectAttempt
    from llama_gguf.gateway.replica import Replica
    from llama_gguf.gateway.services import Services
    from llama_gguf.gateway.upstream_connection import ResponseReceiver, UpstreamConnection
    from llama_gguf.net.transport import Transport

CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"

_FORWARD: Final = Event.FORWARD
_HEAD_SENT: Final = Event.HEAD_SENT
_RESPONDED: Final = Event.RESPONDED
_LENGTH: Final = Framing.LENGTH

Steps = Generator[None, None, None]


_CONNECT: Final[FailureKind] = "connect"


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
    """An ``upstream.ResponseReceiver`` by its methods, and a ``Ticket`` of the queue.

    Args:
        services: of the gateway.
        client: whose request it is.
        exchange: its head, and what there will be to log.
        length: of its body; 0 if that is not known.
        body: None if more of it is to come.
    """

    # Most requests leave most of these as they are, and on the class they cost nothing.
    key_id = "-"
    _lease: SlotLease[Replica] | None = None
    """Its slot at an engine."""
    _queue: Admission[Replica] | None = None
    """In which it waits for one."""
    _body: bytes | bytearray = b""
    """Held until the engine begins to respond."""
    _upstream: UpstreamConnection | None = None
    _connecting: ConnectAttempt | None = None
    _early: EarlyStream | None = None
    _may_insert = False
    """Whether an error event may follow what the client has got, when the response fails."""
    _failure: FailureKind = "no_answer"
    """In which phase the engine failed, as the metrics have it."""
    _was_sent = False
    """Whether an engine may have received anything of it."""
    _has_begun = False
    """Whether the client has received anything of a response that was cut."""
    _is_again = False
    """Whether it had a slot before, and is to be sent again."""
    _failed_by: EngineTracker | None = None
    """The engine that failed it last."""
    _deaths_before = 0
    """How often that engine had died when the request was sent to it."""
    _deaths = 0
    """Engines that are known to have died while they worked on the request."""
    _queue_deadline = math.inf
    _ran_for = 0.0
    """Seconds that it had run when an engine failed it last."""
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
        self._steps = self._run(length, body)

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

    @property
    def is_delivered(self) -> bool:
        """Whether the client has received the last event of a stream."""
        exchange = self._exchange
        ending = exchange.ending if self._upstream is None else self._upstream.window.ending
        return exchange.state is State.STREAMING and has_final_event(ending)

    # Its life -----------------------------------------------------------------------------------

    def _run(self, length: int, body: bytes | bytearray | None) -> Steps:
        exchange = self._exchange
        now = exchange.started_at
        try:
            self.key_id = authorise(self._services, self._client, exchange, length)
            if body is None:
                body = yield from self._read_body(exchange, length)
                now = self._services.clock.now()
            self._body = body
            exchange.bytes_in = len(body)
            while True:
                if self._lease is None and not self._admit(exchange, now):
                    yield  # until a slot is granted
                try:
                    if not self._connect(exchange):
                        yield  # until there is a connection
                    self._send(exchange)
                    yield  # until the response is whole
                    break
                except UpstreamError as error:
                    is_its_turn = self._prepare_to_send_again(exchange, error)
                if not is_its_turn:
                    yield  # until it is its turn to be sent again
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

    def resume(self) -> None:
        """Go on, from the start or from where the request waits, to where it waits next."""
        for _ in self._steps:  # costs less than `next(…, None)` when compiled
            return

    def _interrupt(self, error: GatewayError | ClientLeft) -> None:
        """Raise *error* where the request waits."""
        if not self._is_over:  # as it is by a bug; then the connection is being cut
            with suppress(StopIteration):
                self._steps.throw(error)

    # What the client's connection calls ---------------------------------------------------------

    def on_body_grown(self, size: int) -> None:
        """*size* bytes of the body have arrived.

        Raises:
            PayloadTooLarge: they are too many.
            QueueFull: there is no memory for them.
        """
        if size > self._services.max_body_size:
            raise too_large(self._services.max_body_size)
        self._reserve(size)
        self._set_body_deadline()

    def on_body(self, body: bytearray) -> None:
        """The body is whole."""
        self._body = body
        self.resume()

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
            EngineCrashed: it is not sent to an engine again.
        """
        services = self._services
        needs_slot = exchange.request.route.needs_slot
        if not services.engine.is_ready:
            services.engine.require(may_wait=needs_slot)
        admission = services.admission if needs_slot else services.side_admission
        if self._is_again:
            return self._queue_again(exchange, now)
        if services.crash_memory.is_in_use and needs_slot:
            self._check_crash_memory(exchange)
        granted = admission.arrive(self, self.key_id)
        if isinstance(granted, SlotLease):
            self._forward(exchange, granted, now)
            return True
        if granted is not Verdict.QUEUED:
            raise self._not_admitted(granted)
        self._queue = admission
        exchange.on(Event.QUEUE)
        exchange.queued_at = now
        self._deadline = self._queue_deadline = now + services.queue.max_queue_wait
        self._reserve(exchange.bytes_in)
        return False

    def _queue_again(self, exchange: Exchange, now: float) -> bool:
        """As ``_admit``, for a request that had a slot."""
        admission = self._services.admission
        lease = admission.queue_again(self, self.key_id)
        if lease is not None:
            self._forward(exchange, lease, now)
            return True
        self._queue = admission
        return False

    def _forward(self, exchange: Exchange, lease: SlotLease[Replica], now: float) -> None:
        """It has a slot from *now* on."""
        self._lease = lease  # first, so that it is given back in any case
        exchange.on(_FORWARD)
        exchange.forwarded_at = now
        self._deadline = now + self._services.request_timeout

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

    def on_slot(self, lease: SlotLease[Replica]) -> None:
        """The queue grants a slot. Nothing is raised: the others' turn comes after this one."""
        self._queue = None
        try:
            self._forward(self._exchange, lease, self._services.clock.now())
            self.resume()
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
        assert self._lease is not None
        pool = self._lease.engine.pool
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
            self.resume()

    def on_connect_failed(self, error: UpstreamError) -> None:
        """The pool could not make a connection."""
        self._connecting = None
        self._failure = _CONNECT
        self._exchange.forwarded_at = 0.0  # nothing of it was sent
        self._interrupt(error)

    def _send(self, exchange: Exchange) -> None:
        upstream, lease = self._upstream, self._lease
        assert upstream is not None
        assert lease is not None
        request = exchange.request
        tracker = lease.engine.tracker
        if self._failed_by is not None:
            self._deaths += self._failed_by.deaths > self._deaths_before
            self._failed_by = None
        self._deaths_before = tracker.deaths
        self._was_sent = True
        if self._client.is_write_paused:
            upstream.pause_reading()
        receiver: ResponseReceiver = self if self._early is None else self._early
        message = request.serialised(lease.engine.header_lines, exchange.id_bytes, self._body)
        upstream.send(receiver, message, to_head=request.is_to_head)

    # The engine's response ----------------------------------------------------------------------

    def on_response(
        self, response: Response, length: int, body: bytes = b"", event: Event = _HEAD_SENT
    ) -> bytes:
        """The head of the engine's response is there; return what the client gets for it.

        With *body* behind it, where all of that has come.
        """
        exchange, services, client = self._exchange, self._services, self._client
        exchange.on(event)
        exchange.status = response.status
        exchange.first_byte_at = services.clock.now()
        if response.status < 500:
            services.engine.responded_at = exchange.first_byte_at
        if services.connections.is_draining:
            client.keep_alive = False
        return b"".join(
            (
                response.opening,
                LENGTH_LINES[length]
                if response.framing is _LENGTH
                else self._framing_field(response, length),
                b"x-request-id: ",
                exchange.id_bytes,
                b"\r\n",
                exchange.rate_fields,
                exchange.request.cors,
                b"" if response.has_date else services.clock.date,
                b"\r\n" if client.keep_alive else b"Connection: close\r\n\r\n",
                body,
            )
        )

    def _framing_field(self, response: Response, length: int) -> bytes:
        if response.framing is Framing.NONE:
            return LENGTH_LINES[length] if response.has_length else b""
        if self.reads_chunks:
            return CHUNKED
        self._client.keep_alive = False  # only the end of the connection marks the end
        return b""

    def on_whole_response(self, response: Response, body: bytes) -> None:
        """A response that came in one read, and ends with its length."""
        exchange = self._exchange
        message = self.on_response(response, len(body), body, _RESPONDED)
        # First, so that a client that is slow to take it pauses no other client's connection.
        self._upstream = None
        self._client.transport.write(message)
        exchange.bytes_out = len(message)
        exchange.ending = body
        exchange.ended_at = exchange.first_byte_at
        self.resume()

    def on_early_response(self) -> None:
        """The engine begins the stream whose head has gone out."""
        exchange = self._exchange
        exchange.on(Event.BEGIN)
        exchange.first_byte_at = self._services.clock.now()

    def on_body_begun(self) -> None:
        """The client receives the first content: from now on, the request is not sent again."""
        self._free_body()
        if self._is_again:
            self._services.replay_order.leave(self)
        if self._upstream is not None and self._upstream.window.is_event_stream:
            self._exchange.first_token_at = self._services.clock.now()

    def on_response_done(self) -> None:
        exchange = self._exchange
        exchange.on(Event.RESPONSE_SENT)
        if self._upstream is not None and self._upstream.window.is_event_stream:
            exchange.outcome = outcome_of(self._upstream.window.ending)
        self._release_upstream()
        self.resume()

    def on_upstream_failed(self, error: UpstreamError) -> None:
        """The engine's connection is gone before a head came."""
        self._upstream = None
        self._failure = "no_answer"
        self._interrupt(error)

    def on_cut(self, error: GatewayError, *, may_insert: bool, has_begun: bool) -> None:
        """The response broke off after its head."""
        self._release_upstream()
        self._may_insert = may_insert
        self._has_begun = has_begun
        self._failure = "broken_off"
        self._interrupt(error)

    def on_engine_refused(self, body: bytes) -> None:
        """The engine has responded with *body* where a stream was to come."""
        exchange = self._exchange
        before = exchange.bytes_out
        self._release_upstream()
        exchange.bytes_out = before  # the client has received none of it
        event = local_response.refusal_event(body, is_anthropic=exchange.request.route.is_anthropic)
        self._interrupt(RefusedStream(event or b""))

    # Time ---------------------------------------------------------------------------------------

    def on_tick(self, now: float) -> None:
        """End the request, or what it waits for, when that is overdue."""
        services, upstream = self._services, self._upstream
        if upstream is not None and upstream.bytes_passed != self._seen:
            self._seen = upstream.bytes_passed
            services.engine.responded_at = now
            self._deadline = now + services.request_timeout
        limit, forwarded_at = services.timeouts.max_request_duration, self._exchange.forwarded_at
        if self._is_again and forwarded_at and now > forwarded_at + self._ran_for + MARGIN_SECONDS:
            services.replay_order.leave(self)
        if limit and forwarded_at and now >= forwarded_at + limit:
            self._give_up(UpstreamTimeout("The response took longer than MAX_REQUEST_DURATION."))
        elif now >= self._deadline:
            self._on_deadline(now)
        elif services.timeouts.sse_keepalive:
            self._keep_alive(now)

    def _on_deadline(self, now: float) -> None:
        timeout = self._services.request_timeout
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
            self._exchange.forwarded_at = 0.0  # nothing of it was sent
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

    def _prepare_to_send_again(self, exchange: Exchange, error: UpstreamError) -> bool:
        """Whether it can be sent again now, and not only later; raises what ends it otherwise."""
        if isinstance(error, RefusedStream):  # the engine did respond
            raise error
        services, lease = self._services, self._lease
        assert lease is not None
        tracker = lease.engine.tracker
        if self._failure is _CONNECT:
            tracker.on_connect_failed()
        failure = Failure(
            error,
            was_sent=self._was_sent,
            has_begun=self._has_begun,
            may_wait=tracker.may_come,
            deaths=self._deaths,
        )
        action = failure_policy.decide(failure, exchange, max_replays=services.queue.max_replays)
        if action is Action.RETRY:
            exchange.has_retried = True
            return True
        if action is not Action.REQUEUE:
            services.metrics.backend_failures[self._failure] += 1
        match action:
            case Action.REQUEUE:
                self._leave_engine(exchange)
                return True
            case Action.REPLAY:
                exchange.replays += 1
                self._failed_by = tracker
                self._leave_engine(exchange)
                return services.replay_order.enter(self, self._on_turn)
            case Action.REFUSE:
                services.crash_memory.add(self._digest(exchange), services.clock.now())
                raise EngineCrashed(
                    "Two engines have stopped while they worked on this request, so it is refused."
                )
            case _:
                raise error

    def _leave_engine(self, exchange: Exchange) -> None:
        """Give the slot back, to be queued again.

        Raises:
            QueueFull: there is no memory for the request's body while it waits.
        """
        now = self._services.clock.now()
        if exchange.state is not State.FORWARDING:  # the client has the head of a stream
            self._end_early_stream()
            self._early = EarlyStream(self, now)
        if self._was_sent:
            self._ran_for = now - exchange.forwarded_at
            exchange.queued_at = now - exchange.queued  # so that all its waiting counts, and no run
        else:
            exchange.queued_at = exchange.queued_at or now
        if self._was_sent or not self._is_again:
            self._queue_deadline = now + self._services.queue.max_queue_wait
        self._deadline = self._queue_deadline
        exchange.forwarded_at = 0.0
        exchange.on(Event.REQUEUE)
        self._release_slot()
        self._was_sent = self._has_begun = False
        self._is_again = True
        self._seen = 0
        self._reserve(exchange.bytes_in)

    def _on_turn(self) -> None:
        self._services.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if not self._is_over:
            try:
                self.resume()
            except Exception:  # as in on_slot
                self._client.on_bug()

    def _check_crash_memory(self, exchange: Exchange) -> None:
        """Raises EngineCrashed if two engines died during the same request not long ago."""
        services = self._services
        remaining = services.crash_memory.remaining(self._digest(exchange), services.clock.now())
        if remaining:
            raise EngineCrashed(
                "Two engines have stopped while they worked on the same request, so it is refused "
                f"for another {remaining:.0f} seconds."
            )

    def _digest(self, exchange: Exchange) -> bytes:
        """Identifies the request, whichever key sends it."""
        body = hashlib.blake2b(self._body, digest_size=16)
        body.update(exchange.request.head.path)
        return body.digest()

    def _end_with(self, error: GatewayError) -> None:
        """Respond with *error*, or break off the response that has begun."""
        self._let_go()
        exchange, client = self._exchange, self._client
        if exchange.is_counted and not exchange.forwarded_at and not exchange.replays:
            take_back(self._services, exchange)
        if exchange.may_reply:
            client.respond_error(exchange, error)
            return
        event = error.event if isinstance(error, RefusedStream) else b""
        if not event and (self._may_insert or exchange.is_open) and not self.is_delivered:
            event = local_response.error_event(
                error,
                is_anthropic=exchange.request.route.is_anthropic,
                request_id=exchange.request_id,
            )
        client.break_off(exchange, error, frame(event) if event and self.reads_chunks else event)

    # The end ------------------------------------------------------------------------------------

    def _give_back(self, exchange: Exchange) -> None:
        """Give back all that the request holds, whatever ended it."""
        self._is_over = True
        if self._is_again:
            self._services.replay_order.leave(self)
        if self._upstream is not None or self._connecting is not None:
            self._let_go()
        if exchange.reserved_bytes:
            self._free_body()
        if self._lease is not None:
            self._release_slot()
        elif self._queue is not None:
            self._queue.leave(self)

    def _release_slot(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def _let_go(self) -> None:
        """Stop the work that the engine does for this request."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        upstream = self._upstream
        if upstream is not None:
            self._release_upstream()
            self._stop(upstream)
        self._end_early_stream()

    def _end_early_stream(self) -> None:
        if self._early is not None:
            self._exchange.bytes_out += self._early.bytes_sent
            self._early = None

    def _stop(self, upstream: UpstreamConnection) -> None:
        lease = self._lease
        if lease is None or not upstream.may_leave:
            upstream.abort()
            return
        # The slot is given back when the engine has noticed, which may take it a while. Sooner,
        # the next request would wait inside the engine, where a departure goes unseen.
        self._lease = None
        lease.depart()
        lease.engine.pool.leave(upstream, lease.release)

    def _release_upstream(self) -> None:
        """The engine's connection is done with this request: keep what is to be logged."""
        upstream, self._upstream = self._upstream, None
        if upstream is None:
            return
        exchange = self._exchange
        exchange.bytes_out += upstream.bytes_passed
        if exchange.first_byte_at:
            exchange.opening = upstream.window.opening
            exchange.ending = upstream.window.ending


def _no_memory() -> GatewayError:
    return QueueFull("The memory for waiting request bodies is full.", retry_after=1.0)
