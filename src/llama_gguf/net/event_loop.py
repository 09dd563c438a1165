"""asyncio's event loop, which waits in the poller of the traffic's sockets.

While there is only traffic, the loop stays in ``select``, and a turn costs one system call.
Timers, signals and tasks work as in any asyncio loop. Why not uvloop:
docs/adr/0019-the-loop-sleeps-in-our-epoll.md.
"""

from __future__ import annotations

import asyncio
import contextvars
import select
import selectors
import socket
from collections.abc import Callable
from typing import Any, TypeVarTuple

from llama_gguf.net.poller import READABLE, EpollPoller, LoopFiles
from llama_gguf.net.threads import run_detached

_Ts = TypeVarTuple("_Ts")


class TrafficSelector(selectors.EpollSelector):
    """Sleeps in the poller's epoll, in which its own epoll is one of the files."""

    def __init__(self) -> None:
        super().__init__()
        self._files: LoopFiles
        self._poller: EpollPoller | None = None

    def new_poller(self, loop: asyncio.AbstractEventLoop) -> EpollPoller:
        self._poller = EpollPoller(loop, select.epoll())
        self._files = LoopFiles(self._poller)
        self._poller.watch(self.fileno(), self._files, READABLE)
        return self._poller

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve the traffic until *timeout* is over, or the loop has something else to do."""
        poller = self._poller
        if poller is None or poller.is_closed:
            return super().select(timeout)
        poller.serve(timeout)
        if not self._files.are_ready:
            return []
        self._files.are_ready = False
        return super().select(0)

    def wake(self) -> None:
        """A callback or a timer has been scheduled."""
        if self._poller is not None:
            self._poller.has_news = True


class TrafficLoop(asyncio.SelectorEventLoop):
    """The loop of a gateway; ``new_poller`` creates its poller."""

    def __init__(self) -> None:
        self._traffic = TrafficSelector()
        super().__init__(self._traffic)

    def new_poller(self) -> EpollPoller:
        return self._traffic.new_poller(self)

    async def getaddrinfo(self, host: Any, port: Any, **options: int) -> Any:
        """As asyncio's, but on a daemon thread, so that a slow resolver cannot block shutdown."""
        return await run_detached(lambda: socket.getaddrinfo(host, port, **options))

    # All scheduling goes through these two, or wakes the loop by one of its files.

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        self._traffic.wake()
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self._traffic.wake()
        return super().call_at(when, callback, *args, context=context)
