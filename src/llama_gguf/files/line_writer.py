"""Writes lines to a log file on a separate thread.

So that a slow, full or hanging disk never blocks an event loop. Lines that the disk cannot take are
lost, and their number is reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from llama_gguf.files.log_file import LogFile
from llama_gguf.files.writer_thread import WriterThread

MAX_WAITING_BYTES: Final = 4 << 20
"""Queued and not written yet: the memory that a hanging disk may cost."""


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
