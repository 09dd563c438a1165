"""The client connections that are open, and whether the gateway still accepts requests on them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final, Protocol

from llama_gguf.errors import Draining, GatewayError
from llama_gguf.gateway.replica import Replica
from llama_gguf.gateway.upstream_connection import UpstreamConnection

DRAINING_RETRY_SECONDS: Final = 2.0


class Connection(Protocol):
    """One of them, as far as it matters here."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is open."""
        ...

    @property
    def upstream(self) -> UpstreamConnection | None:
        """The engine's connection, while its request uses one."""
        ...

    def on_silent_replica(self, replica: Replica) -> None: ...
    def on_tick(self, now: float) -> None: ...
    def refuse_waiting(self, error: GatewayError) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


class Connections:
    """Of one gateway.

    Args:
        limit: how many are served; those beyond it get 503.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.is_draining = False
        self.idle = asyncio.Event()
        """Set while draining, when no request is open any more."""
        self._open: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        """Those that are open now: any may be closed meanwhile."""
        return iter(tuple(self._open))

    def add(self, connection: Connection) -> None:
        self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)

    def busy(self) -> int:
        """How many requests are open."""
        return sum(connection.is_busy for connection in self._open)

    def drain(self) -> None:
        """Accept no further request; close what is silent."""
        self.is_draining = True
        for connection in self:
            connection.drain()
        self.notice_idle()

    def notice_idle(self) -> None:
        if not self.busy():
            self.idle.set()

    def draining(self) -> GatewayError:
        """Why a request is not accepted any more."""
        return Draining("The server is shutting down.", retry_after=DRAINING_RETRY_SECONDS)
