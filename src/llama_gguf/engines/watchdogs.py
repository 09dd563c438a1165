"""Detects whether a child makes progress, hangs or is idle, from periodic checks.

No clock and no process: the caller passes the time and what it has observed.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.engines.activity import Activity
from llama_gguf.values import Value


class Patience:
    """Measures how long there has been no sign of life, while checks were made.

    Time in which the machine was frozen, or the container paused, does not count against the
    child: between two checks, at most ``MAX_STEP_SECONDS`` count.

    Args:
        seconds: without a sign, until it is over; 0 = never.
    """

    MAX_STEP_SECONDS: Final = 10.0

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waited = 0.0
        self._last_check: float | None = None

    def check(self, *, sign: bool, now: float) -> bool:
        """Note a check at *now*, and return whether the time is over.

        Args:
            sign: whether there was one since the last check.
            now: seconds on any clock.
        """
        step = 0.0 if self._last_check is None else now - self._last_check
        self._last_check = now
        self._waited = 0.0 if sign else self._waited + min(step, self.MAX_STEP_SECONDS)
        return 0 < self._seconds < self._waited


class Progress(Value):
    """What a child has done since its start."""

    cpu_seconds: float = 0.0
    work: tuple[int, ...] = ()
    """Numbers that change only by work of the child itself: lines written, major faults."""
    memory_bytes: int = 0
    read_bytes: int = 0
    """From files, by reading or by mapping them."""

    def share_of(self, model_bytes: int) -> float | None:
        """The estimated share of the model that is loaded, below 1; None if unknown."""
        if not (model_bytes and self.read_bytes):
            return None
        return min(self.read_bytes / model_bytes, 0.99)


class StallWatch:
    """Detects that a loading child makes no progress.

    A little CPU time, memory or reading is no sign of progress: our own probe causes some. A sign
    is a tenth of a core, several megabytes, or a change of ``work``.

    Args:
        seconds: without a sign, until it counts as stalled.
    """

    _BUSY: Final = 0.1
    _GROWTH_BYTES: Final = 8 << 20

    def __init__(self, seconds: float) -> None:
        self._patience = Patience(seconds)
        self._moved_at = 0.0
        self._last: Progress | None = None

    def check(self, progress: Progress, now: float) -> bool:
        """Note a check at *now*, and return whether it is stalled."""
        sign = self._last is None or self._has_moved(self._last, progress, now - self._moved_at)
        if sign:
            self._moved_at, self._last = now, progress
        return self._patience.check(sign=sign, now=now)

    def _has_moved(self, last: Progress, progress: Progress, elapsed: float) -> bool:
        busy = progress.cpu_seconds - last.cpu_seconds > max(elapsed, 1.0) * self._BUSY
        grown = abs(progress.memory_bytes - last.memory_bytes) > self._GROWTH_BYTES
        read = abs(progress.read_bytes - last.read_bytes) > self._GROWTH_BYTES
        return busy or grown or read or progress.work != last.work


class FlowWatch:
    """Detects that the engine sends nothing on any of its requests.

    Args:
        seconds: of that, until the engine counts as hanging; 0 = never.
    """

    def __init__(self, seconds: float) -> None:
        self._patience = Patience(seconds)
        self._seen: tuple[int, int] | None = None

    def check(self, activity: Activity, now: float) -> bool:
        """Note a check at *now*, and return whether it hangs."""
        received = (activity.responses, activity.data_ticks)
        sign = not activity.running or received != self._seen
        self._seen = received
        return self._patience.check(sign=sign, now=now)


class IdleWatch:
    """Detects that there have been no requests for a while.

    Args:
        seconds: of that, until the engine may be stopped; 0 = never.
    """

    def __init__(self, seconds: float) -> None:
        self._patience = Patience(seconds)
        self._responses: int | None = None

    def check(self, activity: Activity, now: float) -> bool:
        """Note a check at *now*, and return whether it may be stopped."""
        sign = activity.busy > 0 or activity.responses != self._responses
        self._responses = activity.responses
        return self._patience.check(sign=sign, now=now)


class LoadReport:
    """Decides when a long load is reported: at each tenth, and after a while without a report.

    Args:
        every_seconds: the longest time between two reports.
        at_least_seconds: the shortest.
    """

    def __init__(self, *, every_seconds: float = 30.0, at_least_seconds: float = 5.0) -> None:
        self._every = every_seconds
        self._at_least = at_least_seconds
        self._tenth = 0
        self._reported_at: float | None = None

    def check(self, share: float | None, now: float) -> bool:
        """Note a check at *now*, and return whether to report.

        Args:
            share: how much of the model is loaded, from 0 to 1; None if unknown.
            now: seconds on any clock.
        """
        if self._reported_at is None:
            self._reported_at = now
        elapsed = now - self._reported_at
        tenth = int((share or 0.0) * 10)
        if elapsed < self._at_least or (tenth <= self._tenth and elapsed < self._every):
            return False
        self._tenth, self._reported_at = tenth, now
        return True
