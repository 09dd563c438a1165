"""Watches the sockets that carry the traffic, with a separate epoll.

The loop sleeps in it, or watches it as one file. Everything else remains with the loop: time,
signals, tasks, TLS.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from typing import Final

from llama_gguf.events import EventLog

_log: Final = EventLog(__name__)

READABLE: Final = 1
"""EPOLLIN. A connection that broke, or that the peer closed, has another number."""
INCOMING: Final = READABLE | 0x2000 | 1 << 31
"""With EPOLLRDHUP and EPOLLET: reported once when bytes arrive, and when the peer closes its half;
again when more arrive, or after another ``watch``."""
WRITABLE: Final = 4
"""EPOLLOUT."""
_NO_TIMEOUT: Final = -1.0
_now: Final = time.monotonic
MAX_READY: Final = 32
"""Sockets that are read before what waits is sent: more would delay the first of them. With 8, a
request costs 1 to 4 % more, since the kernel is asked more often."""


class Watched:
    """The owner of a watched socket."""

    __slots__ = ()

    def on_ready(self, events: int) -> None:
        """The socket can be read or written, or is broken."""
        raise NotImplementedError

    def on_turn_end(self) -> None:
        """All ready sockets have been read: send what waits for that."""
        raise NotImplementedError

    def on_bug(self, error: Exception) -> None:
        """One of the two above raised *error*: close the socket."""
        raise NotImplementedError


class Poller:
    """The base class; ``poller`` chooses an implementation."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_turning = False
        """Sockets are being read; ``on_turn_end`` of those in ``due`` is called afterwards."""
        self.due: list[Watched] = []

    def watch(self, fd: int, watched: Watched, events: int) -> None:
        """Watch *fd* for *events* and no others, until ``forget``.

        They are reported in every turn while they last; INCOMING, only when more arrives.
        """
        raise NotImplementedError

    def forget(self, fd: int) -> None:
        """Stop watching *fd*, which has no other owner and is closed in the loop's next turn."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class EpollPoller(Poller):
    """One turn of the loop for any number of ready sockets.

    Args:
        loop: handles everything else.
        epoll: the one in which the loop sleeps, calling ``serve``; None: a new one, which the loop
            watches.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: select.epoll | None = None) -> None:
        super().__init__(loop)
        self._is_watched = epoll is None
        self._epoll = epoll or select.epoll()
        self._poll: Callable[[float, int], list[tuple[int, int]]] = self._epoll.poll
        self._watched: dict[int, Watched] = {}
        self.has_news = False
        """The loop has something else to do: ``serve`` ends with the turn."""
        if self._is_watched:
            loop.add_reader(self.fileno(), self.turn)

    def fileno(self) -> int:
        """Readable when a socket is ready."""
        return self._epoll.fileno()

    def watch(self, fd: int, watched: Watched, events: int) -> None:
        if not events:  # epoll would report a broken connection in every turn
            if self._watched.pop(fd, None) is not None:
                self._epoll.unregister(fd)
        elif fd in self._watched:
            self._watched[fd] = watched
            self._epoll.modify(fd, events)
        else:
            self._watched[fd] = watched
            self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        self._watched.pop(fd, None)  # the kernel removes it from epoll on close

    @property
    def is_closed(self) -> bool:
        return self._epoll.closed

    def close(self) -> None:
        if self._is_watched:
            self.loop.remove_reader(self.fileno())
        self._epoll.close()

    def turn(self, wait: float = 0.0) -> bool:
        """Call the owners of ready sockets, after waiting up to *wait* seconds for one.

        Below 0, it waits without limit. Returns whether a socket was ready.
        """
        watched = self._watched
        ready = self._poll(wait, MAX_READY)
        self.is_turning = True
        for fd, events in ready:
            one = watched.get(fd)
            if one is not None:  # an earlier one of this turn may have closed it
                _call(one, events)
        self.is_turning = False
        due = self.due
        if due:
            self.due = []
            for one in due:
                try:
                    one.on_turn_end()
                except Exception as error:
                    _report(one, error)
        return bool(ready)

    def serve(self, timeout: float | None) -> None:
        """Take turns until *timeout* seconds are over, None: without limit, or ``has_news``."""
        self.has_news = False
        wait = _NO_TIMEOUT if timeout is None else max(timeout, 0.0)
        until = _now() + wait
        while self.turn(wait) and not self.has_news:
            if timeout is not None:
                wait = until - _now()
                if wait <= 0:
                    break


class LoopFiles(Watched):
    """The loop's own epoll, as one file."""

    __slots__ = ("_poller", "are_ready")

    def __init__(self, poller: EpollPoller) -> None:
        self._poller = poller
        self.are_ready = False

    def on_ready(self, events: int) -> None:
        self.are_ready = self._poller.has_news = True


class LoopPoller(Poller):
    """Without epoll, the loop watches each socket."""

    def watch(self, fd: int, watched: Watched, events: int) -> None:
        if events & READABLE:
            self.loop.add_reader(fd, _call, watched, READABLE)
        else:
            self.loop.remove_reader(fd)
        if events & WRITABLE:
            self.loop.add_writer(fd, _call, watched, WRITABLE)
        else:
            self.loop.remove_writer(fd)

    def forget(self, fd: int) -> None:
        self.loop.remove_reader(fd)
        self.loop.remove_writer(fd)

    def close(self) -> None:
        pass


def poller(loop: asyncio.AbstractEventLoop) -> Poller:
    """The best poller for this system and this loop."""
    of_the_loop: Callable[[], Poller] | None = getattr(loop, "new_poller", None)
    if of_the_loop is not None:
        return of_the_loop()
    return EpollPoller(loop) if hasattr(select, "epoll") else LoopPoller(loop)


def _call(watched: Watched, events: int) -> None:
    try:
        watched.on_ready(events)
    except Exception as error:
        _report(watched, error)


def _report(watched: Watched, error: Exception) -> None:
    _log.error("bug", "A connection was cut because of a bug; please report it", exc_info=error)
    watched.on_bug(error)
