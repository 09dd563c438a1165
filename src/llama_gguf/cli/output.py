"""Standard output and standard error of a command that serves, written by a thread.

A terminal may be stopped (Ctrl-S), and the reader of a pipe may stop reading. A write would then
block, and the event loop with it. Therefore all output goes through a bounded queue: logs,
messages for people, progress bars, tracebacks.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Final, TextIO

from llama_gguf.events import EventLog
from llama_gguf.files.writer_thread import WriterThread

_log: Final = EventLog(__name__)

MAX_WAITING_BYTES: Final = 4 << 20
"""Bound on queued bytes: the memory that a blocked terminal may use."""
EXIT_SECONDS: Final = 1.0
"""The time at exit for writing the last lines to a blocked terminal."""
_NAMES: Final = {"stderr": "standard error", "stdout": "standard output"}


def take_over() -> None:
    """Let a thread write all output of this process from now until it exits.

    Replaced streams, such as those of a test that captures output, are left unchanged.
    """
    originals: dict[str, TextIO] = {}
    threads: dict[str, WriterThread] = {}
    for name in _NAMES:
        stream: TextIO | None = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            originals[name] = stream
            threads[name] = _thread_for(name, originals, threads)
            setattr(sys, name, _Stream(stream, threads[name]))
    if originals:
        # This runs after the interpreter has printed any traceback.
        atexit.register(_end, originals, threads)


def _thread_for(
    name: str, originals: Mapping[str, TextIO], threads: Mapping[str, WriterThread]
) -> WriterThread:
    """One thread per file, so that a blocked one does not delay the other.

    Usually both streams are the same terminal or pipe, where they must keep their order.
    """
    here = os.fstat(originals[name].fileno())
    for other, thread in threads.items():
        if os.path.samestat(here, os.fstat(originals[other].fileno())):
            return thread
    thread = WriterThread(
        _NAMES[name], max_bytes=MAX_WAITING_BYTES, on_lost=partial(_report_lost, _NAMES[name])
    )
    thread.start()
    return thread


def _report_lost(name: str, lines: int) -> None:
    if lines:
        _log.warning(
            "output_lines_lost",
            "The {output} was not read for a time: {lost} lines are lost",
            output=name,
            lost=lines,
        )


class _Stream(io.TextIOBase):
    """Replaces *original*, and never writes to it directly."""

    def __init__(self, original: TextIO, thread: WriterThread) -> None:
        self._original: Final = original
        self._thread: Final = thread
        self._fd: Final = original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only, as in sys.stdout
        return self._original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # likewise
        return self._original.errors

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return self._original.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, self.errors or "strict")
        job = partial(_write, self._fd, data)
        self._thread.write(job, size=len(data), lines=data.count(b"\n"))
        return len(text)


def _write(fd: int, data: bytes) -> None:
    """Write *data*, without a time limit; on an error, such as a full disk, it is lost."""
    with contextlib.suppress(OSError):
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:  # another process with the same terminal has set O_NONBLOCK
                waiting = select.poll()
                waiting.register(fd, select.POLLOUT)
                waiting.poll()


def _end(originals: Mapping[str, TextIO], threads: Mapping[str, WriterThread]) -> None:
    """Write the last lines, but do not wait for a blocked terminal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a further signal would change the exit status
    deadline = time.monotonic() + EXIT_SECONDS
    are_done = [t.close(max(0.0, deadline - time.monotonic())) for t in {*threads.values()}]
    if all(are_done):
        # For messages that the interpreter itself may still print.
        for name, stream in originals.items():
            setattr(sys, name, stream)
