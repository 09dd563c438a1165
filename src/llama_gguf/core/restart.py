"""When a child is started again, and when it is given up.

The states are those that ``core/engine.py`` shows to the world; every move
between them is in ``TRANSITIONS``. No clock and no process: ``died`` says when.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llama_gguf.core.engine import EngineState as S


class Event(enum.Enum):
    SPAWNED = enum.auto()
    SERVES = enum.auto()  # its probe was answered
    DIED = enum.auto()
    GIVEN_UP = enum.auto()
    STOP = enum.auto()  # we are asked to leave
    GONE = enum.auto()  # it died, as asked


E = Event
TRANSITIONS: Final[Mapping[tuple[S, Event], S]] = {
    (S.STARTING, E.SPAWNED): S.LOADING,
    (S.BACKOFF, E.SPAWNED): S.LOADING,
    (S.LOADING, E.SERVES): S.READY,
    (S.STARTING, E.DIED): S.BACKOFF,  # it could not even be spawned
    (S.LOADING, E.DIED): S.BACKOFF,
    (S.READY, E.DIED): S.BACKOFF,
    (S.BACKOFF, E.GIVEN_UP): S.FAILED,
    (S.STARTING, E.STOP): S.STOPPED,
    (S.BACKOFF, E.STOP): S.STOPPED,
    (S.LOADING, E.STOP): S.STOPPING,
    (S.READY, E.STOP): S.STOPPING,
    (S.STOPPING, E.GONE): S.STOPPED,
}


class IllegalTransition(Exception):
    """A bug in the supervisor."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a child has done since its birth."""

    cpu_seconds: float
    work: tuple[int, ...]
    """Numbers that only change when it does something of its own: lines written, major faults."""
    memory_bytes: int = 0


class StallWatch:
    """Whether a loading child still moves.

    A little CPU time or memory is no sign: answering our own probe costs some. It has
    to be a tenth of a core, or megabytes, or something else has to change.

    Args:
        seconds: without a sign, before it counts as stalled.
    """

    _BUSY: Final = 0.1
    _GROWTH_BYTES: Final = 8 << 20

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._moved_at: float | None = None
        self._last = Progress(0.0, ())

    def is_stalled(self, progress: Progress, now: float) -> bool:
        """Take a look at *now*."""
        if self._moved_at is None or self._has_moved(progress, now - self._moved_at):
            self._moved_at, self._last = now, progress
        return now - self._moved_at > self._seconds

    def _has_moved(self, progress: Progress, elapsed: float) -> bool:
        busy = progress.cpu_seconds - self._last.cpu_seconds > max(elapsed, 1.0) * self._BUSY
        grown = abs(progress.memory_bytes - self._last.memory_bytes) > self._GROWTH_BYTES
        return busy or grown or progress.work != self._last.work


@dataclass(frozen=True, slots=True)
class SpawnAt:
    when: float
    """On the clock of ``now``."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave, with the exit status of the child's last death."""

    exit_status: int


class RestartPolicy:
    """Restart with a doubling delay, and give up on a crash loop.

    A child that never served *at all* gets fewer chances: a flag it does not know,
    or a model it cannot load, will not be better the next time.

    Args:
        first_delay: seconds before the first restart.
        max_delay: seconds no delay exceeds.
        max_deaths: deaths in a row, without serving in between, to bear.
        max_first_deaths: the same for a child that has never served.
    """

    def __init__(
        self,
        *,
        first_delay: float = 1.0,
        max_delay: float = 60.0,
        max_deaths: int = 5,
        max_first_deaths: int | None = None,
    ) -> None:
        self._first_delay = first_delay
        self._max_delay = max_delay
        self._max_deaths = max_deaths
        self._max_first_deaths = max_deaths if max_first_deaths is None else max_first_deaths
        self._deaths = 0
        self._has_served = False
        self.restarts = 0
        self.state = S.STARTING

    def on(self, event: Event) -> S:
        """Move on *event* and return the new state.

        Raises:
            IllegalTransition: *event* cannot happen in the present state.
        """
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise IllegalTransition(f"{event.name} while {self.state.name}") from None
        if event is E.SERVES:  # earlier deaths are forgiven
            self._has_served = True
            self._deaths = 0
        return self.state

    def died(self, exit_status: int, now: float) -> SpawnAt | GiveUp:
        """Decide what follows the child's death at *now*."""
        self.on(E.DIED)
        self._deaths += 1
        bearable = self._max_deaths if self._has_served else self._max_first_deaths
        if self._deaths > bearable:
            self.on(E.GIVEN_UP)
            return GiveUp(exit_status)
        self.restarts += 1
        delay = self._first_delay * 2 ** (self._deaths - 1)
        return SpawnAt(now + min(delay, self._max_delay))
