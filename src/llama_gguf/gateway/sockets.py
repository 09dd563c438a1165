"""What is done to sockets themselves, behind the transports' backs, and how many there may be."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import struct
from typing import Final

# socket(7), SO_LINGER: on, for no time at all.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# linux/include/net/tcp_states.h
_TCP_CLOSE: Final = 7
_TCP_CLOSE_WAIT: Final = 8
_OTHER_FILES: Final = 64
"""That a gateway may have open besides connections: the log, keys, the loop's own."""


def connections_within_limits(wanted: int) -> int:
    """How many clients may be connected: *wanted*, or what the limit on open files leaves.

    Raises the soft limit to the hard one before. A client may need a second connection, to the
    engine; one that only holds the first must not take that from the others.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max((hard - _OTHER_FILES) // 2, 1))


def reset(transport: asyncio.Transport) -> None:
    """Cut with a reset: to a body that ends with its connection, a FIN is a clean end."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed; asks the kernel, since with reading paused nobody tells us."""
    sock = transport.get_extra_info("socket")
    try:
        # tcp(7): the first byte of struct tcp_info is the state.
        state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (AttributeError, OSError):  # a unix socket, or not Linux
        return False
    return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)
