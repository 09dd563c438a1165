"""Outputs that are not read: a full pipe, a terminal after Ctrl-S."""

from __future__ import annotations

import contextlib
import os
import pty
import termios
from typing import Final, Self

_FILLING: Final = b"\0"


class _Blocked:
    """A descriptor to write to, and another to read what came through it."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading: Final = reading
        self.fd: Final = writing
        """What a process gets as its standard output or error."""
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_writer()
        os.close(self._reading)

    def close_writer(self) -> None:
        """Let go of our own ``fd``, so that an end can be seen when the processes have gone."""
        if self._is_open:
            self._is_open = False
            os.close(self.fd)

    def read_until(self, text: str) -> str:
        """What has come, up to *text* at least."""
        shown = b""
        while text.encode() not in shown:
            some = self._read()
            assert some, f"the end came before {text!r}: {_text(shown)!r}"
            shown += some
        return _text(shown)

    def read_rest(self) -> str:
        """What has come, up to the end."""
        return _text(b"".join(iter(self._read, b"")))

    def _read(self) -> bytes:
        try:
            return os.read(self._reading, 1 << 16)
        except OSError:  # EIO: no process has the terminal open any more
            return b""


def _text(shown: bytes) -> str:
    return shown.replace(_FILLING, b"").decode("utf-8", "replace")


class BlockedPipe(_Blocked):
    """A pipe that is filled to the brim."""

    def __init__(self) -> None:
        super().__init__(*os.pipe())
        os.set_blocking(self.fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.fd, _FILLING * 4096)
        # What is left of it, a byte at a time.
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
