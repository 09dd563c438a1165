"""Outputs that block a process: a full pipe, a terminal after Ctrl-S."""

from __future__ import annotations

import contextlib
import os
import pty
import termios
from typing import Final, Self

_FILLING: Final = b"\0"


class _Blocked:
    """A descriptor for the output of a process, and one to read that output."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading: Final = reading
        self.fd: Final = writing
        """For the standard output or error of a process."""
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_writer()
        os.close(self._reading)

    def close_writer(self) -> None:
        """Close our own ``fd``, so that reading reaches an end when the processes have ended."""
        if self._is_open:
            self._is_open = False
            os.close(self.fd)

    def read_until(self, text: str) -> str:
        """The output up to *text*, or more."""
        shown = b""
        while text.encode() not in shown:
            some = self._read()
            assert some, f"the end came before {text!r}: {_text(shown)!r}"
            shown += some
        return _text(shown)

    def read_rest(self) -> str:
        """The output up to its end."""
        return _text(b"".join(iter(self._read, b"")))

    def _read(self) -> bytes:
        try:
            return os.read(self._reading, 1 << 16)
        except OSError:  # EIO: no process has the terminal open any more
            return b""


def _text(shown: bytes) -> str:
    return shown.replace(_FILLING, b"").decode("utf-8", "replace")


class BlockedPipe(_Blocked):
    """A pipe that is full."""

    def __init__(self) -> None:
        super().__init__(*os.pipe())
        os.set_blocking(self.fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.fd, _FILLING * 4096)
        # The rest, byte by byte.
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.fd, _FILLING)
        os.set_blocking(self.fd, True)


class StoppedTerminal(_Blocked):
    """A terminal whose output is stopped, as by Ctrl-S."""

    def __init__(self, *, is_stopped: bool = True) -> None:
        super().__init__(*pty.openpty())
        if is_stopped:
            self.stop()

    def stop(self) -> None:
        """As Ctrl-S does."""
        termios.tcflow(self.fd, termios.TCOOFF)

    def resume(self) -> None:
        """As Ctrl-Q does."""
        termios.tcflow(self.fd, termios.TCOON)
