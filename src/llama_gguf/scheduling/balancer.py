"""Which engine a request goes to: the slots of each engine, and the choice among them.

An engine is an opaque value here, so that this room knows nothing of connections.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Generic, TypeVar

E = TypeVar("E")

NO_SESSION: Final = 0
"""Of a request that any engine may work on."""


class Slots(Generic[E]):
    """The slots of one engine: how many requests it works on at once, and how many it has now.

    Args:
        engine: whose slots they are.
        total: 0 while it is not ready.
    """

    __slots__ = ("engine", "in_use", "total")

    def __init__(self, engine: E, total: int = 0) -> None:
        self.engine = engine
        self.total = total
        self.in_use = 0


class Balancer(Generic[E]):
    """The engine with the smallest part of its slots in use."""

    def __init__(self) -> None:
        self._all: list[Slots[E]] = []
        self._total = 0
        self.moves: Counter[str] = Counter()
        """Sessions that moved to another engine, by reason."""

    def add(self, slots: Slots[E]) -> None:
        """Use an engine."""
        self._all.append(slots)
        self.changed(slots)

    def remove(self, slots: Slots[E]) -> None:
        """Use an engine no more."""
        self._all.remove(slots)
        self.changed(slots)

    def changed(self, slots: Slots[E]) -> None:
        """The number of slots of an engine has changed."""
        del slots
        self._total = sum([each.total for each in self._all])

    def choose(self) -> Slots[E] | None:
        best: Slots[E] | None = None
        for slots in self._all:
            if slots.in_use < slots.total and (
                best is None or slots.in_use * best.total < best.in_use * slots.total
            ):
                best = slots
        return best

    @property
    def total(self) -> int:
        return self._total
