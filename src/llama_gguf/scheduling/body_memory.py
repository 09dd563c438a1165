"""Memory for request bodies that are being read or queued: bounded in total and per key.

``take`` decides whether more bytes of a body may be kept. The first case that applies:

1. The total would exceed the limit: rejected.
2. The key holds no other body: accepted, so a single body may use all that is free.
3. The key would exceed its share (``shares.py``), and there are other keys: rejected.
4. Accepted.

Only bytes that have arrived count: declaring a length reserves nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from llama_gguf.scheduling.shares import is_within_share


class BodyMemory:
    """Counts the bytes of bodies; the bodies themselves are elsewhere.

    Args:
        limit: bytes of all bodies together.
        is_shared: whether there may be other keys, so that a part of the memory is reserved for
            them.
    """

    __slots__ = ("_by_key", "_is_shared", "limit", "used")

    def __init__(self, limit: int, is_shared: Callable[[], bool]) -> None:
        self.limit = limit
        self.used = 0
        self._by_key: dict[str, int] = {}
        self._is_shared = is_shared

    def take(self, key_id: str, size: int, *, own: int = 0) -> bool:
        """Count *size* more bytes, and return True, if they may be kept; else change nothing.

        Args:
            key_id: of the request.
            size: bytes that have arrived.
            own: bytes of the same body that are already counted.
        """
        if not size:
            return True
        held = self._by_key.get(key_id, 0)
        free = self.limit - self.used - size
        if free < 0:
            return False  # 1
        has_others = held > own  # else 2
        if has_others and self._is_over_share(held + size, free):
            return False  # 3
        self.used += size  # 2, 4
        self._by_key[key_id] = held + size
        return True

    def has_room(self, key_id: str, size: int) -> bool:
        """Whether ``take`` would accept a new body of *size* bytes now."""
        held = self._by_key.get(key_id, 0)
        free = self.limit - self.used - size
        return free >= 0 and not (held and self._is_over_share(held + size, free))

    def _is_over_share(self, held: int, free: int) -> bool:
        return not is_within_share(held, free=free) and self._is_shared()

    def give_back(self, key_id: str, size: int) -> None:
        """Release *size* bytes that ``take`` has counted."""
        self.used -= size
        remaining = self._by_key[key_id] - size
        if remaining:
            self._by_key[key_id] = remaining
        else:
            del self._by_key[key_id]
