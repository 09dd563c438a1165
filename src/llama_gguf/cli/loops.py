"""The event loops of the commands that need one."""

from __future__ import annotations

import asyncio
import sys

from llama_gguf.config.settings import Settings

Loop = type[asyncio.AbstractEventLoop]


def loop_factory() -> Loop | None:
    """The fast loop where there is one; the same code runs on asyncio's own, only slower."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def gateway_loop(settings: Settings) -> Loop | None:
    """The loop of a gateway: it sleeps where the traffic comes in.

    With TLS, whose clients are the loop's own affair, the fast one; and without epoll.
    """
    if sys.platform != "linux" or settings.tls_cert_file:
        return loop_factory()
    from llama_gguf.net.event_loop import TrafficLoop  # without which other systems do

    return TrafficLoop
