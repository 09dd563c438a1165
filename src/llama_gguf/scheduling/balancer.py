"""Which engine a request goes to: the slots of each engine, and the choice among them.

An engine is an opaque value here, so that this room knows nothing of connections.
"""

from __future__ import annotations

from typing import Generic, TypeVar

E = TypeVar("E")


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
    """Chooses an engine for each request.

    A native base class, and no ``typing.Protocol``: it is called once or twice a request, and mypyc
    would go through the interpreter for each call.
    """

    def choose(self) -> Slots[E] | None:
        """The slots of the engine that the next request goes to; None if it has to wait."""
        raise NotImplementedError

    @property
    def total(self) -> int:
        """The slots of all engines."""
        raise NotImplementedError


class OneEngine(Balancer[E]):
    """There is one engine: a request goes to it as soon as it has a free slot."""

    def __init__(self, slots: Slots[E]) -> None:
        self._slots = slots

    def choose(self) -> Slots[E] | None:
        slots = self._slots
        return slots if slots.in_use < slots.total else None

    @property
    def total(self) -> int:
        return self._slots.total


class LeastBusy(Balancer[E]):
    """The engine with the smallest part of its slots in use."""

    def __init__(self) -> None:
        self._all: list[Slots[E]] = []
        self._total = 0

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
