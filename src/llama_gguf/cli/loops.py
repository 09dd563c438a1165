"""Which event loop the commands run on that have one."""

from __future__ import annotations

import asyncio


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """The fast loop where there is one; the same code runs on asyncio's own, only slower."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop
