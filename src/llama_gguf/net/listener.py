"""The listening socket: binds it and accepts clients."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import IO, Any, Final

from llama_gguf.errors import UserError
from llama_gguf.net.poller import READABLE, Poller, Watched

LetIn = Callable[[socket.SocketType, Any], None]

BACKLOG: Final = 4096
PAUSE_SECONDS: Final = 0.1
_STREAM: Final = int(socket.SOCK_STREAM)
_NO_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listen(host: str, port: int, variable: str = "PORT") -> socket.socket:
    """A listening socket; *variable* is the setting that *port* comes from.

    Raises:
        UserError: the address cannot be used; the message has the reason and a remedy.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EACCES:
            cause = "Ports below 1024 require root or CAP_NET_BIND_SERVICE."
        else:
            cause = "Another process may use this port."
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. "
            f"{cause} To use another port, set {variable}."
        ) from None
    listener.setblocking(False)
    return listener


class Listener(Watched):
    """Accepts connections, and closes the listening socket in the end.

    A connection beyond the limit is closed unread. At the limit on open files, a file kept in
    reserve is closed to accept the connection and close it: so no client is left waiting, and the
    loop does not spin.

    Args:
        poller: watches the sockets.
        sock: listening and not blocking.
        let_in: receives each accepted socket, which does not block, and the peer's address.
        has_room: whether another connection is allowed.
    """

    def __init__(
        self, poller: Poller, sock: socket.socket, let_in: LetIn, has_room: Callable[[], bool]
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._family = int(sock.family)
        # `socket.accept` calls this, and wraps the result, which costs more than the call.
        self._accept: Callable[[], tuple[int, Any]] = sock._accept  # type: ignore[attr-defined]
        self._let_in = let_in
        self._has_room = has_room
        self._spare = _spare()
        self._is_closed = False
        # tcp(7): accepted sockets inherit it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def close(self) -> None:
        """Accept no more clients."""
        self._is_closed = True
        # Closing does not remove it from epoll, since the supervisor has it open as well.
        self._poller.watch(self._sock.fileno(), self, 0)
        self._sock.close()
        self._spare.close()

    # What the poller calls ----------------------------------------------------------------------

    def on_ready(self, events: int) -> None:
        # One at a time: the poller reports the next, and an accept that finds none is expensive.
        try:
            fd, peer = self._accept()
        except OSError as error:  # the client has left: accept(2)
            if error.errno in _NO_FILES:
                self._turn_away()
            return
        if not self._has_room():
            os.close(fd)
            return
        sock = socket.SocketType(self._family, _STREAM, 0, fd)
        sock.setblocking(False)
        self._let_in(sock, peer)

    def on_bug(self, error: Exception) -> None:
        """The last client is dropped; others are accepted as before."""

    def _watch(self) -> None:
        if not self._is_closed:
            self._poller.watch(self._sock.fileno(), self, READABLE)

    def _turn_away(self) -> None:
        """Close one waiting connection; if even that fails, stop accepting for a moment."""
        try:
            self._spare.close()
            os.close(self._accept()[0])
            self._spare = _spare()
        except OSError:
            self._poller.watch(self._sock.fileno(), self, 0)
            self._poller.loop.call_later(PAUSE_SECONDS, self._watch)


def _spare() -> IO[bytes]:
    return open(os.devnull, "rb", buffering=0)
