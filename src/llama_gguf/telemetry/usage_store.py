"""Keeps usage across restarts, in a small file that is written off the event loop.

There are two kinds of it: the totals of keys, and what is used of their budgets. A crash loses the
usage since the last write, a few seconds. Errors never prevent the gateway from
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
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Final, Generic, Protocol, Self, TypeVar

from llama_gguf.events import EventLog
from llama_gguf.files import stamps
from llama_gguf.files.atomic import replace_file
from llama_gguf.net.threads import pause, run_detached, start_detached
from llama_gguf.telemetry.usage_totals import UsageTotals
from llama_gguf.wall_clock import wall_now

_log: Final = EventLog(__name__)

MAX_FILE_BYTES: Final = 64 << 20


class Totals(Protocol):
    """What a file keeps. Called a few times per update, so that it may be a Protocol."""

    @property
    def has_changed(self) -> bool:
        """Since the last ``take_unsaved``."""
        ...

    def prepare(self) -> Iterator[None]:
        """Do a part of what ``dump`` would do, in short steps."""
        ...

    def dump(self) -> str:
        """All of it as text."""
        ...

    def take_unsaved(self) -> Self | None:
        """What was added since the last call; None if nothing was."""
        ...

    def merge(self, other: Self, now: float, /) -> None:
        """Add what another's ``take_unsaved`` has returned; it counts as saved."""
        ...

    def rebase(self, saved: Self, now: float, /) -> None:
        """Continue from *saved*, which has what was taken, but not what was added since."""
        ...

    def open(self) -> None:
        """Parse all numbers now, instead of when they are needed."""
        ...


T = TypeVar("T", bound=Totals)


class Kind(Generic[T]):
    """What is kept, and how.

    Args:
        name: in log messages, and of the folder in DATA_DIR.
        every_seconds: between two updates: as much of it is lost by a crash.
        new: none of it yet, at a time in POSIX seconds.
        load: undoes ``dump``; the second argument is to be called now and then.
    """

    def __init__(
        self,
        name: str,
        every_seconds: float,
        new: Callable[[float], T],
        load: Callable[[str, Callable[[], None]], T],
    ) -> None:
        self.name: Final = name
        self.every_seconds: Final = every_seconds
        self.new: Final = new
        self.load: Final = load


USAGE: Final = Kind("usage", 5.0, UsageTotals, UsageTotals.load)


class UsageStore(Generic[T]):
    """The file with the usage of one instance.

    Args:
        kind: of the usage.
        path: a missing folder is created.
        wall: returns POSIX seconds.
        has_all: whether the totals have the usage of all who write the file, by another way: it is
            replaced by them, and read at the start only.
    """

    def __init__(
        self,
        kind: Kind[T],
        path: str,
        wall: Callable[[], float] = wall_now,
        *,
        has_all: bool = False,
    ) -> None:
        self._kind = kind
        self._has_all = has_all
        self._path = path
        self._wall = wall
        self._stamp: stamps.Stamp | None = None
        """Of the file that our totals are based on; it differs if others have written since."""
        self._unsaved: T | None = None
        """Taken from our totals, and not yet in the file."""
        self._has_warned = False
        self._lock = threading.Lock()
        """Held from the start of an update until its end, so that updates run in order."""

    def load(self, now: float) -> T:
        """The totals in the file; new ones that begin at *now*, if there are none to read."""
        # Before the read, so that a change meanwhile is not missed.
        self._stamp = stamps.stamp(self._path)
        try:
            totals = self._read() or self._kind.new(now)
        except OSError as error:
            self._rename_unreadable(error)
            totals = self._kind.new(now)
        totals.open()  # now, while there are no streams to delay
        return totals

    async def keep(self, totals: T) -> None:
        """Update the file periodically."""
        while True:
            await asyncio.sleep(self._kind.every_seconds)
            await self.update(totals)

    async def update(self, totals: T) -> None:
        """Write what is new in *totals*, and load what is new in the file."""
        if totals.has_changed:
            for _ in totals.prepare():  # before the lock, since this may be cancelled here
                await asyncio.sleep(0)
        self._lock.acquire()  # does not block: the previous update was awaited
        is_due = totals.has_changed or self._unsaved is not None
        text, unsaved = totals.dump() if is_due else "", totals.take_unsaved()
        found = await run_detached(lambda: self._write(text, unsaved))
        if found is not None:
            content, stamp = found
            totals.rebase(content, self._wall())
            self._stamp = stamp

    def begin_last(self, totals: T) -> Future[None]:
        """Start to write what is new in *totals*."""
        text, unsaved = totals.dump(), totals.take_unsaved()

        def write() -> None:
            self._lock.acquire()
            self._write(text, unsaved)

        return start_detached(write)

    def end_last(self, outcome: Future[None], within_seconds: float) -> None:
        """Wait for the last write, at most *within_seconds*, since a disk may hang."""
        wait([outcome], within_seconds)
        if not outcome.done() or self._unsaved is not None:
            _log.warning(
                "last_usage_lost",
                "The {kind} since the last write of {file} could not be saved and is lost",
                kind=self._kind.name,
                file=self._path,
            )

    def write_last(self, totals: T, within_seconds: float) -> None:
        """Write what is new in *totals*, and wait for it as ``end_last`` does."""
        self.end_last(self.begin_last(totals), within_seconds)

    # On a thread --------------------------------------------------------------------------------

    def _write(self, text: str, unsaved: T | None) -> tuple[T, stamps.Stamp | None] | None:
        """Write what is new, if anything, and release the lock.

        Args:
            text: all of our totals, for a file that only this process has written; else empty.
            unsaved: what was added to them since the last update, for a file that others have
                changed.

        Returns:
            The new content of the file, and its stamp, if others had changed it.
        """
        try:
            return self._exchange(text, unsaved)
        except OSError as error:
            if not self._has_warned:
                _log.warning(
                    "usage_not_kept",
                    "The {kind} cannot be saved in {file}: {reason}",
                    kind=self._kind.name,
                    file=self._path,
                    reason=error.strerror,
                )
            self._has_warned = True
            return None
        finally:
            self._lock.release()

    def _exchange(self, text: str, unsaved: T | None) -> tuple[T, stamps.Stamp | None] | None:
        if self._has_all:
            if text:
                with _locked(self._path):
                    self._replace(text)
                self._has_warned = False
            return None
        if self._unsaved is None:
            self._unsaved = unsaved
        elif unsaved is not None:
            self._unsaved.merge(unsaved, self._wall())
        is_changed = stamps.stamp(self._path) != self._stamp
        if self._unsaved is None and not is_changed:
            return None
        with _locked(self._path):
            stamp = stamps.stamp(self._path)
            found = self._read() if stamp != self._stamp else None
            if found is None and stamp != self._stamp and self._unsaved is None:
                self._unsaved = self._kind.new(
                    self._wall()
                )  # the file is gone, with what was saved
            if self._unsaved is not None and (found is not None or text):
                if found is not None:
                    found.merge(self._unsaved, self._wall())
                self._replace(text if found is None else found.dump())
                stamp = stamps.stamp(self._path)
                self._unsaved = None
                self._has_warned = False
        if found is not None:
            return found, stamp
        self._stamp = stamp
        return None

    def _read(self) -> T | None:
        """The totals in the file; None if the file is missing or unreadable."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return self._kind.load(file.read(MAX_FILE_BYTES), pause)
        except FileNotFoundError:
            return None
        except ValueError as error:  # UnicodeDecodeError is one
            self._rename_unreadable(error)
            return None

    def _rename_unreadable(self, error: Exception) -> None:
        aside = f"{self._path}.unreadable"
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        try:
            os.replace(self._path, aside)
        except OSError:
            _log.warning(
                "usage_unreadable",
                "The {kind} in {file} cannot be read: {reason}. Counting begins at zero",
                kind=self._kind.name,
                file=self._path,
                reason=reason,
            )
        else:
            _log.warning(
                "usage_lost",
                "The {kind} in {file} cannot be read: {reason}. The file is renamed to "
                "{renamed_to}",
                kind=self._kind.name,
                file=self._path,
                reason=reason,
                renamed_to=aside,
            )
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
