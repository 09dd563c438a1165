"""Clients over real sockets, which block.

``send_request`` sends one request on a new connection; ``Wire`` is a connection whose bytes a test
writes and reads itself. Their asynchronous counterpart for hundreds of connections is
``tests.soak.client``; in front of a gateway without sockets, there is ``fakes.FakeClient``.
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from tests.support.keys import KEY
from tests.support.messages import End, Response, request, take_response
from tests.support.processes import DEADLINE_SECONDS

Address = tuple[str, int] | str
"""Host and port, or the path of a unix socket."""
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER, socket(7): closing the socket resets the connection."""


def connected(address: Address, seconds: float = DEADLINE_SECONDS) -> socket.socket:
    if isinstance(address, tuple):
        sock = socket.create_connection(address, timeout=seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(seconds)
    sock.connect(address)
    return sock


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


class Wire:
    """One connection of a client.

    Args:
        address: of the server.
        trust: for TLS, with the certificates to trust.
        seconds: after which a read or a write fails.
    """

    def __init__(
        self,
        address: Address,
        trust: ssl.SSLContext | None = None,
        *,
        seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self.sock = connected(address, seconds)
        if trust is not None:
            self.sock = trust.wrap_socket(
                self.sock, server_hostname=str(address[0]), suppress_ragged_eofs=False
            )
        self.buffer = b""
        self._has_ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close(self) -> None:
        self.sock.close()

    def close_half(self) -> None:
        """Send the end of the stream, and remain able to read."""
        if isinstance(self.sock, ssl.SSLSocket):
            # A close_notify; unwrap() would then wait for the peer's.
            self.sock.setblocking(False)
            with suppress(ssl.SSLError):
                self.sock.unwrap()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        reset(self.sock)

    def receive(self) -> bool:
        """Read once; False at the end."""
        data = self.sock.recv(1 << 16)
        self.buffer += data
        self._has_ended = not data
        return bool(data)

    def read_until(self, ending: bytes) -> bytes:
        """Everything up to *ending*, which is included."""
        while ending not in self.buffer:
            assert self.receive(), f"the end came before {ending!r}: {self.buffer!r}"
        at = self.buffer.index(ending) + len(ending)
        found, self.buffer = self.buffer[:at], self.buffer[at:]
        return found

    def read_rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self.receive():
            pass
        rest, self.buffer = self.buffer, b""
        return rest

    def was_reset(self) -> bool:
        """Read to the end; whether the connection was reset, so that no response looks complete.

        Python's ssl reports a reset as an end in violation of the protocol.
        """
        try:
            while self.receive():
                pass
        except (ConnectionResetError, ssl.SSLEOFError):
            return True
        return False

    def response(self) -> Response:
        """The next final response, complete unless the connection ends before it is.

        Raises:
            ConnectionAbortedError: the connection ended without a response.
        """
        while True:
            found = take_response(self.buffer, has_ended=self._has_ended)
            if found is not None and (self._has_ended or found[0].end is not End.OPEN):
                self.buffer = found[1]
                return found[0]
            if self._has_ended:
                raise ConnectionAbortedError(f"no response: {self.buffer!r}")
            self.receive()


def send_request(
    where: Address | int,
    path: str,
    body: bytes | None = None,
    *,
    key: str = KEY,
    fields: tuple[str, ...] = (),
    seconds: float = DEADLINE_SECONDS,
) -> Response:
    """The response to a GET of *path*, or to a POST of *body*.

    Args:
        where: an address, or a port of 127.0.0.1.
        path: that is requested.
        body: of a POST.
        key: of the client; empty to send none.
        fields: further lines of the head.
        seconds: until it fails.

    Raises:
        OSError: there was no response.
    """
    method = "GET" if body is None else "POST"
    address = ("127.0.0.1", where) if isinstance(where, int) else where
    with Wire(address, seconds=seconds) as wire:
        wire.send(request(method, path, *fields, body=body, key=key or None))
        return wire.response()


def status_or_none(where: Address | int, path: str = "/ping") -> int | None:
    """The status of the response to a GET; None if there is no response."""
    try:
        return send_request(where, path, key="").status
    except OSError:
        return None
