"""One line per exchange, formatted and written off the event loop.

The hot path appends a tuple. A tick of the gateway hands what has gathered to a
thread, so that neither a slow disk nor a full one is ever felt by a request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from queue import SimpleQueue
from typing import Final, NamedTuple

_log: Final = logging.getLogger(__name__)


class Record(NamedTuple):
    """What there is to say of one exchange. Times in seconds, sizes in bytes."""

    ended_at: float
    """POSIX seconds."""
    request_id: str
    key_id: str
    address: str
    method: str
    path: str
    status: int
    bytes_in: int
    bytes_out: int
    queued: float
    first_byte: float
    duration: float
    outcome: str


def _facts(record: Record) -> dict[str, str | int | float]:
    return {
        "time": f"{_time_text(int(record.ended_at))}.{int(record.ended_at % 1 * 1000):03d}Z",
        "request_id": record.request_id,
        "key_id": record.key_id,
        "client": record.address,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "queue_ms": round(record.queued * 1000, 1),
        "first_byte_ms": round(record.first_byte * 1000, 1),
        "duration_ms": round(record.duration * 1000, 1),
        "outcome": record.outcome,
    }


def as_json(record: Record) -> str:
    return json.dumps(_facts(record))


def as_text(record: Record) -> str:
    """``time key=value …``: no value has a space in it, so that no field can forge another."""
    return _TEXT % (
        _time_text(int(record.ended_at)),
        record.ended_at % 1 * 1000,
        record.request_id,
        record.key_id,
        record.address,
        record.method,
        _escaped(record.path),  # all else is ours, or was found sane
        record.status,
        record.bytes_in,
        record.bytes_out,
        record.queued * 1000,
        record.first_byte * 1000,
        record.duration * 1000,
        record.outcome,
    )


@lru_cache(maxsize=8)
def _time_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _escaped(text: str) -> str:
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return text.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")


_TEXT: Final = (
    "%s.%03dZ request_id=%s key_id=%s client=%s method=%s path=%s status=%d bytes_in=%d "
    "bytes_out=%d queue_ms=%.1f first_byte_ms=%.1f duration_ms=%.1f outcome=%s"
)


MAX_BATCHES: Final = 64
"""Handed over and not written, half a minute's: what a disk that hangs may cost in memory."""


class AccessLog:
    """Gathers records for a file that a thread of its own writes.

    Args:
        path: the file; its folder is made when it is missing.
        log_format: ``text`` or ``json``.
    """

    def __init__(self, path: str, log_format: str) -> None:
        self.pending: list[Record] = []
        self._file = LogFile(path, log_format)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A daemon, so that one that hangs does not keep the process from leaving.
        self._thread = threading.Thread(target=self._work, name="access log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def flush(self) -> None:
        """Hand what has gathered to the thread. Never blocks."""
        taken, self.pending = self.pending, []
        if taken and self._jobs.qsize() < MAX_BATCHES:
            self._jobs.put(lambda: self._file.write(taken))

    def reopen(self) -> None:
        """Have the file opened anew, behind what was handed over before."""
        self._jobs.put(self._file.close)

    def stop(self, within_seconds: float) -> None:
        """Write what there is, and wait for that, but not for ever."""
        self.flush()
        self._jobs.put(None)
        self._thread.join(within_seconds)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        self._file.close()


class LogFile:
    """A file that is opened when there is something to write. Used by one thread alone.

    Args:
        path: the file; its folder is made when it is missing.
        log_format: ``text`` or ``json``.
    """

    def __init__(self, path: str, log_format: str) -> None:
        self._path = path
        self._line: Callable[[Record], str] = as_json if log_format == "json" else as_text
        self._fd: int | None = None
        self._has_complained = False

    def write(self, records: Iterable[Record]) -> None:
        """Append *records*; a failure is reported once, and loses them."""
        text = "".join(self._line(record) + "\n" for record in records)
        try:
            if self._fd is None:
                os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o640)
            os.write(self._fd, text.encode())
            self._has_complained = False
        except OSError as error:
            if not self._has_complained:
                _log.warning("the access log %s cannot be written: %s", self._path, error.strerror)
            self._has_complained = True

    def close(self) -> None:
        """Let go of the file; the next line goes to whatever has its name then."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
