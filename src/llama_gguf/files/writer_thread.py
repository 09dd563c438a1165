"""Writing that may block, on a thread: to a disk that hangs, to a terminal that is stopped.

What hands something over never waits for it. What waits to be written is bounded: beyond that
lines are lost, and counted, and their number is reported once writing goes on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

_Job = Callable[[], object]

JOB_BYTES: Final = 256
"""What a job takes up besides what it writes, about: empty lines without end are bounded, too."""


class WriterThread:
    """Runs jobs that write, in the order in which they are handed over.

    Args:
        name: of the thread.
        max_bytes: handed over and not written, about: what a write that hangs may cost in memory.
        on_lost: called by the thread with a number of lines that were lost, after the gap.
    """

    def __init__(self, name: str, *, max_bytes: int, on_lost: Callable[[int], object]) -> None:
        self._max_bytes: Final = max_bytes
        self._on_lost: Final = on_lost
        # Reentrant: a signal handler may write while its thread is in here.
        self._changed: Final = threading.Condition(threading.RLock())
        self._jobs: Final[deque[tuple[int, _Job]]] = deque()
        self._waiting_bytes = 0
        self._is_losing = False
        self._lost_lines = 0
        self._is_closing = False
        # A daemon, so that a write that hangs does not keep the process from leaving.
        self._thread: Final = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write(self, job: _Job, *, size: int, lines: int) -> None:
        """Hand over *job*, which writes *lines* lines of *size* bytes in all; or lose it.

        Once something is lost, all is, until what waits has been written: one gap in the output,
        and not many.
        """
        with self._changed:
            size += JOB_BYTES
            is_too_much = bool(self._jobs) and self._waiting_bytes + size > self._max_bytes
            self._is_losing = self._is_losing or is_too_much
            if self._is_losing:
                self._lost_lines += lines
            else:
                self._put(job, size)

    def run(self, job: _Job) -> None:
        """Hand over *job*, which is never lost: to open a file again, for example."""
        with self._changed:
            self._put(job, 0)

    def close(self, within_seconds: float) -> bool:
        """Let the thread end with its last job; returns whether it has, within that time."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(within_seconds)
        return not self._thread.is_alive()

    def _put(self, job: _Job, size: int) -> None:
        self._jobs.append((size, job))
        self._waiting_bytes += size
        self._changed.notify()

    # On the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()

    def _next(self) -> _Job | None:
        """What is to be done next, once there is something; None at the end."""
        with self._changed:
            while not self._jobs:
                if self._is_losing:
                    lost, self._lost_lines, self._is_losing = self._lost_lines, 0, False
                    return partial(self._on_lost, lost)
                if self._is_closing:
                    return None
                self._changed.wait()
            size, job = self._jobs.popleft()
            self._waiting_bytes -= size
            return job
