"""Watches the sockets that carry the traffic, with a separate epoll.

The loop sleeps in it, or watches it as one file. It stays in charge of everything else: time,
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
"""EPOLLIN. A connection that broke, or that the peer closed, is told as another number."""
INCOMING: Final = READABLE | 0x2000 | 1 << 31
"""With EPOLLRDHUP and EPOLLET: told once of what has come in, and that the peer has closed its
half; again when more comes in, or when it is asked for again."""
WRITABLE: Final = 4
"""EPOLLOUT."""
_FOR_EVER: Final = -1.0
_now: Final = time.monotonic
MAX_READY: Final = 8
"""Sockets that are read before anything is sent: with more, the first waits longer for the last."""


class Watched:
    """Whoever has a socket watched."""

    __slots__ = ()

    def on_ready(self, events: int) -> None:
        """There is something to do, or nothing any more: the socket itself knows."""
        raise NotImplementedError

    def on_turn_end(self) -> None:
        """All that were ready have been read: send what is to be sent."""
        raise NotImplementedError

    def on_bug(self, error: Exception) -> None:
        """One of these raised *error*: end what it was about."""
        raise NotImplementedError


class Poller:
    """What a poller does; ``poller`` chooses one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_turning = False
        """Sockets are being read: whoever adds itself to ``due`` is told when they are."""
        self.due: list[Watched] = []

    def watch(self, fd: int, watched: Watched, events: int) -> None:
        """Watch *fd* for *events* and no others, until it is forgotten.

        They are told again and again while they last; of INCOMING, only when more has come in.
        """
        raise NotImplementedError

    def forget(self, fd: int) -> None:
        """Watch *fd* no longer: nobody else has it, and the loop's next turn closes it."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class EpollPoller(Poller):
    """One turn of the loop, whatever the number of sockets that are ready.

    Args:
        loop: in charge of everything else.
        epoll: the one in which the loop sleeps, and has us take our turns; None: one of ours,
            which the loop watches.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: select.epoll | None = None) -> None:
        super().__init__(loop)
        self._is_watched = epoll is None
        self._epoll = epoll or select.epoll()
        self._poll: Callable[[float, int], list[tuple[int, int]]] = self._epoll.poll
        self._watched: dict[int, Watched] = {}
        self.has_news = False
        """The loop has something to do besides: ``serve`` ends with the turn."""
        if self._is_watched:
            loop.add_reader(self.fileno(), self.turn)

    def fileno(self) -> int:
        """Ready when a socket is."""
        return self._epoll.fileno()

    def watch(self, fd: int, watched: Watched, events: int) -> None:
        if not events:  # it would be told when the connection breaks, over and over
            if self._watched.pop(fd, None) is not None:
                self._epoll.unregister(fd)
        elif fd in self._watched:
            self._watched[fd] = watched
            self._epoll.modify(fd, events)
        else:
            self._watched[fd] = watched
            self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        self._watched.pop(fd, None)  # the kernel forgets it as it is closed

    @property
    def is_closed(self) -> bool:
        return self._epoll.closed

    def close(self) -> None:
        if self._is_watched:
            self.loop.remove_reader(self.fileno())
        self._epoll.close()

    def turn(self, wait: float = 0.0) -> bool:
        """Tell those that are ready; wait for *wait* seconds until somebody is, below 0 for ever.

        Returns whether anybody was.
        """
        watched = self._watched
        ready = self._poll(wait, MAX_READY)
        self.is_turning = True
        for fd, events in ready:
            one = watched.get(fd)
            if one is not None:  # it may have gone by what was done for one before it
                _tell(one, events)
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
        """Take turns until *timeout* seconds are over, None: for ever, or ``has_news``."""
        self.has_news = False
        wait = _FOR_EVER if timeout is None else max(timeout, 0.0)
        until = _now() + wait
        while self.turn(wait) and not self.has_news:
            if timeout is not None:
                wait = until - _now()
                if wait <= 0:
                    break


class LoopFiles(Watched):
    """What the loop itself watches, as one file."""

    __slots__ = ("_poller", "are_ready")

    def __init__(self, poller: EpollPoller) -> None:
        self._poller = poller
        self.are_ready = False

    def on_ready(self, events: int) -> None:
        self.are_ready = self._poller.has_news = True


class LoopPoller(Poller):
    """Where there is no epoll: the loop watches each socket itself."""

    def watch(self, fd: int, watched: Watched, events: int) -> None:
        if events & READABLE:
            self.loop.add_reader(fd, _tell, watched, READABLE)
        else:
            self.loop.remove_reader(fd)
        if events & WRITABLE:
            self.loop.add_writer(fd, _tell, watched, WRITABLE)
        else:
            self.loop.remove_writer(fd)

    def forget(self, fd: int) -> None:
        self.loop.remove_reader(fd)
        self.loop.remove_writer(fd)

    def close(self) -> None:
        pass


def poller(loop: asyncio.AbstractEventLoop) -> Poller:
    """The best there is on this system, and with this loop."""
    of_the_loop: Callable[[], Poller] | None = getattr(loop, "new_poller", None)
    if of_the_loop is not None:
        return of_the_loop()
    return EpollPoller(loop) if hasattr(select, "epoll") else LoopPoller(loop)


def _tell(watched: Watched, events: int) -> None:
    try:
        watched.on_ready(events)
    except Exception as error:
        _report(watched, error)


def _report(watched: Watched, error: Exception) -> None:
    _log.error("bug", "A connection was cut because of a bug; please report it", exc_info=error)
    watched.on_bug(error)
