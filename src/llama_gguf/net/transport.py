"""A transport for a connected socket: the part of ``asyncio.Transport`` that is used.

A loop's transports serve every purpose, which costs a tenth of an event:
docs/adr/0018-sockets-are-our-own.md.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from llama_gguf.net.poller import INCOMING, READABLE, WRITABLE, Poller, Watched

READ_BYTES: Final = 65536
SMALL_READ_BYTES: Final = 479
"""Read at once from a peer that sends less, as a stream does: an object that the interpreter has
at hand (its own allocator's, up to 512 bytes), where 64 KiB would be cut down each time."""
HIGH_WATER_BYTES: Final = 65536
"""Of an answer that waits for a slow reader; beyond it, the engine is paused."""
_LOW_WATER_SHARE: Final = 4
# Of a socket's methods, what it does not need here, time-outs and flags, costs more than this.
_read: Final = os.read
_write: Final = os.write


class Endpoint(Protocol):
    """``asyncio.Protocol``, by its methods."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Receiver:
    """An endpoint that is called without the interpreter in between, where both are compiled."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


class _Called(Receiver):
    """Any other endpoint."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[bytes], None]) -> None:
        self._call = call

    def data_received(self, data: bytes) -> None:
        self._call(data)


def _ignore(data: bytes) -> None:
    del data


_NOBODY: Final = _Called(_ignore)
"""Before there is an endpoint, and once it has been told of the end."""


class SocketTransport(Watched):
    """Reads and writes one socket, and closes it.

    An endpoint whose peer has closed its half is closed, whatever its ``eof_received`` returns.

    Args:
        poller: watches the socket.
        sock: connected, and not blocking.
        peer: its address, as ``accept`` tells it.
    """

    __slots__ = (
        "_endpoint",
        "_error",
        "_fd",
        "_high_water",
        "_is_closing",
        "_is_eof_due",
        "_is_full",
        "_is_over",
        "_is_reading",
        "_peer",
        "_poller",
        "_queued",
        "_read_bytes",
        "_receiver",
        "_sock",
        "_unsent",
    )

    def __init__(self, poller: Poller, sock: socket.SocketType, peer: object) -> None:
        self._poller = poller
        self._sock = sock
        self._peer = peer
        self._fd = sock.fileno()
        self._endpoint: Endpoint | None = None
        self._receiver: Receiver = _NOBODY
        self._read_bytes = READ_BYTES
        self._queued = b""
        """To be sent at the end of the poller's turn."""
        self._unsent: bytearray | None = None
        """What the kernel did not take."""
        self._high_water = HIGH_WATER_BYTES
        self._is_reading = True
        self._is_full = False
        """The endpoint was told to pause."""
        self._is_eof_due = False
        self._is_closing = False
        self._is_over = False
        """The socket is used no more."""
        self._error: Exception | None = None
        """Why."""

    def attach(self, endpoint: Endpoint) -> None:
        """Begin to read, and tell *endpoint* from now on."""
        self._endpoint = endpoint
        one: object = endpoint
        self._receiver = one if isinstance(one, Receiver) else _Called(endpoint.data_received)
        self._poller.watch(self._fd, self, INCOMING)
        endpoint.connection_made(cast("asyncio.BaseTransport", self))

    # What the endpoint calls --------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send *data*: with what else is written in this turn of the poller, at the end of it.

        Readers that are woken one by one go back to sleep one by one, and waking them is most
        of what sending costs.
        """
        if self._is_closing:
            return
        if self._unsent is not None:
            self._unsent += data
            self._heed_fill(self._unsent)
        elif self._queued:
            self._queued += data
        elif self._poller.is_turning:
            self._queued = data
            self._poller.due.append(self)
        else:
            self._put(data)

    def write_now(self, data: bytes) -> None:
        """``write``, but do not wait for the end of the turn."""
        if self._queued or self._unsent is not None or self._is_closing:
            self.write(data)
        else:
            self._put(data)

    def set_write_buffer_limits(self, high: int) -> None:
        self._high_water = high

    def get_write_buffer_size(self) -> int:
        return len(self._queued) + (0 if self._unsent is None else len(self._unsent))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Close our half, once all is sent."""
        self._is_eof_due = True
        if self._is_all_sent():
            self._on_all_sent()

    def pause_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._watch()

    def resume_reading(self) -> None:
        if not self._is_reading and not self._is_closing:
            self._is_reading = True
            self._watch()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """Read no more, and close once all is sent."""
        self._is_closing = True
        self._is_reading = False
        if self._is_all_sent():
            self._end(None)
        elif self._unsent is not None:
            self._watch()

    def abort(self) -> None:
        """Close at once."""
        self._end(None)

    def get_extra_info(self, name: str) -> Any:
        """Of asyncio's, "socket" and "peername"."""
        return {"socket": self._sock, "peername": self._peer}.get(name)

    # What the poller calls ----------------------------------------------------------------------

    def on_ready(self, events: int) -> None:
        # What is neither, a connection that broke, is found out by doing what is to be done.
        if self._is_reading and events != WRITABLE:
            self._read(events)
        if self._unsent is not None and events != READABLE:
            self._send_on(self._unsent)

    def on_turn_end(self) -> None:
        if self._is_over:
            self._close()
            return
        data, self._queued = self._queued, b""
        self._put(data)
        if (self._is_closing or self._is_eof_due) and self._unsent is None:
            self._on_all_sent()

    def on_bug(self, error: Exception) -> None:
        self._end(error)

    def _read(self, events: int) -> None:
        size = self._read_bytes
        try:
            data = _read(self._fd, size)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        if data:
            length = len(data)
            self._read_bytes = SMALL_READ_BYTES if length < SMALL_READ_BYTES else READ_BYTES
            if length == size or events != READABLE:
                self._watch()  # there may be more, or its end
            self._receiver.data_received(data)
            return
        self._its().eof_received()
        if self._is_all_sent():
            self._lose(None)
        else:
            self.close()

    def _put(self, data: bytes) -> None:
        try:
            sent = _write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(error)
            return
        if sent < len(data):
            self._unsent = bytearray(memoryview(data)[sent:])
            self._watch()
            self._heed_fill(self._unsent)

    def _heed_fill(self, unsent: bytearray) -> None:
        if len(unsent) > self._high_water and not self._is_full:
            self._is_full = True
            self._its().pause_writing()

    def _send_on(self, unsent: bytearray) -> None:
        try:
            sent = _write(self._fd, unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        del unsent[:sent]
        if not unsent:
            self._unsent = None
            self._watch()
            self._on_all_sent()
        if self._is_full and len(unsent) <= self._high_water // _LOW_WATER_SHARE:
            self._is_full = False
            self._its().resume_writing()

    def _is_all_sent(self) -> bool:
        return self._unsent is None and not self._queued

    def _on_all_sent(self) -> None:
        if self._is_closing:
            self._end(None)
        elif self._is_eof_due:
            self._is_eof_due = False
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._end(error)

    def _watch(self) -> None:
        if self._is_over:
            return
        if self._unsent is not None:
            events = READABLE | WRITABLE if self._is_reading else WRITABLE
        else:
            events = INCOMING if self._is_reading else 0
        self._poller.watch(self._fd, self, events)

    def _its(self) -> Endpoint:
        assert self._endpoint is not None
        return self._endpoint

    # The end ------------------------------------------------------------------------------------

    def _end(self, error: Exception | None) -> None:
        """Let go of the socket; the endpoint, which may have asked for it, is told later."""
        if not self._let_go(error):
            return
        if self._poller.is_turning:
            self._poller.due.append(self)
        else:
            self._poller.loop.call_soon(self._close)

    def _lose(self, error: Exception | None) -> None:
        """The peer has ended it: the endpoint is told before anything else happens."""
        if self._let_go(error):
            self._close()

    def _let_go(self, error: Exception | None) -> bool:
        if self._is_over:
            return False
        self._is_over = self._is_closing = True
        self._is_reading = False
        self._error = error
        self._queued = b""
        self._unsent = None
        self._poller.forget(self._fd)
        return True

    def _close(self) -> None:
        endpoint = self._endpoint
        if endpoint is None:
            return
        self._endpoint = None
        self._receiver = _NOBODY
        try:
            endpoint.connection_lost(self._error)
        finally:
            self._fd = -1  # which may be another's in a moment
            self._sock.close()
