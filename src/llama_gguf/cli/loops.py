"""The event loops of the commands that need one."""

from __future__ import annotations

import asyncio
import sys

from llama_gguf.config.schema import TlsSettings

Loop = type[asyncio.AbstractEventLoop]


def loop_factory() -> Loop | None:
    """The loop of uvloop if it is installed; the same code runs on asyncio's loop, only slower."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def gateway_loop(settings: TlsSettings) -> Loop | None:
    """The gateway's loop, which waits in the poller of the traffic's sockets.

    With TLS, where the loop handles the client sockets itself, or without epoll: uvloop.
    """
    if sys.platform != "linux" or settings.tls_cert_file:
        return loop_factory()
    from llama_gguf.net.event_loop import TrafficLoop  # needs epoll: Linux only

    return TrafficLoop
