"""Connections to llama-server: kept for a moment, connected when there is none.

Facts of llama-server that decide here: it closes an idle connection after 5 s, it closes
after a stream without saying so, and an idle kept connection holds one of its few HTTP
threads. So the idle ones are few and young. It also closes after 100 requests, which the last
answer says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from llama_gguf.core.messages import Answer, Pattern
from llama_gguf.core.settings import Settings
from llama_gguf.errors import UpstreamError, UpstreamRefused
from llama_gguf.gateway.upstream import Phase, UpstreamConnection

MAX_IDLE: Final = 64
"""Kept connections; more than any engine has slots, so that slots bound it in practice."""
IDLE_SECONDS: Final = 3.0
_IDLE: Final = Phase.IDLE

_Connected = tuple[asyncio.Transport, asyncio.Protocol]
_OnFailed = Callable[[UpstreamError], None]


class Pool:
    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self.last_head: tuple[Pattern, Answer] | None = None
        self._now = loop.time()
        """As of the last tick: idle connections are given their time to half a second."""
        self._idle: deque[UpstreamConnection] = deque()
        self._left: dict[UpstreamConnection, float] = {}
        """Connections that nobody waits for but the slot that they hold, and until when."""
        self._connecting: dict[asyncio.Task[_Connected], tuple[float, _OnFailed]] = {}
        """Attempts, until when, and who is told that they failed."""

    def __repr__(self) -> str:
        return (
            f"<Pool idle={len(self._idle)} connecting={len(self._connecting)} "
            f"left={len(self._left)}>"
        )

    def take(self) -> UpstreamConnection | None:
        """A kept connection, the youngest first, so that the others can grow old and go."""
        while self._idle:
            connection = self._idle.pop()
            if connection.phase is _IDLE and not connection.transport.is_closing():
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep *connection* for another request, or close it."""
        if len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = self._now
        self._idle.append(connection)

    def retire_idle(self, older_than: float = 0.0) -> None:
        """Close connections that have been idle for *older_than* seconds or more."""
        self._now = self._loop.time()
        horizon = self._now - older_than
        while self._idle and self._idle[0].idle_since <= horizon:
            self._idle.popleft().close()

    def leave(self, connection: UpstreamConnection, on_gone: Callable[[], None]) -> None:
        """Hang up, and call *on_gone* when the engine has let go of the request as well."""

        def gone() -> None:
            del self._left[connection]
            on_gone()

        self._left[connection] = self._loop.time() + self._settings.request_timeout
        connection.leave(gone)

    def cut_overdue(self) -> None:
        """Wait no longer for an engine that does not accept, or does not let go, in its time."""
        now = self._loop.time()
        for connection, until in tuple(self._left.items()):
            if now >= until:
                connection.abort()
        for task, (until, on_failed) in tuple(self._connecting.items()):
            if now >= until:
                task.cancel()
                on_failed(UpstreamError("The engine did not accept a connection in time."))

    def connect(
        self,
        on_connected: Callable[[UpstreamConnection], None],
        on_failed: _OnFailed,
    ) -> asyncio.Task[_Connected]:
        """Connect, then call one of the two; cancelling the task calls neither."""

        def made() -> None:  # two turns of the loop before the task is done
            if not task.cancelling():
                del self._connecting[task]
                on_connected(connection)

        connection = UpstreamConnection(self, made)
        task = self._loop.create_task(self._open(connection), name="connect to llama-server")
        until = self._loop.time() + self._settings.backend_connect_timeout
        self._connecting[task] = until, on_failed
        task.add_done_callback(self._on_connect_end)
        return task

    def _open(self, connection: UpstreamConnection) -> Coroutine[Any, Any, _Connected]:
        settings = self._settings
        factory = cast("Callable[[], asyncio.Protocol]", lambda: connection)
        if settings.backend_socket:
            return self._loop.create_unix_connection(factory, settings.backend_socket)
        return self._loop.create_connection(factory, settings.backend_host, settings.port_backend)

    def _on_connect_end(self, task: asyncio.Task[_Connected]) -> None:
        attempt = self._connecting.pop(task, None)
        if attempt is None or task.cancelled():
            return
        error, on_failed = task.exception(), attempt[1]
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            on_failed(UpstreamRefused("The engine refused the connection."))
        elif isinstance(error, OSError):
            on_failed(UpstreamError("The engine cannot be reached."))
        elif error is not None:
            raise error
