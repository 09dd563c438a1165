"""How many engines a cluster needs.

1. More, when the requests that run and wait need more for ``BUSY_SECONDS``; at once if there is no
   engine at all.
2. Fewer, when fewer were enough during all of the last idle seconds. None is one of the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BUSY_SECONDS: Final = 2.0
"""A burst that the engines work off within it starts no further one, which takes longer to load."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which the number of engines is."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least}..{self.most}"


def needed(*, queued: int, running: int, slots: int) -> int:
    """The number of engines for these requests, if each works on *slots* at once."""
    return -(-(queued + running) // max(slots, 1))


class Scaling:
    """The number of engines over time.

    Args:
        bounds: of the number.
        idle_seconds: after which an engine that is not needed is stopped.
        current: the number of engines that there are.
        now: seconds on a clock that never runs backwards, as everywhere here.
    """

    def __init__(self, bounds: Bounds, *, idle_seconds: float, current: int, now: float) -> None:
        self._idle_seconds = idle_seconds
        self._short_since: float | None = None
        self._needed_at: list[float] = []
        """When the first, the second and so on was last needed."""
        self._bounds = bounds
        self._grow(current, now)

    @property
    def current(self) -> int:
        return len(self._needed_at)

    def step(self, wanted: int, now: float) -> int:
        """How many there should be at *now*, if *wanted* ones are needed for the requests."""
        bounds = self._bounds
        wanted = min(wanted, bounds.most)
        if wanted <= self.current:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        if self._short_since is not None:
            is_long = now - self._short_since >= BUSY_SECONDS
            if is_long or not self.current:
                self._grow(wanted, now)  # 1
                self._short_since = None
        self._grow(bounds.least, now)
        for number in range(min(wanted, self.current)):
            self._needed_at[number] = now
        while self.current > bounds.least and (
            self.current > bounds.most or now - self._needed_at[-1] >= self._idle_seconds
        ):
            self._needed_at.pop()  # 2
        return self.current

    def _grow(self, number: int, now: float) -> None:
        self._needed_at += [now] * (number - self.current)
