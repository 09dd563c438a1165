"""Requests that are not sent to an engine again, because two engines died while they ran.

Only digests are kept, of a bounded number of requests, for a limited time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

SECONDS: Final = 600.0
MAX_ENTRIES: Final = 1024
"""About 100 KB. Beyond it, the oldest is forgotten."""


class CrashMemory:
    """Digests of requests, and until when each is refused."""

    __slots__ = ("_until", "is_in_use")

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self.is_in_use = False
        """Whether there are any: an attribute, since each request reads it."""

    def add(self, path: bytes, body: bytes | bytearray, now: float) -> None:
        """Refuse *body* for *path* from now on, for ``SECONDS``, whichever key sends it."""
        digest = _digest(path, body)
        self._until[digest] = now + SECONDS
        self._until.move_to_end(digest)
        if len(self._until) > MAX_ENTRIES:
            self._until.popitem(last=False)
        self.is_in_use = True

    def remaining(self, path: bytes, body: bytes | bytearray, now: float) -> float:
        """For how many seconds the request is still refused; 0.0 if it is not."""
        return max(0.0, self._until.get(_digest(path, body), now) - now)

    def forget(self, now: float) -> None:
        """Drop entries whose time is over, the oldest first."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        self.is_in_use = bool(self._until)


def _digest(path: bytes, body: bytes | bytearray) -> bytes:
    import hashlib  # noqa: PLC0415  # rarely needed: it loads libcrypto

    digest = hashlib.blake2b(body, digest_size=16)
    digest.update(path)
    return digest.digest()
