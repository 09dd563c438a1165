"""One bounded memo for pure functions whose arguments repeat: field names, paths, lengths.

``BoundedMemo`` is a dict, so that a hit is one lookup in C, without bookkeeping. Therefore a full
memo is emptied: results in use return after one call each, whereas a memo that stayed full could
be filled by a client with keys of no use, once and forever.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof
from typing import Final, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

MAX_KEY_BYTES: Final = 512
"""Larger keys are not stored: clients choose some of them, and memory must stay bounded."""


class BoundedMemo(dict[_Key, _Value]):
    """The results of *compute*, by its argument.

    Args:
        compute: a pure function; what it raises is not stored.
        max_entries: results that are stored at once.
    """

    def __init__(self, compute: Callable[[_Key], _Value], *, max_entries: int) -> None:
        super().__init__()
        self._compute = compute
        self.max_entries: Final = max_entries

    def __missing__(self, key: _Key) -> _Value:
        value = self._compute(key)
        size = sum(map(getsizeof, key)) if isinstance(key, tuple) else getsizeof(key)
        if size <= MAX_KEY_BYTES:
            if len(self) >= self.max_entries:
                self.clear()
            self[key] = value
        return value
