"""One client's connection: requests arrive one after the other, responses leave in that order.

Here are the bytes: where a head and a body end, what was sent ahead, backpressure, and whether the
connection stays open. What becomes of a request is in ``proxied_request.py``, or, for the gateway's
own paths, in ``endpoints.py``.

Rule: ``_state`` decides how incoming bytes are interpreted, and every change of it is in
``TRANSITIONS``.
"""

from __future__ import annotations

import enum
import math
import re
from typing import TYPE_CHECKING, Final

from llama_gguf.access.authenticator import Principal
from llama_gguf.access.networks import UNKNOWN, client_address, contain
from llama_gguf.access.rate_limit import network_of
from llama_gguf.errors import GatewayError, IllegalTransition, QueueFull, RequestTimeout
from llama_gguf.events import EventLog
from llama_gguf.gateway import local_request
from llama_gguf.gateway.authorisation import check_scope
from llama_gguf.gateway.client import BodyReader, Client
from llama_gguf.gateway.head_cache import Known
from llama_gguf.gateway.proxied_request import ProxiedRequest
from llama_gguf.gateway.upstream_connection import UpstreamConnection
from llama_gguf.http1 import local_response
from llama_gguf.http1.body import IncomingBody
from llama_gguf.http1.fields import find, find_all
from llama_gguf.http1.known_head import KnownHead
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.parser import HEAD_END, check_request_start, parse_request
from llama_gguf.http1.request import Request, error_dialect
from llama_gguf.http1.routes import Kind
from llama_gguf.net import sockets
from llama_gguf.net.connector import Cancellable
from llama_gguf.net.transport import HIGH_WATER_BYTES, Transport
from llama_gguf.scheduling.exchange import PHASES, Event, Exchange

if TYPE_CHECKING:
    from llama_gguf.gateway.replica import Replica
    from llama_gguf.gateway.services import Services

_log: Final = EventLog(__name__)

MAX_HELD_BYTES: Final = 65536
"""Of requests sent ahead; beyond it, reading pauses."""
MAX_SKIPPED_BYTES: Final = 65536
"""Of a refused body that is read and discarded, so that the connection can be used again."""
LARGE_BODY_BYTES: Final = 262_144
"""A response of the gateway's own that is not copied behind its head."""
LINGER_SECONDS: Final = 2.0
"""For a client that is still sending to read its response before the connection closes."""
NO_DEADLINE: Final = math.inf
CLOSE: Final = b"Connection: close\r\n"
_HEAD_END_BYTES: Final = len(HEAD_END)
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")


class State(enum.IntEnum):
    OPENED = 0  # connected, or a part of a head has arrived: a request is about to come
    IDLE = 1  # between two requests; nothing of the next one has arrived
    HELD = 2  # between two requests; input waits for its turn, or for the client to read
    BODY = 3  # a request is open, and its body has not been taken
    BUSY = 4  # a request is open, and all of it has been taken; further input is held
    LINGERING = 5  # being closed; input is discarded


S = State
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    S.OPENED: frozenset({S.OPENED, S.HELD, S.BODY, S.BUSY, S.LINGERING}),
    S.IDLE: frozenset({S.OPENED, S.HELD, S.BODY, S.BUSY, S.LINGERING}),
    S.HELD: frozenset({S.IDLE, S.LINGERING}),
    S.BODY: frozenset({S.BUSY, S.IDLE, S.HELD, S.LINGERING}),
    S.BUSY: frozenset({S.IDLE, S.HELD, S.LINGERING}),
    S.LINGERING: frozenset({S.LINGERING}),
}
"""From each state, those that may follow."""

# What the hot path uses: looking up a member of an enum takes a call each time.
_OPENED: Final = S.OPENED
_IDLE: Final = S.IDLE
_HELD: Final = S.HELD
_BODY: Final = S.BODY
_BUSY: Final = S.BUSY
_LINGERING: Final = S.LINGERING
_PROXIED: Final = Kind.PROXIED


class ClientConnection(Client):
    """An ``asyncio.Protocol`` by its methods; compiled classes do not inherit from it.

    Its endings, and what the client gets:

    - ``finish``: a whole response; the connection stays open, or is closed as below.
    - ``_close_after_response``: a whole response, even if the client is still sending.
    - ``_close_when_sent``: all that was written, then the end of the stream.
    - ``break_off``: an incomplete response, perhaps with an error event, then the end or a reset.
    - ``reset``: a reset, so that the client does not take an incomplete response for a whole one.
    - ``drain``, ``abort``: the gateway shuts down; an idle connection is closed, an open one reset.
    - ``on_bug``: this connection is cut, and no other.
    """

    __slots__ = (
        "_deadline",
        "_exchange",
        "_incoming",
        "_is_from_proxy",
        "_is_turn_due",
        "_peer",
        "_received",
        "_reload",
        "_request",
        "_services",
        "_skip",
        "_state",
        "_unread",
        "_unsent",
        "address",
        "is_read_paused",
    )

    def __init__(self, services: Services) -> None:
        super().__init__(services.head_cache.nothing)
        self._services = services
        self._state = _OPENED
        self._peer = UNKNOWN
        """The address of the other end of the connection."""
        self._is_from_proxy = False
        """Whether that is a trusted proxy."""
        self.address = UNKNOWN
        """The address of the client."""
        self._deadline = NO_DEADLINE
        """While no request is open: when something is overdue, on the gateway's clock."""
        self._received = b""
        """Input that has not been interpreted."""
        self._skip = 0
        """Bytes still to discard: the rest of a refused body."""
        self._unread = 0
        """Of a body with a length, the bytes that have not been taken out of ``_received``."""
        self._incoming: IncomingBody | None = None
        self._unsent = 0
        """Bytes that the client had still to take when that was last looked at."""
        self._is_turn_due = False
        """``_take_turn`` is scheduled."""
        self.is_read_paused = False
        self._exchange: Exchange | None = None
        self._request: ProxiedRequest | None = None
        self._reload: Cancellable | None = None
        """The ``POST /reload`` that is under way."""

    # What the loop calls ------------------------------------------------------------------------

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self._peer = self.address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self.network = network_of(self.address)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        services = self._services
        if services.trusted_proxies:
            self._is_from_proxy = contain(services.trusted_proxies, self._peer)
        self._deadline = services.clock.now() + services.limits.client_header_timeout
        services.connections.add(self)
        if len(services.connections) > services.connections.limit:
            self._refuse(
                QueueFull("Too many connections (MAX_CONNECTIONS).", retry_after=1.0, close=True)
            )

    def data_received(self, data: bytes) -> None:
        state = self._state
        try:
            if state is _IDLE or state is _OPENED:
                self._next_request(self._received + data if self._received else data)
            elif state is _BODY:
                self._read_body(data)
            elif state is not _LINGERING:
                self._hold(data)
        except GatewayError as error:
            self._refuse(error)
        except Exception:  # a bug in the gateway: this is the connection that it concerns
            self.on_bug()

    def eof_received(self) -> bool:
        # A client that closes its half cannot be distinguished from one that is gone, and the GPU
        # is not kept busy on the chance that it is still there.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._services.connections.discard(self)
        self._deadline = NO_DEADLINE
        exchange = self._exchange
        if exchange is None:
            return
        if self._request is not None and self._request.is_delivered:
            outcome = "done"  # the client closes before the last chunk, as some do after [DONE]
        else:
            phase = PHASES[exchange.state]
            self._services.metrics.client_disconnects[phase] += 1
            outcome = f"client_left:{phase}"
        if not exchange.status:
            exchange.status = 499  # nginx's status for it, known to log readers
        if self._reload is not None:
            self._reload.cancel()
        if self._request is not None:
            self._request.abandon()
        exchange.on(Event.LOST)
        exchange.outcome = outcome
        self._end_exchange(exchange)

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._unsent = self.transport.get_write_buffer_size()
        if self._request is not None:
            self._request.pause_reading()
        elif self._state is _IDLE or self._state is _OPENED:
            self._to(_HELD)

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self._request is not None:
            self._request.resume_reading()
        elif self._state is _HELD:
            self._begin_turn()

    def on_bug(self) -> None:
        """Cut this connection alone; its request gives back what it held when it is lost."""
        _log.error(
            "bug",
            "Request {request_id} was cut because of a bug; please report it",
            exc_info=True,
            request_id=self._exchange.request_id if self._exchange else "-",
        )
        self.transport.abort()

    def _to(self, state: State) -> None:
        if state not in TRANSITIONS[self._state]:
            raise IllegalTransition(f"{self._state.name} to {state.name}")
        self._state = state

    # Deadlines ----------------------------------------------------------------------------------

    def on_tick(self, now: float) -> None:
        """Twice a second: end what is overdue."""
        try:
            if self.is_read_paused and sockets.has_left(self.transport):
                self.transport.abort()
            elif self._request is not None:
                self._request.on_tick(now)
            elif now >= self._deadline:
                self._on_deadline(now)
        except Exception:  # a bug in the gateway: the other connections still get their tick
            self.on_bug()

    def _on_deadline(self, now: float) -> None:
        if self._state is _LINGERING:
            # Over TLS, which has no half-close, the end has not been sent yet.
            if self.transport.can_write_eof() or self.transport.is_closing():
                self.transport.abort()
            else:
                self._close_when_sent()
        elif self.is_write_paused:
            self._deadline = now + self._services.limits.keepalive_timeout
            self.check_reader()
        elif self._received:
            self._refuse(RequestTimeout("The request head did not arrive in time.", close=True))
        else:
            self._close_when_sent()

    def check_reader(self) -> None:
        """Reset the connection if the client has taken nothing since the last call."""
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self.reset()
        self._unsent = unsent

    # A request's head ---------------------------------------------------------------------------

    def _next_request(self, received: bytes) -> None:
        """Take the next whole head out of *received*: all input that has not been interpreted."""
        end, length = self.known.head.match(received)
        if end >= 0:
            self._serve(self.known.request, length, received[end:])
            return
        received = self._without_skipped(received)
        end = received.find(HEAD_END) + _HEAD_END_BYTES
        if end < _HEAD_END_BYTES:
            self._on_part_of_a_head(received)
            return
        raw, rest = received[:end], received[end:]
        known, length = self._services.head_cache.match(raw)
        if known is not None and not self._is_from_proxy:
            self.known = known
            self._serve(known.request, length, rest)
            return
        self._received = rest
        self._services.reader.check_size(raw)
        self._parse(raw)

    def _on_part_of_a_head(self, received: bytes) -> None:
        # What came before has been checked, unless it was sent ahead.
        seen = len(self._received) if self._state is _OPENED else 0
        self._received = received
        self._read_on()
        self._services.reader.check_size(received)
        check_request_start(received, seen)
        if received and self._state is _IDLE:
            self._to(_OPENED)
            self._deadline = (
                self._services.clock.now() + self._services.limits.client_header_timeout
            )

    def _without_skipped(self, received: bytes) -> bytes:
        """*received* without what does not count: the rest of a refused body, empty lines."""
        if self._skip:
            skipped = min(self._skip, len(received))
            self._skip -= skipped
            received = received[skipped:]
        # RFC 9112 section 2.2: empty lines before a request are not part of it.
        lines = _EMPTY_LINES.match(received)
        return received[lines.end() :] if lines else received

    def _parse(self, raw: bytes) -> None:
        """Parse a head that is not like the last one, here or on another connection."""
        services = self._services
        self.keep_alive = False  # nothing is known of what follows a head that is refused
        head = parse_request(raw)
        if self._is_from_proxy:
            forwarded_for = find_all(head.fields, b"x-forwarded-for")
            trusted = services.trusted_proxies
            self._set_address(client_address(self._peer, forwarded_for, trusted))
        # A browser has to be able to read a refusal, too.
        cors = services.reader.cors.fields(find(head.fields, b"origin"))
        self._begin_unserved(Request(head, cors=cors))  # what is refused now is logged with it
        request = services.reader.understand(head, cors)
        length = request.sorted_fields.content_length
        self.known = Known(KnownHead(raw, length), request, None, services.authenticator.ring)
        self._serve(request, length or 0, self._received)

    def _set_address(self, address: str) -> None:
        if address != self.address:
            self.address = address
            self.network = network_of(address)

    def _begin_unserved(self, request: Request) -> Exchange:
        """An exchange for a head that could not be read, or is refused as it is read."""
        services = self._services
        request_id = services.request_ids.next()
        self._exchange = Exchange(services.clock.now(), request, request_id, self.address)
        return self._exchange

    def _serve(self, request: Request, length: int, rest: bytes) -> None:
        """The head is whole and understood, *rest* is the input behind it."""
        services = self._services
        request_id = request.request_id or services.request_ids.next()
        exchange = Exchange(services.clock.now(), request, request_id, self.address)
        self._exchange = exchange
        self.keep_alive = request.keep_alive
        body: bytes | None = None
        if length > len(rest) or request.is_chunked:
            self._to(_BODY)
            self._unread, self._received = length, rest
        else:
            self._state = _BUSY  # as _to, of which each request would need two calls
            body = rest
            if length < len(rest):
                body, self._received = rest[:length], rest[length:]
            else:
                self._received = b""
        if request.route.kind is _PROXIED:
            proxied = self._request = ProxiedRequest(services, self, exchange, length, body)
            proxied.resume()
        else:
            self._reload = local_request.serve(services, self, exchange)

    # Whose request it is ------------------------------------------------------------------------

    def authenticate(self, exchange: Exchange) -> Principal:
        """Find out whose key the request shows, and whether that may be used for it.

        Raises:
            GatewayError: as ``Authenticator.authenticate`` and ``check_scope`` do.
        """
        services = self._services
        authenticator = services.authenticator
        request = exchange.request
        principal = authenticator.authenticate(
            request.sorted_fields, self.network, now=exchange.started_at, wall=services.clock.wall
        )
        exchange.key_id = principal.key_id
        check_scope(principal, exchange)
        if principal.expires_at is None:  # then it is valid until the next reload
            self.known = Known(self.known.head, request, principal, authenticator.ring)
            if not principal.attributes.networks:  # another connection has another address
                services.head_cache.remember(self.known)
        return principal

    # A request's body ---------------------------------------------------------------------------

    def expect_body(self, reader: BodyReader, head: Request) -> bytearray | None:
        """Read the rest of a body. Returns it if it is whole; else *reader* gets it once it is."""
        self._read_on()
        incoming = self._incoming = IncomingBody(None if head.is_chunked else self._unread)
        if self._received:
            received, self._received = self._received, b""
            return self._take_body(reader, incoming, received)
        if head.sorted_fields.expects_continue:
            self.transport.write(local_response.CONTINUE)
        return None

    def _take_body(
        self, reader: BodyReader, incoming: IncomingBody, data: bytes
    ) -> bytearray | None:
        """Add *data* to the body, and return it if it is whole."""
        behind = incoming.feed(data)
        self._unread = incoming.remaining
        reader.on_body_grown(len(incoming.data))
        if behind is None:
            return None
        self._received = behind
        self._incoming = None
        self._to(_BUSY)
        return incoming.data

    def _read_body(self, data: bytes) -> None:
        request, incoming = self._request, self._incoming
        assert request is not None
        assert incoming is not None
        body = self._take_body(request, incoming, data)
        if body is not None:
            request.on_body(body)

    def settle_body(self, request: Request) -> None:
        """Skip the rest of an unread body, if it is short; else close after the response."""
        if self._state is not _BODY:
            return
        # With 100-continue unanswered, whether the body will come is the client's choice.
        may_not_come = request.sorted_fields.expects_continue and self._unread > len(self._received)
        if request.is_chunked or self._unread > MAX_SKIPPED_BYTES or may_not_come:
            self.keep_alive = False
            self._skip = _ALL
        else:
            self._skip = max(self._skip, self._unread)
            self.known = self._services.head_cache.nothing  # what comes next is no head
        self._incoming = None
        self._to(_BUSY)

    # Responses ----------------------------------------------------------------------------------

    def _refuse(self, error: GatewayError) -> None:
        """Respond with *error* to the open request, or to one whose head could not be read."""
        exchange = self._exchange
        if self._request is not None:
            self._request.interrupt(error)
            return
        if exchange is None:
            self._set_address(self._peer)  # who has sent it to a proxy is unknown
            exchange = self._begin_unserved(self._services.reader.unread)
            self.keep_alive = False
            self._to(_BUSY)
        self.respond_error(exchange, error)

    def respond_error(self, exchange: Exchange, error: GatewayError) -> None:
        """Send *error* in the envelope of the request's dialect."""
        if error.close:
            self.keep_alive = False
            self._skip = _ALL
        self._services.metrics.rejections[error.code] += 1
        exchange.outcome = error.code
        body = local_response.envelope(
            error, error_dialect(exchange.request), request_id=exchange.request_id
        )
        self.respond(
            exchange,
            LocalResponse(
                error.status, body, local_response.JSON, local_response.error_fields(error)
            ),
        )

    def respond(self, exchange: Exchange, response: LocalResponse) -> None:
        """Send a response of the gateway's own."""
        self.settle_body(exchange.request)
        lines = [*response.fields, *self.common_lines(exchange)]
        head = local_response.head(
            response.status, lines, length=len(response.body), content_type=response.content_type
        )
        body = b"" if exchange.request.is_head_request else response.body
        exchange.bytes_out = len(head) + len(body)
        if len(body) < LARGE_BODY_BYTES:
            self.transport.write(head + body)
        else:  # without copying it
            self.transport.write_now(head)
            self.transport.write_now(body)
        exchange.on(Event.RESPONDED)
        exchange.status = response.status
        self.finish(exchange)

    def common_lines(self, exchange: Exchange) -> list[bytes]:
        """The header lines of every response whose head is made here."""
        services = self._services
        if services.connections.is_draining:
            self.keep_alive = False
        return [
            b"x-request-id: %b\r\n" % exchange.id_bytes,
            exchange.rate_fields,
            exchange.request.cors,
            services.clock.date,
            b"" if self.keep_alive else CLOSE,
        ]

    def finish(self, exchange: Exchange) -> None:
        """The response has been sent whole: wait for the next request, or close the connection."""
        self._end_exchange(exchange)
        if not self.keep_alive:
            self._close_after_response()
            return
        self._deadline = exchange.ended_at + self._services.keepalive_timeout
        if self._received or self.is_write_paused:
            self._to(_HELD)
            if not self.is_write_paused:
                self._begin_turn()
        else:
            self._state = _IDLE  # as in _serve
            if self.is_read_paused:
                self._read_on()

    def break_off(self, exchange: Exchange, error: GatewayError, event: bytes) -> None:
        """End a response that is not whole, after *event* where one may be sent.

        The last chunk is never sent: a client must not take the response for whole.
        """
        if exchange.is_head_ahead:
            self._services.metrics.rejections[error.code] += 1
        if event:
            self.transport.write(event)
            exchange.bytes_out += len(event)
        exchange.on(Event.LOST)
        exchange.outcome = error.code
        self._end_exchange(exchange)
        if event:
            self._close_when_sent()
        else:
            self._to(_LINGERING)
            self.reset()

    def _end_exchange(self, exchange: Exchange) -> None:
        services = self._services
        self._exchange = self._request = self._incoming = self._reload = None
        if not exchange.ended_at:
            exchange.ended_at = services.clock.now()
        services.recorder.close(exchange)
        if services.connections.is_draining:
            services.connections.notice_idle()

    # Requests sent ahead ------------------------------------------------------------------------

    def _hold(self, data: bytes) -> None:
        """Keep input until its turn comes; reading pauses until all that is held has been used."""
        self._received += data
        if len(self._received) > MAX_HELD_BYTES and not self.is_read_paused:
            self.is_read_paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if self.is_read_paused:
            self.is_read_paused = False
            self.transport.resume_reading()

    def _begin_turn(self) -> None:
        """Interpret the held input in a separate turn of the loop."""
        if not self._is_turn_due:
            self._is_turn_due = True
            self._services.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._is_turn_due = False
        if self._state is _HELD and not self.is_write_paused and not self.transport.is_closing():
            self._to(_IDLE)
            self.data_received(b"")

    # The end ------------------------------------------------------------------------------------

    def _close_after_response(self) -> None:
        """Close; but let a client that is still sending read its response first.

        Closing with unread bytes in the socket resets the connection, and a reset may take the
        response with it.
        """
        if self._skip <= len(self._received):
            self._close_when_sent()
            return
        self._discard_input()
        self._deadline = self._services.clock.now() + LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _discard_input(self) -> None:
        self._to(_LINGERING)
        self._read_on()
        self._received = b""
        self._skip = 0

    def _close_when_sent(self) -> None:
        """Close once the client has taken what was written; within a time limit."""
        self._discard_input()
        self._deadline = self._services.clock.now() + self._services.limits.client_header_timeout
        self.transport.close()

    def reset(self) -> None:
        """Cut the connection, so that no client takes what it got for whole."""
        sockets.reset(self.transport)

    # What the gateway calls ----------------------------------------------------------------------

    @property
    def upstream(self) -> UpstreamConnection | None:
        """The engine's connection, while the open request uses one."""
        return None if self._request is None else self._request.upstream

    def on_silent_replica(self, replica: Replica) -> None:
        """*replica* no longer responds."""
        if self._request is not None:
            self._request.on_silent_replica(replica)

    @property
    def is_busy(self) -> bool:
        return self._exchange is not None

    def refuse_waiting(self, error: GatewayError) -> None:
        """Respond with *error* if the open request waits for a slot, or to be sent again."""
        if self._exchange is not None and PHASES.get(self._exchange.state) == "queued":
            try:
                self._refuse(error)
            except Exception:  # a bug in the gateway: the other connections are refused too
                self.on_bug()

    def drain(self) -> None:
        """Close the connection, unless a request is open or about to arrive."""
        if self._state is _IDLE:
            self._close_when_sent()

    def abort(self) -> None:
        """Cut the connection, unless it is being closed already."""
        if self._exchange is not None:
            self.reset()
        elif self._state is not _LINGERING:
            self.transport.abort()


_ALL: Final = 1 << 62
"""``_skip`` of a connection that ends: all that still comes."""
