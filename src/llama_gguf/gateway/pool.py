"""Connections to llama-server: idle ones are reused, new ones opened when needed.

Facts of llama-server that decide here: it closes an idle connection after 5 s, and an idle
connection occupies one of its few HTTP threads. So idle connections are few and young. It closes
after 100 requests, announced in the last response, and after a stream, which it does not announce.
Other engines keep it open: the first connection on which a stream has ended shows what the engine
does (docs/adr/0038-a-connection-proves-itself-after-a-stream.md).
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from llama_gguf.config.schema import TimeoutSettings
from llama_gguf.errors import UpstreamError
from llama_gguf.gateway.upstream_connection import Phase, UpstreamConnection
from llama_gguf.http1.known_head import KnownHead
from llama_gguf.http1.response import Response
from llama_gguf.net.connector import Cancellable, Dial

MAX_KEPT: Final = 64
"""Connections without a request, and those after a stream: each may occupy a thread there."""
IDLE_SECONDS: Final = 3.0
PROOF_SECONDS: Final = 0.5
"""After a stream: an engine that has not closed the connection by then keeps it."""
REST_SECONDS: Final = 0.005
"""The same once it is known that the engine keeps them; llama-server closes within 0.1 ms."""
_IDLE: Final = Phase.IDLE


class AfterStream(enum.Enum):
    """What an engine does with a connection on which a stream has ended."""

    UNKNOWN = "unknown"
    KEEPS = "keeps"
    CLOSES = "closes"


_MAX_RESTING: Final = {
    AfterStream.UNKNOWN: 1,  # is observed
    AfterStream.KEEPS: MAX_KEPT,
    AfterStream.CLOSES: 0,
}


class Waiter(Protocol):
    """A request that needs a connection."""

    def on_connected(self, upstream: UpstreamConnection) -> None: ...
    def on_connect_failed(self, error: UpstreamError) -> None: ...


class ConnectionPool:
    """Keeps connections, and opens new ones.

    Args:
        settings: the time limits of connecting, and of connections that a client has abandoned.
        loop: its clock is used.
        dial: connects to the engine.
    """

    def __init__(
        self,
        settings: TimeoutSettings,
        loop: asyncio.AbstractEventLoop,
        dial: Dial,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._dial = dial
        self.last_head: tuple[KnownHead, Response] | None = None
        self._now = loop.time()
        """As of the last tick: idle times are exact to half a second."""
        self._idle: deque[UpstreamConnection] = deque()
        self._resting: deque[UpstreamConnection] = deque()
        """After a stream, the first one first."""
        self._after_stream = AfterStream.UNKNOWN
        """Until the engine is gone; it may be another one when it comes back."""
        self._abandoned: dict[UpstreamConnection, float] = {}
        """Connections without a client that still hold a slot, and the time to cut them."""
        self.connecting: set[ConnectAttempt] = set()
        self.passes_refusals = True
        """Whether clients get the engine's 429 and 503: there is no other one."""

    def __repr__(self) -> str:
        return (
            f"<ConnectionPool idle={len(self._idle)} connecting={len(self.connecting)} "
            f"abandoned={len(self._abandoned)}>"
        )

    def take(self) -> UpstreamConnection | None:
        """A kept connection, the youngest first, so that the others can expire."""
        while self._idle:
            connection = self._idle.pop()
            if connection.phase is _IDLE and not connection.transport.is_closing():
                return connection
        if self._after_stream is AfterStream.KEEPS:
            return self._take_rested(REST_SECONDS)
        return None

    def _take_rested(self, seconds: float) -> UpstreamConnection | None:
        """The first connection that is still open *seconds* after a stream."""
        if not self._resting or self._resting[0].idle_since > self._loop.time() - seconds:
            return None
        connection = self._resting.popleft()
        if connection.phase is _IDLE and not connection.transport.is_closing():
            self._after_stream = AfterStream.KEEPS
            return connection
        self._after_stream = AfterStream.CLOSES
        while self._resting:
            self._resting.pop().close()
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep *connection* for another request, or close it."""
        if len(self._idle) >= MAX_KEPT:
            connection.close()
            return
        connection.idle_since = self._now
        self._idle.append(connection)

    def give_back_after_stream(self, connection: UpstreamConnection) -> None:
        """Keep *connection* for another request if the engine keeps it, or close it."""
        if len(self._resting) >= _MAX_RESTING[self._after_stream]:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        self._resting.append(connection)

    def retire_idle(self) -> None:
        """Close all connections without a request: the engine is gone, or no longer used."""
        for connection in (*self._idle, *self._resting):
            connection.close()
        self._idle.clear()
        self._resting.clear()
        self._after_stream = AfterStream.UNKNOWN

    def on_tick(self) -> None:
        """Close connections that have been idle for long; keep those that outlived a stream."""
        self._now = self._loop.time()
        while (connection := self._take_rested(PROOF_SECONDS)) is not None:
            self.give_back(connection)
        horizon = self._now - IDLE_SECONDS
        while self._idle and self._idle[0].idle_since <= horizon:
            self._idle.popleft().close()

    def leave(self, connection: UpstreamConnection, on_gone: Callable[[], None]) -> None:
        """Close our half, and call *on_gone* when the engine has dropped the request as well."""

        def gone() -> None:
            del self._abandoned[connection]
            on_gone()

        self._abandoned[connection] = self._loop.time() + self._settings.request_timeout
        connection.leave(gone)

    def cut_overdue(self) -> None:
        """Give up engines that do not accept, or do not drop a request, in time."""
        now = self._loop.time()
        for connection, until in tuple(self._abandoned.items()):
            if now >= until:
                connection.abort()
        for attempt in tuple(self.connecting):
            if now >= attempt.until:
                attempt.give_up()

    def connect(self, waiter: Waiter) -> ConnectAttempt | None:
        """Connect for *waiter*. None: it has its connection already."""
        attempt = ConnectAttempt(self, waiter)
        if not attempt.begin(self._dial):
            return None
        attempt.until = self._loop.time() + self._settings.backend_connect_timeout
        self.connecting.add(attempt)
        return attempt


class ConnectAttempt:
    """A connection that is being opened for *waiter*."""

    __slots__ = ("_attempt", "_connection", "_pool", "_waiter", "until")

    def __init__(self, pool: ConnectionPool, waiter: Waiter) -> None:
        self._pool = pool
        self.until: float
        self._waiter = waiter
        self._attempt: Cancellable | None = None

    def begin(self, dial: Dial) -> bool:
        """Returns whether the connection takes time."""
        self._connection = UpstreamConnection(self._pool, self._made)
        self._attempt = dial(self._connection, self._failed)
        return self._attempt is not None

    def cancel(self) -> None:
        """Stop without calling the waiter."""
        self._pool.connecting.discard(self)
        if self._attempt is not None:
            self._attempt.cancel()

    def give_up(self) -> None:
        """It has taken too long."""
        self.cancel()
        error = UpstreamError("The engine did not accept a connection in time.")
        self._waiter.on_connect_failed(error)

    def _made(self) -> None:
        self._pool.connecting.discard(self)
        self._waiter.on_connected(self._connection)

    def _failed(self, error: OSError) -> None:
        self._pool.connecting.discard(self)
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            self._waiter.on_connect_failed(UpstreamError("The engine refused the connection."))
        else:
            self._waiter.on_connect_failed(UpstreamError("The engine cannot be reached."))
