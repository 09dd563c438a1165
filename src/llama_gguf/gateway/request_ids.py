"""Ids for requests that arrive without one."""

from __future__ import annotations

import os
from typing import Final

_LAST_DIGITS: Final = [b"%02x" % n for n in range(256)]


class RequestIds:
    """Unique in this process by a counter, and among processes by a random prefix."""

    __slots__ = ("_block", "_count", "_prefix")

    def __init__(self) -> None:
        self._prefix = b"req-%b-" % os.urandom(6).hex().encode("ascii")
        self._block = b""
        self._count = 0

    def next(self) -> bytes:
        """The next one, as it goes into a header field."""
        count = self._count
        self._count = count + 1
        if not count & 255:  # formatted once in 256 times
            self._block = b"%b%06x" % (self._prefix, count >> 8)
        return self._block + _LAST_DIGITS[count & 255]
