"""Accepts the clients of a listening socket, which ``binding.py`` has bound."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import IO, Any, Final

from llama_gguf.net.binding import NO_FILES
from llama_gguf.net.poller import READABLE, Poller, Watched

LetIn = Callable[[socket.SocketType, Any], None]

PAUSE_SECONDS: Final = 0.1
_STREAM: Final = int(socket.SOCK_STREAM)


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
            if error.errno in NO_FILES:
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
