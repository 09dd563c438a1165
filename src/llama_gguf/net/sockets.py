"""Operations on sockets below the transports, and the limit on their number."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
from typing import Final

from llama_gguf.net.transport import Transport

# socket(7), SO_LINGER: on, for no time at all.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# linux/include/net/tcp_states.h
_TCP_CLOSE: Final = 7
_TCP_CLOSE_WAIT: Final = 8
_SHARE: Final = 8
_OTHER_FILES: Final = 64
"""Files of a gateway other than connections: the log, keys, the loop's own."""


class Places:
    """The most connections of clients, of all kinds together.

    Args:
        served: beyond it, a connection receives 503 and is closed.
        open_: with those that receive 503, and handshakes; beyond it, a connection is closed
            unread.
    """

    def __init__(self, served: int, open_: int) -> None:
        self.served: Final = served
        self.open: Final = open_


def places_within_limits(wanted: int) -> Places:
    """Places for *wanted* clients, or fewer where the limit on open files requires it.

    Raises the soft limit to the hard one before. A client may need a second connection, to the
    engine: those files are reserved, and never used for more clients.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY:
        # The same number for the engine, and an eighth of it for clients that are refused.
        allowed = (hard - _OTHER_FILES) * _SHARE // (2 * _SHARE + 1)
        wanted = min(wanted, max(allowed, 1))
    return Places(wanted, wanted + max(wanted // _SHARE, 1))


def reset(transport: Transport) -> None:
    """Cut with a reset: to a body that ends with its connection, a FIN is a clean end."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def has_left(transport: Transport) -> bool:
    """Whether the peer has closed, from the kernel: while reading is paused, no event shows it."""
    sock = transport.get_extra_info("socket")
    try:
        # tcp(7): the first byte of struct tcp_info is the state.
        state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (AttributeError, OSError):  # a unix socket, or not Linux
        return False
    return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)
