"""The health server: a small server on its own port, which platforms poll.

Standard library only, on a thread with a separate event loop, so that it responds from the
first second on, however busy the rest is. It sends no requests itself: the supervisor provides
the status.

RunPod's load balancer reads 200 as healthy, 204 as initialising, anything else as
unhealthy: https://docs.runpod.io/serverless/load-balancing/overview
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Final, cast

MAX_HEAD_BYTES: Final = 8192
TIMEOUT_SECONDS: Final = 5.0
"""For a peer to send its request and read the response, so that a slow one occupies no place."""
MAX_CONNECTIONS: Final = 256

_REASONS: Final = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    405: b"Method Not Allowed",
    503: b"Service Unavailable",
}


def response_to(head: bytes, status: int) -> bytes:
    """The response to a request with *head* while *status* is ours. The path does not matter."""
    method = head.split(b" ", 1)[0]
    if method not in (b"GET", b"HEAD"):
        status = 405 if method.isalpha() and method.isupper() else 400
    body = b"" if status == 204 else _REASONS[status].lower() + b"\n"
    lines = [b"HTTP/1.1 %d %b" % (status, _REASONS[status]), b"Connection: close"]
    if status != 204:
        lines += [b"Content-Type: text/plain", b"Content-Length: %d" % len(body)]
    if status == 405:
        lines.append(b"Allow: GET, HEAD")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if method == b"HEAD" else body)


class _Connection(asyncio.Protocol):
    def __init__(self, server: HealthServer) -> None:
        self._server = server
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.open.add(self._transport)
        if len(self._server.open) > MAX_CONNECTIONS:
            self._transport.abort()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TIMEOUT_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._received += data
        # Bytes that do not start with a letter, such as a TLS handshake, are no HTTP request.
        is_request = self._received[:1].isalpha()
        if not is_request or b"\r\n\r\n" in self._received or b"\n\n" in self._received:
            self._transport.write(response_to(self._received, self._server.status()))
            self._transport.close()
        elif len(self._received) > MAX_HEAD_BYTES:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self._transport)
        if self._timer is not None:
            self._timer.cancel()


class HealthServer:
    """Responds on *listener* from a thread, until ``stop``.

    Args:
        listener: a listening socket; it is closed at the end.
        status: called for every request: 200, 204 or 503.
    """

    def __init__(self, listener: socket.socket, status: Callable[[], int]) -> None:
        self._listener = listener
        self.status = status
        self.open: set[asyncio.Transport] = set()
        self._loop = asyncio.new_event_loop()
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Start the thread; returns once it accepts connections."""
        self._thread.start()
        self._has_begun.wait()

    def stop(self) -> None:
        """Stop, and wait until the thread has ended."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            server = self._loop.run_until_complete(
                self._loop.create_server(lambda: _Connection(self), sock=self._listener)
            )
        finally:  # also after a failure, as `start` waits for this
            self._has_begun.set()
        self._loop.run_forever()
        server.close()
        for transport in self.open:
            transport.abort()
        self._loop.run_until_complete(
            asyncio.sleep(0)
        )  # lets the scheduled connection_lost calls run
