"""The controlling terminal: whether it was closed while the process runs.

SIGHUP means two things. A daemon reloads its configuration; a process that was started in a
terminal should end when the terminal is closed, since nothing else shows that it still runs.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

_GONE: Final = (errno.ENXIO, errno.EIO)
"""Errors of /dev/tty without a controlling terminal, and with one that was closed: tty(4)."""


class Terminal:
    """The controlling terminal at the start of the process, if there is one.

    With `nohup`, which makes the process ignore SIGHUP, it counts as none. To be created before a
    handler of SIGHUP is installed.
    """

    def __init__(self) -> None:
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._had_one: Final = not is_nohup and _is_there()

    def is_gone(self) -> bool:
        """Whether there was one, and it has been closed."""
        return self._had_one and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (*_GONE, errno.ENOENT)
    return True
