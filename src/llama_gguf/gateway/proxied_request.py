"""One request to an engine, from its key to the last byte of its response.

``_run`` is its life, and reads from top to bottom. It is a generator, not a task: each ``yield``
waits for one thing, and what it waited for calls ``resume``, or ``interrupt`` with what went
wrong. So nothing is scheduled on the way, and ``finally`` gives back all that the request held.

What happens at an engine is in ``attempt.py``: a request has one attempt, and another one if an
engine fails it before its response has begun (``scheduling/failure_policy.py``).
"""

from __future__ import annotations

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
    UpstreamBusy,
    UpstreamError,
    UpstreamLost,
    UpstreamTimeout,
)
from llama_gguf.gateway.attempt import (
    CHUNKED,
    CONNECT,
    Attempt,
    Attempting,
    RefusedStream,
    Steps,
)
from llama_gguf.gateway.authorisation import authorise, take_back, too_large
from llama_gguf.gateway.budgets import reserve
from llama_gguf.gateway.client import Client
from llama_gguf.gateway.replay import Replay
from llama_gguf.gateway.response_events import ResponseRelay, response_id, waiting_event
from llama_gguf.gateway.retry_hint import until_one_ends
from llama_gguf.gateway.sessions import session_of
from llama_gguf.gateway.sse_keepalive import EarlyStream, HeadlessReceiver
from llama_gguf.http1 import error_events, local_response
from llama_gguf.http1.chunked import frame
from llama_gguf.http1.routes import Dialect
from llama_gguf.http1.stream_member import StreamSearch
from llama_gguf.scheduling import failure_policy
from llama_gguf.scheduling.admission import Admission, SlotLease, Verdict
from llama_gguf.scheduling.exchange import Event, Exchange, State
from llama_gguf.scheduling.failure_policy import Action, Failure
from llama_gguf.scheduling.sessions import NO_SESSION

if TYPE_CHECKING:
    from llama_gguf.gateway.replica import Replica
    from llama_gguf.gateway.services import Services
    from llama_gguf.gateway.upstream_connection import UpstreamConnection

_FORWARD: Final = Event.FORWARD


class ClientLeft(Exception):
    """The client is gone, so there is no response."""


class ProxiedRequest(Attempting):
    """A ``Ticket`` of the queue by its methods.

    Args:
        services: of the gateway.
        client: whose request it is.
        exchange: its head, and what there will be to log.
        length: of its body; 0 if that is not known.
        body: None if more of it is to come.
    """

    # Most requests leave most of these as they are, and on the class they cost nothing.
    key_id = "-"
    session = NO_SESSION
    _queue: Admission[Replica] | None = None
    """In which it waits for a slot."""
    _attempt: Attempt | None = None
    """While it has a slot."""
    _body: bytes | bytearray = b""
    """Held until the client receives the first content of the response."""
    _early: EarlyStream | None = None
    """What the client has of a stream that no engine has begun."""
    _replay: Replay | None = None
    """Once an engine has failed it."""
    _seen = 0
    """Bytes of the response that had been received at the last tick."""
    _silent_since = 0.0
    """The last tick that found something new of the response, or sent a comment on it."""
    _deadline = math.inf
    """When what it waits for is overdue: more of the body, a slot, or data from the engine."""
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
                attempt = self._attempt or self._admit(exchange, now)
                if attempt is None:
                    yield  # until a slot is granted
                    attempt = self._attempt
                    assert attempt is not None
                try:
                    if not attempt.connect(on_new=exchange.has_retried):
                        yield  # until there is a connection
                    self._send(attempt)
                    yield  # until the response is whole
                    break
                except UpstreamError as error:  # no timeout: what took too long is not sent again
                    is_its_turn = self._prepare_to_send_again(exchange, attempt, error)
                if not is_its_turn:
                    yield  # until it is its turn to be sent again
                now = self._services.clock.now()
            if self._early is not None:
                self._end_early_stream()
            self._client.finish(exchange)
        except GatewayError as error:
            self._end_with(error)
        except ClientLeft:
            self._end_attempt()
        finally:
            self._give_back(exchange)

    def resume(self) -> None:
        for _ in self._steps:  # costs less than `next(…, None)` when compiled
            return

    def interrupt(self, error: Exception) -> None:
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

    def abandon(self) -> None:
        """The client is gone: stop the work that is done for it, wherever it stands."""
        self.interrupt(ClientLeft())

    def pause_reading(self) -> None:
        """The client takes nothing: neither does the gateway take anything from the engine."""
        if self._attempt is not None:
            self._attempt.pause_reading()

    def resume_reading(self) -> None:
        self._seen = -1  # counts as progress: the engine may have been silent because of it
        if self._attempt is not None:
            self._attempt.resume_reading()

    @property
    def upstream(self) -> UpstreamConnection | None:
        """The engine's connection, while the request uses one."""
        return None if self._attempt is None else self._attempt.upstream

    @property
    def is_delivered(self) -> bool:
        """Whether the client has received the last event of a stream."""
        attempt = self._attempt
        return (
            attempt is not None
            and self._exchange.state is State.STREAMING
            and attempt.has_final_event
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

    def _reserve(self, size: int) -> None:
        """Count all *size* bytes that have arrived of its body.

        A body that came with its head, and is forwarded at once, is never counted: a read is no
        larger than 64 KiB, and no more of them run than there are slots.

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

    def on_body_begun(self) -> None:
        self._free_body()
        if self._replay is not None:
            self._services.fleet.replay_order.leave(self)

    # Admit --------------------------------------------------------------------------------------

    def _admit(self, exchange: Exchange, now: float) -> Attempt | None:
        """Its attempt, if there is a slot; else it waits in the queue for one.

        Raises:
            Limited, QuotaExceeded: its key has used its budget.
            ConcurrencyLimited, QueueFull, ModelLoading, BackendUnavailable: it may not wait.
            EngineCrashed: it is not sent to an engine again.
        """
        services = self._services
        needs_slot = exchange.request.route.needs_slot
        if not services.fleet.is_ready:
            services.fleet.require(may_wait=needs_slot)
        admission = services.fleet.admission if needs_slot else services.fleet.side_admission
        if self._replay is not None:
            lease = admission.queue_again(self, self.key_id, self.session)
            if lease is not None:
                return self._begin_attempt(exchange, lease, now)
            self._queue = admission
            return None
        if exchange.has_budget:
            reserve(services, exchange, self._body)
        if services.fleet.crash_memory.is_in_use and needs_slot:
            self._check_crash_memory(exchange)
        if services.fleet.follows_sessions and needs_slot:
            self._find_session(exchange)
        granted = admission.arrive(self, self.key_id, self.session)
        if isinstance(granted, SlotLease):
            return self._begin_attempt(exchange, granted, now)
        if granted is not Verdict.QUEUED:
            raise self._not_admitted(granted)
        self._queue = admission
        exchange.on(Event.QUEUE)
        exchange.queued_at = now
        self._deadline = now + services.queue.max_queue_wait
        self._reserve(exchange.bytes_in)
        return None

    def _find_session(self, exchange: Exchange) -> None:
        sessions = self._services.fleet.admission.sessions
        self.session = session_of(exchange.request, self.key_id, self._body, sessions)

    def _begin_attempt(self, exchange: Exchange, lease: SlotLease[Replica], now: float) -> Attempt:
        """It has a slot from *now* on."""
        services = self._services
        # First, so that the slot is given back in any case.
        attempt = self._attempt = Attempt(self, services, self._client, exchange, lease)
        if services.fleet.has_choice:
            exchange.replica = lease.engine.label
        owners = lease.engine.owners
        if owners is not None:
            owners.add(self.key_id)
        exchange.on(_FORWARD)
        exchange.forwarded_at = now
        self._deadline = now + services.request_timeout
        return attempt

    def _send(self, attempt: Attempt) -> None:
        if self._replay is not None:
            self._replay.on_sent(attempt.replica)
        if self._early is None:
            attempt.send(self._body, attempt)
        else:
            attempt.send(self._body, self._headless(attempt))

    def _not_admitted(self, verdict: Verdict) -> GatewayError:
        services = self._services
        if verdict is Verdict.KEY_IS_BUSY:
            services.metrics.rate_limited[self.key_id, "concurrency"] += 1
            return ConcurrencyLimited(
                "Concurrent request limit reached for this API key (MAX_CONCURRENT_PER_KEY).",
                retry_after=until_one_ends(services.metrics, services.queue.max_concurrent_per_key),
            )
        if not services.fleet.is_ready:
            return services.fleet.unavailable()
        if verdict is Verdict.SHARE_IS_FULL:
            return QueueFull(
                "This API key has reached its share of the queue (MAX_QUEUE_SIZE); "
                "the rest is reserved for other keys.",
                retry_after=self._until_a_place_is_free(),
            )
        return QueueFull(
            "The queue is full (MAX_QUEUE_SIZE).", retry_after=self._until_a_place_is_free()
        )

    def _until_a_place_is_free(self) -> float:
        services = self._services
        return until_one_ends(services.metrics, services.fleet.admission.running)

    def on_slot(self, lease: SlotLease[Replica]) -> None:
        """The queue grants a slot. Nothing is raised: the others' turn comes after this one."""
        self._queue = None
        try:
            self._begin_attempt(self._exchange, lease, self._services.clock.now())
            self.resume()
        except Exception:  # a bug in the gateway; the slot is given back as the request ends
            self._client.on_bug()

    def on_refused(self, error: GatewayError) -> None:
        """The wait is over, and not because a slot came free."""
        try:
            self.interrupt(error)
        except Exception:  # as in on_slot
            self._client.on_bug()

    # Time ---------------------------------------------------------------------------------------

    def on_tick(self, now: float) -> None:
        """End the request, or what it waits for, when that is overdue."""
        services, attempt = self._services, self._attempt
        if attempt is not None and attempt.bytes_received != self._seen:
            self._seen = attempt.bytes_received
            attempt.replica.tracker.responded_at = self._silent_since = now
            self._deadline = now + services.request_timeout
        limit, forwarded_at = services.timeouts.max_request_duration, self._exchange.forwarded_at
        if self._replay and forwarded_at:
            order = services.fleet.replay_order
            if now > self._replay.turn_ends_at(forwarded_at, waiting=len(order)):
                order.leave(self)
        if limit and forwarded_at and now >= forwarded_at + limit:
            self._give_up(UpstreamTimeout("The response took longer than MAX_REQUEST_DURATION."))
        elif now >= self._deadline:
            self._on_deadline(now)
        elif services.timeouts.sse_keepalive:
            self._send_comment_if_due(now)

    def _on_deadline(self, now: float) -> None:
        timeout = self._services.request_timeout
        match self._exchange.state:
            case State.READING:
                self.interrupt(
                    RequestTimeout("The request body did not arrive in time.", close=True)
                )
            case State.QUEUED | State.AHEAD_QUEUED:
                self.interrupt(self._queue_timeout())
            case _ if self._client.is_write_paused:
                self._deadline = now + timeout
                self._client.check_reader()
            case _:
                message = f"The engine sent nothing for {timeout:g} seconds."
                self._give_up(UpstreamTimeout(message))

    def _queue_timeout(self) -> GatewayError:
        services = self._services
        if not services.fleet.is_ready:
            return services.fleet.unavailable()
        return QueueTimeout(
            "No slot became free in time (MAX_QUEUE_WAIT).",
            retry_after=self._until_a_place_is_free(),
        )

    def _give_up(self, error: UpstreamTimeout) -> None:
        """The engine is too slow."""
        if self._attempt is not None:
            self._attempt.on_too_slow()
        self._services.metrics.backend_failures["timeout"] += 1
        self.interrupt(error)

    # A stream that waits ------------------------------------------------------------------------

    def _send_comment_if_due(self, now: float) -> None:
        """Send a sign of life on a stream that has been silent for SSE_KEEPALIVE."""
        services, exchange, early = self._services, self._exchange, self._early
        horizon = now - services.timeouts.sse_keepalive
        if exchange.is_head_ahead:
            if early is not None and early.sent_at <= horizon and not self._client.is_write_paused:
                early.wait(now)
        elif exchange.state is State.STREAMING:
            silent_since = max(self._silent_since, exchange.first_byte_at)
            if not exchange.first_token_at and silent_since <= horizon:
                self._send_comment(now)
        elif (
            exchange.may_reply
            and 0 < exchange.waits_since <= horizon
            and exchange.stream_search is None
            and exchange.request.route.may_stream
            and not (self._is_response and services.timeouts.responses_keepalive == "hold")
        ):
            exchange.stream_search = StreamSearch()
            services.stream_searches.add(self, exchange.stream_search)

    def _send_comment(self, now: float) -> None:
        """Send a comment on a stream of which the engine has sent the head, and no event yet."""
        upstream, client, exchange = self.upstream, self._client, self._exchange
        if upstream is not None and upstream.may_insert_event and not client.is_write_paused:
            comment = local_response.WAITING
            data = frame(comment) if exchange.request.reads_chunks else comment
            exchange.bytes_out += len(data)
            client.transport.write(data)
            self._silent_since = now

    def search_body(self, search: StreamSearch, effort: int, now: float) -> int:
        """Search on for ``stream`` in the body; begin the stream if it requests one.

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
        except Exception:  # a bug in the gateway: the other searches continue
            search.answer = False
            self._client.on_bug()
            return effort
        return spent

    def _begin_early(self, now: float) -> None:
        exchange = self._exchange
        exchange.on(Event.SEND_HEAD_AHEAD)
        exchange.status = 200
        first = sign = local_response.WAITING
        if self._is_response:
            first, sign = self._response_events()
        early = self._early = EarlyStream(
            self._client.transport, now, exchange.request.reads_chunks, sign
        )
        framing = CHUNKED if exchange.request.reads_chunks else b""
        lines = [local_response.NO_BUFFERING, framing, *self._client.common_lines(exchange)]
        head = local_response.head(
            200, lines, length=None, content_type=local_response.EVENT_STREAM
        )
        early.send(head, first)
        if self._attempt is not None:
            self._attempt.hand_over(self._headless(self._attempt))

    @property
    def _is_response(self) -> bool:
        return self._exchange.request.route.dialect is Dialect.RESPONSES

    def _response_events(self) -> tuple[bytes, bytes]:
        """What a stream of Responses begins with, and its sign of life."""
        request_id = self._exchange.request_id
        model = self._services.fleet.status.model
        return (
            waiting_event("created", request_id=request_id, model=model),
            waiting_event("in_progress", request_id=request_id, model=model),
        )

    def _headless(self, attempt: Attempt) -> HeadlessReceiver:
        if not self._is_response:
            return HeadlessReceiver(attempt)
        own_id = response_id(self._exchange.request_id)
        return HeadlessReceiver(
            attempt,
            ResponseRelay(attempt.transport, own_id, reads_chunks=attempt.reads_chunks),
        )

    # Failures -----------------------------------------------------------------------------------

    def _prepare_to_send_again(
        self, exchange: Exchange, attempt: Attempt, error: UpstreamError
    ) -> bool:
        """Whether it can be sent again now; else when its turn comes. Raises what ends it."""
        services, tracker = self._services, attempt.replica.tracker
        is_busy = isinstance(error, UpstreamBusy)
        if is_busy:
            services.fleet.on_refused(attempt.replica, error.retry_after)
            refusal = services.fleet.refusal()
            if refusal is not None:
                raise refusal
        elif attempt.failure is CONNECT:
            tracker.on_connect_failed()
        else:
            services.fleet.on_connection_lost(attempt.replica)
        failure = Failure(
            error,
            was_sent=attempt.was_sent,
            has_begun=attempt.has_begun,
            may_wait=services.fleet.may_come,
            has_other=services.fleet.has_choice and services.fleet.has_other(attempt.replica),
            deaths=self._replay.deaths() if self._replay and self._is_suspect(attempt) else 0,
        )
        action = failure_policy.decide(failure, exchange, max_replays=services.queue.max_replays)
        if action is Action.RETRY:
            exchange.has_retried = True
            return True
        if action is not Action.REQUEUE:
            services.metrics.backend_failures[attempt.failure] += 1
        match action:
            case Action.REQUEUE:
                self._leave_engine(exchange, attempt, has_failed=attempt.was_sent and not is_busy)
                return True
            case Action.REPLAY:
                exchange.replays += 1
                exchange.has_retried = True  # kept connections have been lost as well, most likely
                services.metrics.replays[attempt.failure] += 1
                self._leave_engine(exchange, attempt, has_failed=True)
                services.fleet.replay_order.enter(self, self.key_id, self._on_turn)
                return False
            case Action.REFUSE:
                path, now = exchange.request.head.path, services.clock.now()
                services.fleet.crash_memory.add(path, self._body, now)
                services.fleet.replay_order.blame(self.key_id)
                if services.fleet.replay_order.first is self:
                    tracker.explained_deaths = attempt.deaths_before + 1
                raise EngineCrashed(
                    "The engine crashed twice while it processed this request; "
                    "the request is not sent again."
                )
            case _:
                raise error

    def _is_suspect(self, attempt: Attempt) -> bool:
        """Whether the engine may have died because of this request.

        Not where another one was being sent again: that has its turn so that it shows.
        """
        first = self._services.fleet.replay_order.first
        is_first = first is None or first is self
        if self._services.fleet.has_choice and isinstance(first, ProxiedRequest):
            is_first = is_first or not first.is_at(attempt.replica)
        return is_first and attempt.replica.tracker.explained_deaths <= attempt.deaths_before

    def is_at(self, replica: Replica) -> bool:
        """Whether it is with *replica* now."""
        return self._attempt is not None and self._attempt.replica is replica

    def on_silent_replica(self, replica: Replica) -> None:
        """*replica* no longer responds: another one can serve the request, if it has not begun."""
        attempt, exchange = self._attempt, self._exchange
        if (
            attempt is not None
            and attempt.replica is replica
            and attempt.may_be_replaced
            and exchange.request.route.needs_slot
            and exchange.replays < self._services.queue.max_replays
        ):
            self.interrupt(UpstreamLost("The engine no longer responds."))

    def _leave_engine(self, exchange: Exchange, attempt: Attempt, *, has_failed: bool) -> None:
        """Give the slot back, to be queued again.

        Args:
            exchange: its head, and what there will be to log.
            attempt: that is over.
            has_failed: whether the engine may have worked on the request.

        Raises:
            QueueFull: there is no memory for the request's body while it waits.
        """
        now = self._services.clock.now()
        if exchange.state is State.STREAMING and self._early is None:
            # The client has the head of the engine that failed.
            self._early = EarlyStream(self._client.transport, now, exchange.request.reads_chunks)
        is_first = self._replay is None
        replay = self._replay = self._replay or Replay()
        if has_failed:
            replay.on_failed(attempt, now, ran_for=now - exchange.forwarded_at)
        if has_failed or is_first:
            replay.queue_deadline = now + self._services.queue.max_queue_wait
        self._deadline = replay.queue_deadline
        exchange.queue_again(now)
        exchange.on(Event.REQUEUE)
        self._end_attempt()
        self._seen = 0
        self._reserve(exchange.bytes_in)

    def _on_turn(self) -> None:
        assert self._replay is not None
        self._services.fleet.wait_to_replay(self, self._replay.replica, self._take_turn)

    def _take_turn(self) -> None:
        if not self._is_over:
            try:
                self.resume()
            except Exception:  # as in on_slot
                self._client.on_bug()

    def _check_crash_memory(self, exchange: Exchange) -> None:
        """Raises EngineCrashed if two engines died during the same request not long ago."""
        path, now = exchange.request.head.path, self._services.clock.now()
        seconds = self._services.fleet.crash_memory.remaining(path, self._body, now)
        if seconds:
            raise EngineCrashed(
                "The engine crashed twice while it processed the same request; "
                f"retry in {seconds:.0f} seconds."
            )

    def _end_with(self, error: GatewayError) -> None:
        """Respond with *error*, or break off the response that has begun."""
        exchange, client = self._exchange, self._client
        may_insert = not self.is_delivered and (
            exchange.is_head_ahead or (self._attempt is not None and self._attempt.may_insert)
        )
        self._end_attempt()
        has_own_id = self._early is not None
        self._end_early_stream()
        if exchange.is_counted and not exchange.forwarded_at and not exchange.replays:
            take_back(self._services, exchange)
        if exchange.may_reply:
            client.respond_error(exchange, error)
            return
        event = error.event if isinstance(error, RefusedStream) else b""
        if may_insert and not event:
            event = error_events.error_event(
                error,
                exchange.request.route.dialect,
                request_id=exchange.request_id,
                opening=b"" if has_own_id else exchange.opening,
            )
        if event and exchange.request.reads_chunks:
            event = frame(event)
        client.break_off(exchange, error, event)

    # The end ------------------------------------------------------------------------------------

    def _give_back(self, exchange: Exchange) -> None:
        """Give back all that the request holds."""
        self._is_over = True
        if self._replay is not None:
            if self._replay.replica is not None:
                self._replay.replica.liveness.leave(self)
            self._services.fleet.replay_order.leave(self)
        if exchange.reserved_bytes:
            self._free_body()
        if self._attempt is not None:
            self._end_attempt()
        elif self._queue is not None:
            self._queue.leave(self)
        self._end_early_stream()

    def _end_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end()

    def _end_early_stream(self) -> None:
        if self._early is not None:
            self._exchange.bytes_out += self._early.bytes_sent
            self._early = None


def _no_memory() -> GatewayError:
    return QueueFull(
        "The memory for waiting request bodies is full (MAX_BODY_MEMORY).", retry_after=1.0
    )
