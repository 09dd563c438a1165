"""The parts of a client connection that do not depend on a request: writing, pausing, closing.

Nothing here knows of requests and answers; ``client.py`` does.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from llama_gguf.core.limits import network_of
from llama_gguf.core.messages import NEVER, Pattern
from llama_gguf.gateway.transport import HIGH_WATER_BYTES, Receiver, SocketTransport

if TYPE_CHECKING:
    from llama_gguf.gateway.shared import Shared

MAX_HELD_BYTES: Final = 65536
"""Of requests sent ahead; beyond it, reading pauses."""
LINGER_SECONDS: Final = 2.0
"""For a client that is still sending to read its answer before the connection goes."""
NO_DEADLINE: Final = math.inf

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")


class Connection(Receiver):
    """Half of an ``asyncio.Protocol``, by its methods: compiled classes do not inherit from it."""

    __slots__ = (
        "_is_lingering",
        "_is_paused",
        "_may_persist",
        "_must_linger",
        "_pattern",
        "_received",
        "_shared",
        "_skip",
        "_transport",
        "address",
        "deadline",
        "network",
        "sink",
        "write",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: asyncio.Transport
        self.write: Callable[[bytes], None]
        self.sink: SocketTransport | None = None
        self.address = "-"
        self.network = "-"
        """What counts as one address when it tries wrong keys."""
        self.deadline = NO_DEADLINE
        """When something is overdue, on the loop's clock."""
        self._received = b""
        """What has come in and has not been looked at."""
        self._skip = 0
        """Bytes to come that count for nothing: the rest of a refused body."""
        self._pattern: Pattern = NEVER
        """Of the last head, which the next one mostly repeats."""
        self._is_paused = False
        self._may_persist = False
        self._must_linger = False
        self._is_lingering = False
        """It is being closed: what comes is thrown away."""

    def _attach(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no instances of asyncio.Transport, so this cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write
        ours: object = transport
        if isinstance(ours, SocketTransport):
            self.sink = ours
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self.network = network_of(self.address)
        self.deadline = self._head_deadline()
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def eof_received(self) -> bool:
        # Whoever closes its half has left: nothing distinguishes it from a client that is gone,
        # and the GPU is not kept busy on the chance that it is not.
        return False

    def _head_deadline(self) -> float:
        return self._shared.now() + self._shared.client_header_timeout

    # What comes in -------------------------------------------------------------------------------

    def _skipped(self, received: bytes) -> bytes:
        """*received* without what does not count: the rest of a refused body, empty lines."""
        if self._is_lingering:
            return b""
        if self._skip:
            skipped = min(self._skip, len(received))
            self._skip -= skipped
            received = received[skipped:]
        # RFC 9112 section 2.2: an empty line, or more, before a request is none of it.
        lines = _EMPTY_LINES.match(received)
        return received[lines.end() :] if lines else received

    def _hold(self, data: bytes) -> None:
        """Keep what was sent ahead until its turn comes; a bounded amount of it.

        Reading stays paused until all of it has been used.
        """
        self._received += data
        if len(self._received) > MAX_HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    # The end --------------------------------------------------------------------------------------

    def _part(self) -> None:
        """Close; but let a client that is still sending read its answer first.

        Closing with unread bytes in the socket resets the connection, and a reset
        may take the answer with it.
        """
        still_comes = self._skip > len(self._received)
        if not (self._must_linger or still_comes):
            self._close()
            return
        self._ignore_what_comes()
        self.deadline = self._shared.now() + LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _ignore_what_comes(self) -> None:
        self._is_lingering = True
        self._read_on()
        self._received = b""
        self._pattern = NEVER

    def _close(self) -> None:
        """Close once what was written has been read; but not wait for ever for that."""
        self._ignore_what_comes()
        self.deadline = self._head_deadline()
        self._transport.close()

    def _on_lingering_deadline(self) -> None:
        """The client has had its time to read."""
        # Over TLS, which has no half-close, the end has not been told yet.
        if self._transport.can_write_eof() or self._transport.is_closing():
            self._transport.abort()
        else:
            self._close()
