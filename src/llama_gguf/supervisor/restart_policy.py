"""When a child is restarted, and when the supervisor gives up on it.

A child is llama-server or the gateway; only llama-server sleeps and hangs. The states are those of
``engines/status.py``; every transition between them is in ``TRANSITIONS``, and the policy holds the
child's present state. No clock, no randomness and no process: ``died`` returns the time of the
restart.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from llama_gguf.engines.status import ChildState as S
from llama_gguf.transitions import after
from llama_gguf.values import Value


class Event(enum.Enum):
    SPAWNED = enum.auto()
    SERVES = enum.auto()  # its probe succeeded
    DRAINS = enum.auto()  # it is being replaced: it finishes the requests that it has
    SLEEPS = enum.auto()  # no request needs it: it is being stopped, or has fallen asleep by itself
    HANGS = enum.auto()  # it makes no progress, and is being ended
    DIED = enum.auto()
    GIVEN_UP = enum.auto()
    STOP = enum.auto()  # `serve` is stopping
    GONE = enum.auto()  # it died after STOP


E = Event
TRANSITIONS: Final[Mapping[tuple[S, Event], S]] = {
    (S.STARTING, E.SPAWNED): S.LOADING,
    (S.BACKOFF, E.SPAWNED): S.LOADING,
    (S.ASLEEP, E.SPAWNED): S.LOADING,
    (S.LOADING, E.SERVES): S.READY,
    (S.READY, E.SLEEPS): S.ASLEEP,
    (S.ASLEEP, E.SERVES): S.READY,  # it woke by itself, or a request arrived before it was stopped
    (S.READY, E.DRAINS): S.DRAINING,
    (S.ASLEEP, E.DRAINS): S.DRAINING,  # it sleeps by itself
    (S.LOADING, E.HANGS): S.BACKOFF,
    (S.READY, E.HANGS): S.BACKOFF,
    (S.ASLEEP, E.HANGS): S.BACKOFF,
    (S.DRAINING, E.HANGS): S.BACKOFF,
    (S.STARTING, E.DIED): S.BACKOFF,  # it could not be spawned
    (S.LOADING, E.DIED): S.BACKOFF,
    (S.READY, E.DIED): S.BACKOFF,
    (S.ASLEEP, E.DIED): S.BACKOFF,
    (S.DRAINING, E.DIED): S.BACKOFF,
    (S.BACKOFF, E.DIED): S.BACKOFF,  # already on HANGS, or at the death itself
    (S.BACKOFF, E.GIVEN_UP): S.FAILED,
    (S.STARTING, E.STOP): S.STOPPED,
    (S.BACKOFF, E.STOP): S.STOPPED,
    (S.LOADING, E.STOP): S.STOPPING,
    (S.READY, E.STOP): S.STOPPING,
    (S.ASLEEP, E.STOP): S.STOPPING,
    (S.DRAINING, E.STOP): S.STOPPING,
    (S.FAILED, E.STOP): S.FAILED,
    (S.STOPPING, E.GONE): S.STOPPED,
}

LEAVING: Final = frozenset({S.STOPPING, S.STOPPED, S.FAILED})
"""States after which no child is spawned."""


class SpawnAt(Value):
    when: float
    """On the same clock as ``now``."""


class GiveUp(Value):
    """Exit with the status of the child's last death."""

    exit_status: int


class RestartPolicy:
    """Restart with a doubling delay, and give up on a crash loop.

    Earlier deaths are forgiven after it has served for a while, not as soon as it serves: a child
    that its first request kills each time would be restarted forever.

    A child that has never served gets fewer chances: an unknown flag, or a model that it cannot
    load, fails the next time, too.

    Args:
        first_delay: seconds before the first restart.
        max_delay: seconds no delay exceeds.
        max_deaths: tolerated deaths in a row, without having served in between.
        max_first_deaths: the same for a child that has never served.
        forgiving_after: seconds of serving that count as having served.
        has_served: whether it is known to be able to serve.
        rng: returns a random number from 0 to 1. It shortens delays by up to ``JITTER``, so that
            instances that died of one cause do not restart all at the same moment.
    """

    JITTER: Final = 0.25

    def __init__(
        self,
        *,
        first_delay: float = 1.0,
        max_delay: float = 60.0,
        max_deaths: int = 5,
        max_first_deaths: int | None = None,
        forgiving_after: float = 60.0,
        has_served: bool = False,
        rng: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._first_delay = first_delay
        self._max_delay = max_delay
        self._max_deaths = max_deaths
        self._max_first_deaths = max_deaths if max_first_deaths is None else max_first_deaths
        self._forgiving_after = forgiving_after
        self._rng = rng
        self._deaths = 0
        self._has_served = has_served
        self.serves_since: float | None = None
        """In the present life."""
        self.restarts: Counter[str] = Counter()
        """By reason."""
        self.state = S.STARTING

    def on(self, event: Event, now: float) -> S:
        """Move on *event* and return the new state.

        Raises:
            IllegalTransition: *event* cannot happen in the present state.
        """
        self.state = after(TRANSITIONS, self.state, event)
        if event is E.SERVES and self.serves_since is None:
            self._has_served = True
            self.serves_since = now
        elif event in (E.SPAWNED, E.DIED):
            self._end_life(now)
        return self.state

    def _end_life(self, now: float) -> None:
        """Forgive earlier deaths if this life has served for long enough."""
        since, self.serves_since = self.serves_since, None
        if since is not None and now - since >= self._forgiving_after:
            self._deaths = 0

    def died(self, exit_status: int, now: float, *, reason: str = "crash") -> SpawnAt | GiveUp:
        """Decide what follows the child's death at *now*; restarts are counted by *reason*.

        Raises:
            IllegalTransition: it was being stopped.
        """
        self.on(E.DIED, now)
        self._deaths += 1
        tolerated = self._max_deaths if self._has_served else self._max_first_deaths
        if self._deaths > tolerated:
            self.on(E.GIVEN_UP, now)
            return GiveUp(exit_status)
        self.restarts[reason] += 1
        return SpawnAt(now + self._delay())

    def _delay(self) -> float:
        delay: float = min(self._first_delay * 2 ** (self._deaths - 1), self._max_delay)
        return delay * (1 - self.JITTER * self._rng())
