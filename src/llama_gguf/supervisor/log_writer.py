"""Writes lines to a log file on a separate thread.

The supervisor's loop has signals to heed and children to watch: no disk, slow, full or
hanging, may hold it up. What a disk cannot take is lost, and that is said once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Final

from llama_gguf.core.settings import Settings
from llama_gguf.logfile import LogFile

MAX_WAITING_LINES: Final = 20_000
"""Handed over and not written: what a disk that hangs may cost in memory."""
OTHERS_LIVE_SECONDS: Final = 86_400.0
"""A log of another instance in the same folder that is younger than this may be in use."""


class LogWriter:
    """Appends lines to *file*, until ``close``.

    Args:
        file: used by nobody else.
        echo: called by the thread with each line, as well.
    """

    def __init__(self, file: LogFile, echo: Callable[[str], object] = str) -> None:
        self.file = file
        self._echo = echo
        self._jobs: SimpleQueue[str | Callable[[], None] | None] = SimpleQueue()
        # A daemon, so that one that hangs does not keep the process from leaving.
        self._thread = threading.Thread(target=self._work, name="log writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Hand *line* over. Never blocks."""
        if self._jobs.qsize() < MAX_WAITING_LINES:
            self._jobs.put(line)

    def reopen(self) -> None:
        """Have the file opened anew, behind what was handed over before."""
        self._jobs.put(self.file.close)

    def close(self, within_seconds: float) -> None:
        """Write what there is, and wait for that, but not for ever."""
        self._jobs.put(None)
        self._thread.join(within_seconds)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, str):
                self.file.write(job.encode("utf-8", "replace") + b"\n")
                self._echo(job)
            else:
                job()
        self.file.close()


def stamped(settings: Settings, folder: str, kind: str) -> str:
    """The path in *folder* of a log that begins now: its time, its *kind* and the instance."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return os.path.join(folder, f"{stamp}_{kind}_{settings.instance_id}.log")


def prune(settings: Settings, folder: str, kind: str, *, but: str) -> None:
    """Remove the oldest logs of *kind* in *folder*, so that LOG_BACKUPS are left beside *but*.

    Several instances may share the folder. What another may still write to stays.
    """
    with contextlib.suppress(OSError):
        found = [e for e in os.scandir(folder) if f"_{kind}_" in e.name and ".log" in e.name]
        for entry in _surplus(found, settings, kind, but):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _surplus(
    found: Iterable[os.DirEntry[str]], settings: Settings, kind: str, but: str
) -> list[os.DirEntry[str]]:
    old = [e for e in found if e.path != but]
    old.sort(key=lambda e: e.stat().st_mtime, reverse=True)
    horizon = datetime.now(UTC).timestamp() - OTHERS_LIVE_SECONDS
    ours = f"_{kind}_{settings.instance_id}.log"
    return [e for e in old[settings.log_backups :] if ours in e.name or e.stat().st_mtime < horizon]
