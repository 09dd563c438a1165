"""Keeps the usage totals across restarts, in a small file that is written off the event loop.

A crash loses the usage since the last write, a few seconds. Errors never prevent the gateway from
serving: an unreadable file is renamed; a file that cannot be written causes one warning, and is
tried again at every interval and at the end.

Several gateways may share one file. Each adds what it has counted itself, under a lock, and loads
what the others have added. The file is replaced atomically, so that a count is in it once, or not
at all if the gateway dies before.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Final

from llama_gguf.events import EventLog
from llama_gguf.files import stamps
from llama_gguf.files.atomic import replace_file
from llama_gguf.net.clock import wall_now
from llama_gguf.net.threads import pause, run_detached, start_detached
from llama_gguf.telemetry.usage_totals import UsageTotals

_log: Final = EventLog(__name__)

EVERY_SECONDS: Final = 5.0
MAX_FILE_BYTES: Final = 64 << 20
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")


def path_of(data_dir: str, instance_id: str) -> str:
    """The path of the file; instances that share DATA_DIR have one each."""
    name = _UNFIT.sub("_", instance_id).lstrip(".") or "gateway"
    return os.path.join(data_dir, "usage", f"{name}.json")


@dataclass(frozen=True, slots=True)
class _Job:
    """What one update of the file has to write, if anything."""

    text: str
    """All of our totals, for a file that only this process has written; else empty."""
    unsaved: UsageTotals | None
    """What was added to our totals since the last update, for a file that others have changed."""


@dataclass(frozen=True, slots=True)
class _Sum:
    """The content of the file after an update, if others had changed it."""

    totals: UsageTotals
    stamp: stamps.Stamp | None


class UsageStore:
    """The file with the usage of one instance.

    Args:
        path: a missing folder is created.
        wall: returns POSIX seconds.
    """

    def __init__(self, path: str, wall: Callable[[], float] = wall_now) -> None:
        self._path = path
        self._wall = wall
        self._stamp: stamps.Stamp | None = None
        """Of the file that our totals are based on; it differs if others have written since."""
        self._unsaved: UsageTotals | None = None
        """Taken from our totals, and not yet in the file."""
        self._has_warned = False
        self._lock = threading.Lock()
        """Held from the creation of a job until it is done, so that jobs run in order."""

    def load(self, now: float) -> UsageTotals:
        """The totals in the file; new ones that begin at *now*, if there are none to read."""
        # Before the read, so that a change meanwhile is not missed.
        self._stamp = stamps.stamp(self._path)
        try:
            totals = self._read() or UsageTotals(now)
        except OSError as error:
            self._rename_unreadable(error)
            totals = UsageTotals(now)
        totals.open()  # now, while there are no streams to delay
        return totals

    async def keep(self, totals: UsageTotals) -> None:
        """Update the file periodically."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.update(totals)

    async def update(self, totals: UsageTotals) -> None:
        """Write what is new in *totals*, and load what is new in the file."""
        self._lock.acquire()  # does not block: the previous update was awaited
        is_due = totals.has_changed or self._unsaved is not None
        job = _Job(totals.dump() if is_due else "", totals.take_unsaved())
        found = await run_detached(lambda: self._do(job))
        if found is not None:
            totals.rebase(found.totals, self._wall())
            self._stamp = found.stamp

    def write_last(self, totals: UsageTotals, within_seconds: float) -> None:
        """Write what is new in *totals*; wait at most *within_seconds*, since a disk may hang."""
        job = _Job(totals.dump(), totals.take_unsaved())

        def write() -> None:
            self._lock.acquire()
            self._do(job)

        outcome = start_detached(write)
        wait([outcome], within_seconds)
        if not outcome.done() or self._unsaved is not None:
            _log.warning(
                "last_usage_lost",
                "The usage since the last write of {file} could not be saved and is lost",
                file=self._path,
            )

    # On a thread --------------------------------------------------------------------------------

    def _do(self, job: _Job) -> _Sum | None:
        """Do *job*, and release the lock. Returns the sum if others have written."""
        try:
            return self._exchange(job)
        except OSError as error:
            if not self._has_warned:
                _log.warning(
                    "usage_not_kept",
                    "The usage cannot be saved in {file}: {reason}",
                    file=self._path,
                    reason=error.strerror,
                )
            self._has_warned = True
            return None
        finally:
            self._lock.release()

    def _exchange(self, job: _Job) -> _Sum | None:
        if self._unsaved is None:
            self._unsaved = job.unsaved
        elif job.unsaved is not None:
            self._unsaved.merge(job.unsaved, self._wall())
        is_changed = stamps.stamp(self._path) != self._stamp
        if self._unsaved is None and not is_changed:
            return None
        with _locked(self._path):
            stamp = stamps.stamp(self._path)
            found = self._read() if stamp != self._stamp else None
            if found is None and stamp != self._stamp and self._unsaved is None:
                self._unsaved = UsageTotals(self._wall())  # the file is gone, with what was saved
            if self._unsaved is not None and (found is not None or job.text):
                if found is not None:
                    found.merge(self._unsaved, self._wall())
                self._replace(job.text if found is None else found.dump())
                stamp = stamps.stamp(self._path)
                self._unsaved = None
                self._has_warned = False
        if found is not None:
            return _Sum(found, stamp)
        self._stamp = stamp
        return None

    def _read(self) -> UsageTotals | None:
        """The totals in the file; None if the file is missing or unreadable."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return UsageTotals.load(file.read(MAX_FILE_BYTES), pause)
        except FileNotFoundError:
            return None
        except ValueError as error:  # UnicodeDecodeError is one
            self._rename_unreadable(error)
            return None

    def _rename_unreadable(self, error: Exception) -> None:
        aside = f"{self._path}.unreadable"
        _log.warning(
            "usage_lost",
            "The usage in {file} cannot be read: {reason}. The file is renamed to {renamed_to}",
            file=self._path,
            reason=str(error),
            renamed_to=aside,
        )
        with contextlib.suppress(OSError):
            os.replace(self._path, aside)
        self._stamp = stamps.stamp(self._path)

    def _replace(self, text: str) -> None:
        # The lock is held, so that a fixed name suffices: a crash leaves one such file at most.
        replace_file(self._path, text.encode(), temporary=f"{self._path}.new")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock of the file at *path*, whose folder is created if it is missing.

    The lock is a separate file, since *path* is another file after each write, and is open for
    writing, since network file systems lock no others.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
