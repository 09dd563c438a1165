"""One attempt to have a request served: a slot of an engine, a connection to it, and its response.

The bytes of a response pass from the engine's connection to the client's transport; here are its
head, and the facts for the log. What follows a failed attempt is decided by the request.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, TypeAlias

from llama_gguf.errors import GatewayError, UpstreamError
from llama_gguf.gateway.client import Client
from llama_gguf.gateway.upstream_connection import Phase, UpstreamConnection
from llama_gguf.http1 import engine_errors, error_events
from llama_gguf.http1.chunked import LAST_CHUNK
from llama_gguf.http1.fields import Framing
from llama_gguf.http1.request import LENGTH_LINES
from llama_gguf.http1.response import Response
from llama_gguf.http1.routes import Dialect
from llama_gguf.http1.sse import ENGINE_ERROR, has_final_event, outcome_of
from llama_gguf.scheduling.admission import SlotLease
from llama_gguf.scheduling.exchange import Event, Exchange, State
from llama_gguf.telemetry.metrics import FailureKind

if TYPE_CHECKING:
    from llama_gguf.gateway.pool import ConnectAttempt
    from llama_gguf.gateway.replica import Replica
    from llama_gguf.gateway.services import Services
    from llama_gguf.gateway.upstream_connection import ResponseReceiver
    from llama_gguf.net.transport import Transport

CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
CONNECT: Final[FailureKind] = "connect"
_HEAD_SENT: Final = Event.HEAD_SENT
_RESPONDED: Final = Event.RESPONDED
_LENGTH: Final = Framing.LENGTH
_RESPONSES: Final = Dialect.RESPONSES

Steps: TypeAlias = Generator[None, None, None]


class RefusedStream(GatewayError):
    """The engine has responded with an error where a stream had begun.

    No ``UpstreamError``: the engine has not failed.

    Args:
        event: the error, as an event of the stream; empty where it could not be read.
    """

    status = UpstreamError.status
    code = UpstreamError.code

    def __init__(self, event: bytes) -> None:
        super().__init__("The engine did not respond with a stream.")
        self.event = event


class Attempting:
    """The request, as its attempts know it: ``proxied_request.py``.

    A native base class, and no ``typing.Protocol``, through which mypyc would call the interpreter.
    """

    def resume(self) -> None:
        """Run from the start, or from where the request waits, to where it waits next."""
        raise NotImplementedError

    def interrupt(self, error: Exception) -> None:
        """Raise *error* where the request waits."""
        raise NotImplementedError

    def on_body_begun(self) -> None:
        """The client receives the first content: from now on, the request is not sent again."""
        raise NotImplementedError


class Attempt:
    """An ``upstream_connection.ResponseReceiver`` by its methods.

    Args:
        request: that is attempted; resumed when there is a connection, and when the response is
            whole, and interrupted by a failure.
        services: of the gateway.
        client: of the request.
        exchange: its head, and what there will be to log.
        lease: its slot.
    """

    # Most attempts leave most of these as they are, and on the class they cost nothing.
    upstream: UpstreamConnection | None = None
    """The engine's connection, while the attempt uses one."""
    was_sent = False
    """Whether the engine may have received anything of the request."""
    has_begun = False
    """Whether the client has received anything of the body of a response that was cut."""
    may_insert = False
    """Whether an error event may follow what the client has got, when the response fails."""
    failure: FailureKind = "no_response"
    """In which phase the engine failed, as the metrics have it."""
    deaths_before = 0
    """How often the engine had died when the request was sent to it."""
    _connecting: ConnectAttempt | None = None

    def __init__(
        self,
        request: Attempting,
        services: Services,
        client: Client,
        exchange: Exchange,
        lease: SlotLease[Replica],
    ) -> None:
        self._request = request
        self._services = services
        self._client = client
        self._exchange = exchange
        self.lease = lease
        self.replica = lease.engine

    # Connect and send ---------------------------------------------------------------------------

    def connect(self, *, on_new: bool) -> bool:
        """Whether there is a connection by now; else the request is resumed when there is one.

        Args:
            on_new: a kept connection is not used.
        """
        pool = self.replica.pool
        if not on_new:
            self.upstream = pool.take()
            if self.upstream is not None:
                return True
        self._connecting = pool.connect(self)
        return self.upstream is not None

    def on_connected(self, upstream: UpstreamConnection) -> None:
        """The pool has made a connection; maybe within ``connect``."""
        self.upstream = upstream
        if self._connecting is not None:
            self._connecting = None
            self._request.resume()

    def on_connect_failed(self, error: UpstreamError) -> None:
        """The pool could not make a connection."""
        self._connecting = None
        self.failure = CONNECT
        self._exchange.forwarded_at = 0.0  # nothing of it was sent
        self._request.interrupt(error)

    def send(self, body: bytes | bytearray, receiver: ResponseReceiver) -> None:
        """Send the request, with *body*; *receiver* is the attempt, or stands before it."""
        upstream, exchange = self.upstream, self._exchange
        assert upstream is not None
        request, replica = exchange.request, self.replica
        self.was_sent = True
        self.deaths_before = replica.tracker.deaths
        if self._client.is_write_paused:
            upstream.pause_reading()
        message = request.serialised(replica.header_lines, exchange.id_bytes, body)
        upstream.send(receiver, message, is_head_request=request.is_head_request)

    # What the engine's connection calls ---------------------------------------------------------

    @property
    def transport(self) -> Transport:
        return self._client.transport

    @property
    def reads_chunks(self) -> bool:
        """False for HTTP/1.0: it gets a chunked body decoded."""
        return self._exchange.request.reads_chunks

    @property
    def holds_head(self) -> bool:
        """Clients of Responses wait for a head without limit, but not for the first event after it.

        Source: Codex 0.171, which gives up a stream after 300 s in which comments do not count.
        """
        return self._exchange.request.route.dialect is _RESPONSES

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
        replica = self.replica
        replica.responses += 1
        if response.status < 500:
            replica.tracker.responded_at = exchange.first_byte_at
            if replica.standing.is_watched:
                services.fleet.on_good_response(replica)
        else:
            services.fleet.on_error_response(replica)
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
                b"x-llama-gguf-replica: %b\r\n" % exchange.replica.encode("latin-1")
                if exchange.replica and services.shows_replica
                else b"",
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
        status = response.status
        if response.is_correctable:
            found = engine_errors.corrected(
                status, body, exchange.request.route.dialect, request_id=exchange.request_id
            )
            if found is not None:
                status, body = found
        message = self.on_response(response, len(body), body, _RESPONDED)
        if status != response.status:
            exchange.status = status
            message = b"HTTP/1.1 400 Bad Request" + message[message.index(b"\r\n") :]
        # First, so that a client that is slow to take it pauses no other client's connection.
        self.upstream = None
        self._client.transport.write(message)
        exchange.bytes_out = len(message)
        exchange.ending = body
        exchange.ended_at = exchange.first_byte_at
        self._request.resume()

    def on_stream_begun(self) -> None:
        """The engine begins the stream whose head the client has."""
        exchange = self._exchange
        exchange.on(Event.BEGIN)
        exchange.first_byte_at = self._services.clock.now()

    def on_body_begun(self) -> None:
        self._request.on_body_begun()
        if self.upstream is not None and self.upstream.window.is_event_stream:
            self._exchange.first_token_at = self._services.clock.now()

    def on_response_done(self) -> None:
        exchange = self._exchange
        exchange.on(Event.RESPONSE_SENT)
        if self.upstream is not None and self.upstream.window.is_event_stream:
            exchange.outcome = outcome_of(self.upstream.window.ending)
            if exchange.outcome == ENGINE_ERROR:
                self._services.metrics.backend_failures["engine_error"] += 1
        self._leave_connection()
        self._request.resume()

    def on_upstream_failed(self, error: UpstreamError) -> None:
        """The engine's connection is gone before a head came."""
        self.upstream = None
        self._request.interrupt(error)

    def on_cut(self, error: UpstreamError, *, may_insert: bool, has_begun: bool) -> None:
        """The response broke off after its head."""
        self._leave_connection()
        if self._exchange.state is State.STREAMING and self.has_final_event:
            self._finish_delivered(may_insert)
            return
        self.may_insert = may_insert
        self.has_begun = has_begun
        self.failure = "broken_off"
        self._request.interrupt(error)

    def _finish_delivered(self, is_between_chunks: bool) -> None:
        """Only the end of the connection is missing."""
        exchange, client = self._exchange, self._client
        client.keep_alive = False
        if is_between_chunks and self.reads_chunks:
            client.transport.write(LAST_CHUNK)
            exchange.bytes_out += len(LAST_CHUNK)
        exchange.on(Event.RESPONSE_SENT)
        self._request.resume()

    def on_refusal(self, body: bytes) -> None:
        """The engine has responded with *body* where a stream was to come."""
        exchange = self._exchange
        before = exchange.bytes_out
        self._leave_connection()
        exchange.bytes_out = before  # the client has received none of it
        event = error_events.refusal_event(
            body, exchange.request.route.dialect, request_id=exchange.request_id
        )
        self._request.interrupt(RefusedStream(event or b""))

    # What the request calls ---------------------------------------------------------------------

    @property
    def has_final_event(self) -> bool:
        """Whether the client has received the last event of a stream."""
        upstream, exchange = self.upstream, self._exchange
        return has_final_event(exchange.ending if upstream is None else upstream.window.ending)

    @property
    def bytes_received(self) -> int:
        """Of the response, so far."""
        return 0 if self.upstream is None else self.upstream.bytes_received

    @property
    def may_be_replaced(self) -> bool:
        """Whether it waits for the engine, and the client has received no content from it."""
        upstream = self.upstream
        if upstream is None:
            return False
        return upstream.phase is Phase.HEAD or not upstream.has_begun

    def on_too_slow(self) -> None:
        """The engine is given up: note how far the attempt has come."""
        if self._connecting is not None:
            self._exchange.forwarded_at = 0.0  # nothing of it was sent
        self.may_insert = self.upstream is not None and self.upstream.may_insert_event

    def pause_reading(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()

    def resume_reading(self) -> None:
        if self.upstream is not None:
            self.upstream.resume_reading()

    def hand_over(self, receiver: ResponseReceiver) -> None:
        """*receiver* stands before the attempt from now on: the response has not begun."""
        if self.upstream is not None:
            self.upstream.hand_over(receiver)

    def end(self) -> None:
        """Stop the work that the engine does for the request, and give the slot back."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        upstream, lease = self.upstream, self.lease
        if upstream is not None:
            self._leave_connection()
            if upstream.may_leave:
                # The slot is given back when the engine has noticed, which may take it a while.
                # Sooner, the next request would wait inside the engine, where a departure goes
                # unseen.
                lease.depart()
                self.replica.pool.leave(upstream, lease.release)
                return
            upstream.abort()
        lease.release()

    def _leave_connection(self) -> None:
        """The connection is done with this request: keep what is to be logged."""
        upstream, self.upstream = self.upstream, None
        if upstream is None:
            return
        exchange = self._exchange
        exchange.bytes_out += upstream.bytes_passed
        if exchange.first_byte_at:
            exchange.opening = upstream.window.opening
            exchange.ending = upstream.window.ending
