"""Writing that may block, on a thread: to a hanging disk, to a stopped terminal.

Callers never wait. The queue is bounded: lines beyond that are lost, and their number is reported
once writing resumes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

_Job = Callable[[], object]

JOB_BYTES: Final = 256
"""About what a job costs in addition to its text, so that empty lines are bounded, too."""


class WriterThread:
    """Runs jobs that write, in the order in which they are queued.

    Args:
        name: of the thread.
        max_bytes: queued and not written yet, about: the memory that a hanging write may cost.
        on_lost: called by the thread with the number of lost lines, after the gap.
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
        # A daemon, so that a hanging write does not keep the process alive.
        self._thread: Final = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write(self, job: _Job, *, size: int, lines: int) -> None:
        """Queue *job*, which writes *lines* lines of *size* bytes in all, or drop it.

        After a loss, everything is dropped until the queue is empty: one gap in the output,
        instead of many.
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
        """Queue *job*, which is never dropped, for example to reopen a file."""
        with self._changed:
            self._put(job, 0)

    def close(self, within_seconds: float) -> bool:
        """Let the thread end after its last job; returns whether it did within that time."""
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
        """The next job, once there is one; None at the end."""
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
