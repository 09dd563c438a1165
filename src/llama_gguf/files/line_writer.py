"""Writes lines to a log file on a separate thread.

So that a slow, full or hanging disk never blocks an event loop. Lines that the disk cannot take are
lost, and their number is reported once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from llama_gguf.config.schema import LogSettings
from llama_gguf.files.log_file import LogFile
from llama_gguf.files.writer_thread import WriterThread

MAX_WAITING_BYTES: Final = 4 << 20
"""Queued and not written yet: the memory that a hanging disk may cost."""
OTHERS_LIVE_SECONDS: Final = 86_400.0
"""A younger log of another instance in the same folder may be in use."""


class LogWriter:
    """Appends lines to *file*, from ``start`` to ``close``.

    Args:
        file: not used elsewhere.
        echo: also called with each line, by the thread.
        max_waiting_bytes: queued and not written yet; what exceeds this is lost.
    """

    def __init__(
        self,
        file: LogFile,
        echo: Callable[[str], object] = str,
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self.file = file
        self._echo = echo
        self._thread = WriterThread(
            "log writer", max_bytes=max_waiting_bytes, on_lost=file.report_lost
        )

    def start(self) -> None:
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue *line*. Never blocks."""
        self._thread.write(partial(self._write, line), size=len(line), lines=1)

    def write_lines(self, text: Sequence[bytes], lines: int) -> None:
        """Queue *text*, pieces with *lines* complete lines in all, without echo. Never blocks."""
        size = sum(map(len, text))
        self._thread.write(lambda: self.file.write(b"".join(text)), size=size, lines=lines)

    def run(self, job: Callable[[], object]) -> None:
        """Queue *job*, which may have to wait for the disk."""
        self._thread.run(job)

    def reopen(self) -> None:
        """Reopen the file, after what is queued has been written."""
        self._thread.run(self.file.close)

    def close(self, within_seconds: float) -> None:
        """Write what is queued, and wait for that, but only for *within_seconds*."""
        self._thread.run(self.file.close)
        self._thread.close(within_seconds)

    def _write(self, line: str) -> None:
        self.file.write(line.encode("utf-8", "replace") + b"\n")
        self._echo(line)


def stamped(settings: LogSettings, folder: str, kind: str) -> str:
    """The path of a new log in *folder*: the time, its *kind* and the instance."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return os.path.join(folder, f"{stamp}_{kind}_{settings.instance_id}.log")


def prune(settings: LogSettings, folder: str, kind: str, *, but: str) -> None:
    """Remove the oldest logs of *kind* in *folder*: LOG_BACKUPS remain, in addition to *but*.

    Several instances may share the folder. Logs that another may still write to are kept.
    """
    with contextlib.suppress(OSError):
        found = [e for e in os.scandir(folder) if f"_{kind}_" in e.name and ".log" in e.name]
        for entry in _surplus(found, settings, kind, but):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _surplus(
    found: Iterable[os.DirEntry[str]], settings: LogSettings, kind: str, but: str
) -> list[os.DirEntry[str]]:
    old = [e for e in found if e.path != but]
    old.sort(key=lambda e: e.stat().st_mtime, reverse=True)
    horizon = datetime.now(UTC).timestamp() - OTHERS_LIVE_SECONDS
    ours = f"_{kind}_{settings.instance_id}.log"
    return [e for e in old[settings.log_backups :] if ours in e.name or e.stat().st_mtime < horizon]
