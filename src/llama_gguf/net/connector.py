"""Connects to the engine."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from llama_gguf.net.poller import WRITABLE, Poller, Watched
from llama_gguf.net.transport import Endpoint, LoopTransport, SocketTransport

_Address = tuple[int, Any]
"""A family, and an address as ``connect`` takes it."""
_OnFailed = Callable[[OSError], None]
_UNIX: Final = int(socket.AF_UNIX)
_TCP: Final = int(socket.IPPROTO_TCP)
_NODELAY: Final = int(socket.TCP_NODELAY)
_NONBLOCK: Final = int(getattr(socket, "SOCK_NONBLOCK", 0))
_STREAM: Final = int(socket.SOCK_STREAM) | _NONBLOCK
_IN_PROGRESS: Final = int(errno.EINPROGRESS)
_UNDER_WAY: Final = (errno.EINPROGRESS, errno.EALREADY)
_FULL: Final = int(errno.EAGAIN)
"""unix(7): the queue of the listening socket is full; with TCP, the kernel retries by itself."""
RETRY_SECONDS: Final = 0.02
_CONNECTED: Final = (0, errno.EISCONN)
_QUICKACK: Final = int(getattr(socket, "TCP_QUICKACK", 0))


class Cancellable(Protocol):
    def cancel(self) -> object: ...


Dial = Callable[[Endpoint, _OnFailed], Cancellable | None]
"""Connects an endpoint, or calls back with the error; None: it is connected already."""


class Dialer:
    """Connects to one engine.

    Args:
        poller: watches the sockets.
        host: a name or an address.
        port: of TCP.
        path: of a unix socket, used instead of both; empty = none.
    """

    def __init__(self, poller: Poller, host: str, port: int, path: str = "") -> None:
        self._poller = poller
        self._host, self._port = host, port
        self._addresses = _literal(host, port, path)

    def dial(self, endpoint: Endpoint, on_failed: _OnFailed) -> Cancellable | None:
        """A ``Dial``."""
        attempt = Attempt(self._poller, endpoint, on_failed)
        if not self._addresses:
            attempt.look_up(self._host, self._port)
        elif attempt.begin(self._addresses):
            return None
        return attempt


class TlsDialer:
    """Connects to one engine by TLS, with the loop's own transport.

    Args:
        loop: of the gateway.
        host: a name or an address.
        port: of TCP.
        context: verifies its certificate.
        server_name: that the certificate must have.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        *,
        context: Any,  # an ssl.SSLContext
        server_name: str,
    ) -> None:
        self._loop = loop
        self._host, self._port = host, port
        self._context = context
        self._server_name = server_name

    def dial(self, endpoint: Endpoint, on_failed: _OnFailed) -> Cancellable | None:
        """A ``Dial``."""
        return self._loop.create_task(self._connect(endpoint, on_failed), name="TLS connection")

    async def _connect(self, endpoint: Endpoint, on_failed: _OnFailed) -> None:
        def protocol() -> Any:  # an asyncio.Protocol by its methods
            return LoopTransport(endpoint)

        try:
            await self._loop.create_connection(
                protocol,
                self._host,
                self._port,
                ssl=self._context,
                server_hostname=self._server_name,
            )
        except OSError as error:  # ssl.SSLError is one
            on_failed(error)


def _literal(host: str, port: int, path: str) -> list[_Address]:
    """The address, if there is one; a name is resolved for each connection."""
    if path:
        return [(socket.AF_UNIX, path)]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    return []


class Attempt(Watched):
    """A connection that is being made: to one address after the other, until one accepts."""

    __slots__ = (
        "_address",
        "_endpoint",
        "_is_over",
        "_on_failed",
        "_others",
        "_poller",
        "_search",
        "_sock",
    )

    def __init__(self, poller: Poller, endpoint: Endpoint, on_failed: _OnFailed) -> None:
        self._poller = poller
        self._endpoint = endpoint
        self._on_failed = on_failed
        self._sock: socket.SocketType | None = None
        self._address: Any = None
        self._others: list[_Address] = []
        self._search: asyncio.Task[None] | None = None
        self._is_over = False

    def look_up(self, host: str, port: int) -> None:
        """Resolve *host*, and connect to it."""
        self._search = self._poller.loop.create_task(self._find(host, port), name="resolve")

    async def _find(self, host: str, port: int) -> None:
        try:
            found = await self._poller.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            self._fail(error)
        else:
            self.begin([(family, address) for family, _, _, _, address in found])

    def begin(self, addresses: list[_Address]) -> bool:
        """Returns whether it is connected already, as is usual on the same machine."""
        family, address = addresses[0]
        self._address, self._others = address, addresses[1:]
        try:
            sock = self._sock = socket.SocketType(family, _STREAM)
        except OSError as error:
            self._poller.loop.call_soon(self._fail, error)
            return False
        if not _NONBLOCK:  # as on macOS
            sock.setblocking(False)
        if family != _UNIX:
            sock.setsockopt(_TCP, _NODELAY, 1)
        return self._connect(sock)

    def _connect(self, sock: socket.SocketType) -> bool:
        status = sock.connect_ex(self._address)
        if status == _IN_PROGRESS:  # connect(2): a second call returns the present state
            status = sock.connect_ex(self._address)
        if status in _CONNECTED:
            self._succeed(sock)
            return True
        if status in _UNDER_WAY:
            self._poller.watch(sock.fileno(), self, WRITABLE)
        elif status == _FULL:
            self._poller.loop.call_later(RETRY_SECONDS, self._try_again)
        else:
            self._poller.loop.call_soon(self._fail, _error(status))
        return False

    def _try_again(self) -> None:
        """No event shows that the queue of a unix socket has room again."""
        if not self._is_over and self._sock is not None:
            self._connect(self._sock)

    def cancel(self) -> None:
        """Give up without calling back."""
        self._is_over = True
        if self._search is not None:
            self._search.cancel()
        self._drop()

    # What the poller calls ----------------------------------------------------------------------

    def on_ready(self, events: int) -> None:
        sock = self._sock
        assert sock is not None
        status = sock.connect_ex(self._address)
        if status in _CONNECTED:
            self._succeed(sock)
        elif status not in _UNDER_WAY:
            self._fail(_error(status))

    def on_bug(self, error: Exception) -> None:
        self.cancel()

    def _succeed(self, sock: socket.SocketType) -> None:
        self._is_over = True
        if _QUICKACK and sock.family != _UNIX:
            sock.setsockopt(_TCP, _QUICKACK, 0)
        SocketTransport(self._poller, sock, self._address).attach(self._endpoint)

    def _fail(self, error: OSError) -> None:
        if self._is_over:
            return
        self._drop()
        if self._others:
            self.begin(self._others)
        else:
            self._is_over = True
            self._on_failed(error)

    def _drop(self) -> None:
        if self._sock is not None:
            self._poller.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None


def _error(status: int) -> OSError:
    return OSError(status, os.strerror(status))
