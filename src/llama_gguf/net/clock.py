"""The time: for durations, for people, and for the Date field of responses."""

from __future__ import annotations

import time
from collections.abc import Callable

from llama_gguf.wall_clock import wall_now


class Clock:
    """One gateway's clocks.

    ``wall`` and ``date`` are those of the last ``tick``, up to half a second old, which is exact
    enough for a request.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.monotonic  # uvloop's own clock ticks in ms
        self.started_at = self.now()
        self.wall = 0.0
        """POSIX seconds. For people and for expiry, never for durations."""
        self.steady_offset = wall_now() - self.started_at
        """Of ``steady`` from ``now``."""
        self.limits_offset = self.steady_offset
        """Of ``limits_now`` from ``now``: another one if the limits are shared."""
        self._follows = False
        """Whether ``limits_offset`` is of another clock, which counts also if ``wall`` jumps."""
        self._ticked_at = 0.0
        self.date = b""
        """The header line of a response (RFC 9110 section 5.6.7)."""
        self.tick()

    def steady(self) -> float:
        """Seconds that began as the wall clock and never jump."""
        return self.now() + self.steady_offset

    def limits_now(self) -> float:
        """As ``steady``, by the clock that all gateways have that share limits."""
        return self.now() + self.limits_offset

    def limits_wall(self) -> float:
        """As ``wall``, by the clock that all gateways have that share limits."""
        return self._ticked_at + self.limits_offset if self._follows else self.wall

    def follow(self, offset: float) -> None:
        """Measure limits by a clock with this *offset* from ``now``."""
        self.limits_offset = offset
        self._follows = True

    def tick(self) -> None:
        """Read the wall clock."""
        self.wall = wall_now()
        self._ticked_at = self.now()
        # Always in English, since setlocale is never called.
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self.wall))
        self.date = b"Date: %b\r\n" % date.encode("ascii")
