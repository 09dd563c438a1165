"""The transports of connections: one native base class, with and without TLS.

``SocketTransport`` does the I/O of a connected socket. It is the part of ``asyncio.Transport`` that
is used: a loop's transports serve every purpose, which costs a tenth of an event
(docs/adr/0018-sockets-are-our-own.md). ``LoopTransport`` wraps one of those, for TLS.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from llama_gguf.net import socket_io
from llama_gguf.net.poller import INCOMING, READABLE, WRITABLE, Poller, Watched

READ_BYTES: Final = 65536
SMALL_READ_BYTES: Final = 479
"""Read at once from a peer that sends less, as a stream does: an object of the interpreter's own
allocator (up to 512 bytes), where one of 64 KiB would be allocated and cut down each time."""
HIGH_WATER_BYTES: Final = 65536
"""Of a response that waits for a slow reader; beyond it, the engine is paused."""
_LOW_WATER_SHARE: Final = 4
# The methods of a socket also handle time-outs and flags, which costs more than the call itself.
_read: Final = socket_io.read
_write: Final = socket_io.write


class Transport(Watched):
    """What a protocol calls to send, to stop and to end.

    A native base class, not a ``typing.Protocol``, through which mypyc would call the interpreter
    for each event. It extends ``Watched``, which only ``SocketTransport`` needs, since a compiled
    class has one base. Names and meanings are those of ``asyncio.Transport``, except for
    ``write_now``.
    """

    __slots__ = ()

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def write_now(self, data: bytes) -> None:
        """``write``, but without waiting for other writes of the same turn of the loop."""
        raise NotImplementedError

    def set_write_buffer_limits(self, high: int) -> None:
        raise NotImplementedError

    def get_write_buffer_size(self) -> int:
        raise NotImplementedError

    def can_write_eof(self) -> bool:
        raise NotImplementedError

    def write_eof(self) -> None:
        """Close our half, once everything is sent."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        raise NotImplementedError

    def resume_reading(self) -> None:
        raise NotImplementedError

    def is_closing(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Stop reading, and close once everything is sent."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once."""
        raise NotImplementedError

    def get_extra_info(self, name: str) -> Any:
        """The value of "socket" or of "peername"; None if it is unknown."""
        raise NotImplementedError


class Endpoint(Protocol):
    """``asyncio.Protocol``, by its methods, with a ``Transport``."""

    def connection_made(self, transport: Transport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class LoopTransport(Transport):
    """A transport of the event loop, as TLS needs one: each call costs one more.

    The loop takes this for its protocol until it is connected; from then on, it calls *endpoint*
    directly.
    """

    __slots__ = ("_endpoint", "_transport")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint: Endpoint | None = endpoint
        # Not typed: those of uvloop are no instances of asyncio.Transport.
        self._transport: Any

    def connection_made(self, transport: Any) -> None:
        """What the loop calls."""
        endpoint, self._endpoint = self._endpoint, None  # else the two would keep each other alive
        assert endpoint is not None
        self._transport = transport
        transport.set_protocol(endpoint)
        endpoint.connection_made(self)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def write_now(self, data: bytes) -> None:
        self._transport.write(data)

    def set_write_buffer_limits(self, high: int) -> None:
        self._transport.set_write_buffer_limits(high=high)

    def get_write_buffer_size(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size

    def can_write_eof(self) -> bool:
        return bool(self._transport.can_write_eof())

    def write_eof(self) -> None:
        self._transport.write_eof()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)


# Without TLS --------------------------------------------------------------------------------------


class Receiver:
    """An endpoint that is called without the interpreter in between, where both are compiled."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


class _AdaptedReceiver(Receiver):
    """Passes the data to any other endpoint, through the interpreter."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[bytes], None]) -> None:
        self._call = call

    def data_received(self, data: bytes) -> None:
        self._call(data)


def _ignore(data: bytes) -> None:
    del data


_NO_RECEIVER: Final = _AdaptedReceiver(_ignore)
"""Before there is an endpoint, and after its ``connection_lost``."""


class SocketTransport(Transport):
    """Reads and writes one socket, and closes it.

    When the peer has closed its half, so does this; the result of ``eof_received`` is ignored.

    Args:
        poller: watches the socket.
        sock: connected, and not blocking.
        peer: its address, as ``accept`` returns it.
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
        self._receiver: Receiver = _NO_RECEIVER
        self._read_bytes = READ_BYTES
        self._queued = b""
        """To be sent at the end of the poller's turn."""
        self._unsent: bytearray | None = None
        """What the kernel did not take."""
        self._high_water = HIGH_WATER_BYTES
        self._is_reading = True
        self._is_full = False
        """The endpoint's ``pause_writing`` was called."""
        self._is_eof_due = False
        self._is_closing = False
        self._is_over = False
        """The socket is no longer used."""
        self._error: Exception | None = None
        """The reason; None for an end without an error."""

    def attach(self, endpoint: Endpoint) -> None:
        """Begin to read, and call *endpoint* from now on."""
        self._endpoint = endpoint
        plain: object = endpoint  # narrowed to the native class, not to both types
        self._receiver = (
            plain if isinstance(plain, Receiver) else _AdaptedReceiver(endpoint.data_received)
        )
        self._poller.watch(self._fd, self, INCOMING)
        endpoint.connection_made(self)

    # What the endpoint calls --------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send *data* at the end of this turn of the poller, with all other writes of the turn.

        Readers that are woken one by one go back to sleep one by one, and waking them is most of
        the cost of sending.
        """
        if self._is_closing:
            return
        if self._unsent is not None:
            self._unsent += data
            self._check_fill(self._unsent)
        elif self._queued:
            self._queued += data
        elif self._poller.is_turning:
            self._queued = data
            self._poller.due.append(self)
        else:
            self._put(data)

    def write_now(self, data: bytes) -> None:
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
        self._is_closing = True
        self._is_reading = False
        if self._is_all_sent():
            self._end(None)
        elif self._unsent is not None:
            self._watch()

    def abort(self) -> None:
        self._end(None)

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self._sock, "peername": self._peer}.get(name)

    # What the poller calls ----------------------------------------------------------------------

    def on_ready(self, events: int) -> None:
        # Any other event is a broken connection, on which reading and writing fail.
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
                self._watch()  # more may follow, or the end
            self._receiver.data_received(data)
            return
        self._require_endpoint().eof_received()
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
            self._check_fill(self._unsent)

    def _check_fill(self, unsent: bytearray) -> None:
        if len(unsent) > self._high_water and not self._is_full:
            self._is_full = True
            self._require_endpoint().pause_writing()

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
            self._require_endpoint().resume_writing()

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

    def _require_endpoint(self) -> Endpoint:
        assert self._endpoint is not None
        return self._endpoint

    # The end ------------------------------------------------------------------------------------
    # Either way, ``_close`` calls the endpoint's ``connection_lost``, once: ``_end`` at the end of
    # the turn, since the endpoint may be the caller; ``_lose`` at once.

    def _end(self, error: Exception | None) -> None:
        """Stop using the socket; the endpoint, which may be the caller, is called later."""
        if not self._stop(error):
            return
        if self._poller.is_turning:
            self._poller.due.append(self)
        else:
            self._poller.loop.call_soon(self._close)

    def _lose(self, error: Exception | None) -> None:
        """The peer has ended it: the endpoint is called before anything else happens."""
        if self._stop(error):
            self._close()

    def _stop(self, error: Exception | None) -> bool:
        """Stop using the socket, without calling the endpoint; False if that was done before."""
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
        """Call the endpoint for the last time, and close the socket."""
        endpoint = self._endpoint
        if endpoint is None:
            return
        self._endpoint = None
        self._receiver = _NO_RECEIVER
        try:
            endpoint.connection_lost(self._error)
        finally:
            self._fd = -1  # another file may have this number next
            self._sock.close()
