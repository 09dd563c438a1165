"""The listening socket: binds it and accepts clients."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import IO, Any, Final

from llama_gguf.errors import UserError
from llama_gguf.net.poller import READABLE, Poller, Watched

LetIn = Callable[[socket.SocketType, Any], None]

BACKLOG: Final = 4096
PAUSE_SECONDS: Final = 0.1
MAX_SOCKET_PATH: Final = 107
"""Bytes: unix(7) has 108, with a final zero."""
_STREAM: Final = int(socket.SOCK_STREAM)
_NO_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listen(host: str, port: int, variable: str = "PORT", address: str = "HOST") -> socket.socket:
    """A listening socket.

    Args:
        host: the address, or a name of it.
        port: the port.
        variable: the setting that *port* comes from.
        address: the setting that *host* comes from.

    Raises:
        UserError: it cannot be used; the message has the reason and a remedy.
    """
    listener: socket.socket | None = None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # a name may be too long for DNS
        if listener is not None:
            listener.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        about_port, remedy = _remedy(error, variable, address)
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(
            f"cannot listen on {where}: {reason or error}. {remedy}",
            settings=(variable.lower(),) if about_port else (address.lower(),),
        ) from None
    listener.setblocking(False)
    return listener


def _remedy(error: Exception, variable: str, address: str) -> tuple[bool, str]:
    """Whether an error of ``listen`` is about the port, not the address; and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    another = f"To use another port, set {variable}."
    if number == errno.EADDRINUSE:
        return True, f"Another process uses this port. {another}"
    if number == errno.EACCES:
        return True, f"Ports below 1024 require root or CAP_NET_BIND_SERVICE. {another}"
    if number in _NO_FILES:
        return True, "Raise the limit on open files (ulimit -n), or close other programs."
    if number == errno.EADDRNOTAVAIL:
        return False, f"No network interface of this machine has the address: {_set(address)}"
    if number == errno.EAFNOSUPPORT:
        return False, f"This machine has no IPv6: {_set(address)}"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return False, f"The name cannot be resolved: {_set(address)}"
    return False, f"Check {address} and {variable}."


def _set(address: str) -> str:
    return (
        f"set {address} to an address of this machine, 127.0.0.1 for local clients only, or "
        "0.0.0.0 for all."
    )


def check_socket_path(path: str, variable: str) -> None:
    """Check that a unix socket can be created at *path*, the value of the setting *variable*.

    Raises:
        UserError: it cannot.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        wrong = f"is too long: a path of a socket has at most {MAX_SOCKET_PATH} bytes"
    elif not os.path.isdir(folder):
        wrong = f"cannot be created: there is no directory {folder}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        wrong = f"cannot be created: {folder} is not writable"
    elif os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        wrong = "cannot be created: there is another file, which is no socket"
    else:
        return
    raise UserError(f"{variable}={path} {wrong}.", settings=(variable.lower(),))


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
