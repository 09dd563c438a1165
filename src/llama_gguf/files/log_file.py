"""A log file on disk: appends complete lines, rotates, and never raises errors of the disk.

Used by one thread at a time. Several processes may write the same file: each notices when another
process, or logrotate, has replaced it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from llama_gguf.events import EventLog

_log: Final = EventLog(__name__)

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_MODE: Final = 0o640


class LogFile:
    """A log file, opened at the first write.

    Args:
        path: of the file; a missing folder is created.
        what: its name in a warning, such as ``access log``.
        max_bytes: above it the file becomes ``PATH.1``, and ``.1`` becomes ``.2``; 0 = never.
        backups: number of those that are kept.
        warns: whether a file that cannot be written is logged; another process may do that.
    """

    def __init__(
        self,
        path: str,
        what: str,
        *,
        max_bytes: int = 0,
        backups: int = 0,
        warns: bool = True,
    ) -> None:
        self.path = path
        self._what = what
        self._max_bytes = max_bytes
        self._backups = backups
        self._fd: int | None = None
        # Of the open file: its size before the next write, device and inode.
        self._size = 0
        self._identity = (0, 0)
        self._is_torn = False
        """The last line in the file is incomplete."""
        self._warns = warns
        self._has_warned = False

    def write(self, text: bytes) -> None:
        """Append *text*, complete lines. After an error they are lost, which is logged once."""
        try:
            self._append(text)
            self._has_warned = False
        except OSError as error:
            if self._warns and not self._has_warned:
                _log.warning(
                    "log_not_written",
                    "The {log} {file} cannot be written: {reason}",
                    log=self._what,
                    file=self.path,
                    reason=error.strerror,
                )
            self._has_warned = True

    def report_lost(self, lines: int) -> None:
        """Log that *lines* lines were dropped before ``write``, since the disk hung."""
        _log.warning(
            "log_lines_lost",
            "The {log} {file} could not be written for a time: {lost} lines are lost",
            log=self._what,
            file=self.path,
            lost=lines,
        )

    def close(self) -> None:
        """Close the file; the next write opens the file that has its path then."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _append(self, text: bytes) -> None:
        fd = self._opened(len(text))
        if self._is_torn:
            text = b"\n" + text
        written = os.write(fd, text)
        self._is_torn = 0 < written < len(text)
        if written < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _opened(self, length: int) -> int:
        """The descriptor of the file at the path, which has room for *length* bytes."""
        if self._fd is not None and not self._is_in_place():
            self.close()
        fd = self._open() if self._fd is None else self._fd
        if not self._max_bytes or not self._size or self._size + length <= self._max_bytes:
            return fd
        self._rotate()
        return self._open()

    def _is_in_place(self) -> bool:
        """Whether the path still leads to the open file; if it does, its size is known, too."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        self._size = there.st_size
        return (there.st_dev, there.st_ino) == self._identity

    def _open(self) -> int:
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self._fd = os.open(self.path, _FLAGS, _MODE)
        status = os.fstat(self._fd)
        self._size, self._identity = status.st_size, (status.st_dev, status.st_ino)
        return self._fd

    def _rotate(self) -> None:
        # If renaming fails, the file keeps growing: its lines matter more than its size.
        with contextlib.suppress(OSError):
            if not self._backups:
                os.unlink(self.path)
            for number in range(self._backups, 0, -1):
                newer = f"{self.path}.{number - 1}" if number > 1 else self.path
                if os.path.exists(newer):
                    os.replace(newer, f"{self.path}.{number}")
            self._is_torn = False
        self.close()
