"""Writes lines to a log file on a separate thread.

The supervisor's loop has signals to heed and children to watch: no disk, slow, full or
hanging, may hold it up. What a disk cannot take is lost, and that is reported once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from llama_gguf.config.settings import Settings
from llama_gguf.files.log_file import LogFile
from llama_gguf.files.writer_thread import WriterThread

MAX_WAITING_BYTES: Final = 4 << 20
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
        self._thread = WriterThread(
            "log writer", max_bytes=MAX_WAITING_BYTES, on_lost=file.report_lost
        )
        self._thread.start()

    def write(self, line: str) -> None:
        """Hand *line* over. Never blocks."""
        self._thread.write(partial(self._write, line), size=len(line), lines=1)

    def run(self, job: Callable[[], object]) -> None:
        """Do *job*, which may have to wait for the disk, behind what was handed over before."""
        self._thread.run(job)

    def reopen(self) -> None:
        """Have the file opened anew, behind what was handed over before."""
        self._thread.run(self.file.close)

    def close(self, within_seconds: float) -> None:
        """Write what there is, and wait for that, but not for ever."""
        self._thread.run(self.file.close)
        self._thread.close(within_seconds)

    def _write(self, line: str) -> None:
        self.file.write(line.encode("utf-8", "replace") + b"\n")
        self._echo(line)


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
