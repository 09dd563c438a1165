"""Memory for request bodies that are being read or wait: bounded in total and per key.

Only what has arrived counts: a declared length costs its sender nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from llama_gguf.scheduling.shares import is_within_share


class BodyMemory:
    """Counts bytes.

    Args:
        limit: bytes of all bodies together.
        is_shared: whether there may be other keys, for which some of it is kept free.
    """

    __slots__ = ("_by_key", "_is_shared", "limit", "used")

    def __init__(self, limit: int, is_shared: Callable[[], bool]) -> None:
        self.limit = limit
        self.used = 0
        self._by_key: dict[str, int] = {}
        self._is_shared = is_shared

    def take(self, key_id: str, size: int, *, own: int = 0) -> bool:
        """Count *size* bytes more of a body of which there are *own* by now, if there is room."""
        if not size:
            return True
        held = self._by_key.get(key_id, 0)
        free = self.limit - self.used - size
        # The only body of a key may take all that is free.
        if free < 0 or (held > own and self._is_over_share(held + size, free)):
            return False
        self.used += size
        self._by_key[key_id] = held + size
        return True

    def has_room(self, key_id: str, size: int) -> bool:
        """Whether a body of *size* bytes that begins now could be kept."""
        held = self._by_key.get(key_id, 0)
        free = self.limit - self.used - size
        return free >= 0 and not (held and self._is_over_share(held + size, free))

    def _is_over_share(self, held: int, free: int) -> bool:
        return not is_within_share(held, free=free) and self._is_shared()

    def give_back(self, key_id: str, size: int) -> None:
        """Count *size* bytes no more."""
        self.used -= size
        left = self._by_key[key_id] - size
        if left:
            self._by_key[key_id] = left
        else:
            del self._by_key[key_id]
