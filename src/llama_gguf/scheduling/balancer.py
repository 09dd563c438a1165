"""Which engine a request goes to: the slots of each engine, and the choice among them.

An engine that has computed a session's prompt has it in its cache, so a session stays where it is
while waiting there costs less than computing the prompt elsewhere
(docs/adr/0032-a-session-stays-where-its-prompt-is.md). An engine's load is what it works on and
what waits for it, as a multiple of its slots. ``where`` decides for a session:

1. Its engine is unknown, gone, or not ready: any engine.
2. The load of its engine exceeds that of the least busy one by more than ROUNDS: any engine, and
   from then on the session is there.
3. Its engine. If all slots are in use, the request waits for one of them.

Of all engines, ``choose`` takes the least busy one; of several, the one that has been without a new
request for longest, so that sessions are spread over idle engines.

Nothing here searches all engines or sessions: the best of the engines is kept in a tree.

An engine is an opaque value here, so that this room knows nothing of connections.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final, Generic, TypeVar

from llama_gguf.scheduling.sessions import NO_ENGINE, SessionTable

E = TypeVar("E")

ROUNDS: Final = 2.0
"""How far a session waits for its engine: this many times its slots, beyond the least busy one."""

_NOWHERE: Final = -1


class Slots(Generic[E]):
    """The slots of one engine: how many requests it works on at once, and how many it has now.

    Args:
        engine: whose slots they are.
        total: 0 while it is not ready.
    """

    __slots__ = (
        "engine",
        "in_use",
        "is_awaited",
        "last_grant",
        "load",
        "number",
        "place",
        "total",
        "waiting",
    )

    def __init__(self, engine: E, total: int = 0) -> None:
        self.engine = engine
        self.total = total
        self.in_use = 0
        self.waiting = 0
        """Requests that wait for this engine, because their session is there."""
        # The balancer's.
        self.is_awaited = False
        self.load = 0.0
        self.last_grant = 0
        self.number = NO_ENGINE
        self.place = _NOWHERE

    def if_free(self) -> Slots[E] | None:
        """These slots, if one of them is free."""
        return self if self.in_use < self.total else None

    def excess(self, count: int) -> float:
        """The load that *count* requests are, less ROUNDS."""
        # Not `count / total - ROUNDS`: both sides of a comparison must be the same when rounded.
        return (count - ROUNDS * self.total) / self.total if self.total else math.inf


class _Tournament(Generic[E]):
    """The first of all engines, by an order that ``is_before`` gives; O(log n) for each change.

    A binary tree in a list: the children of the node at i are at 2 i and 2 i + 1.
    """

    def __init__(self) -> None:
        self._places = 1
        self._nodes: list[Slots[E] | None] = [None, None]
        self.first: Slots[E] | None = None

    def is_before(self, one: Slots[E], other: Slots[E]) -> bool:
        raise NotImplementedError

    def put(self, place: int, slots: Slots[E] | None) -> None:
        """*slots* are at *place* now, or have changed; None: that place is empty."""
        if place >= self._places:
            self._grow(place)
        nodes = self._nodes
        at = self._places + place
        nodes[at] = best = slots
        while at > 1:
            other = nodes[at ^ 1]
            if best is None or (other is not None and self.is_before(other, best)):
                best = other
            at >>= 1
            if nodes[at] is best and best is not slots:
                return  # and neither has anything above it changed
            nodes[at] = best
        self.first = best

    def _grow(self, place: int) -> None:
        leaves = self._nodes[self._places :]
        while self._places <= place:
            self._places *= 2
        self._nodes = [None] * (2 * self._places)
        for at, slots in enumerate(leaves):
            self.put(at, slots)


class _LeastBusy(_Tournament[E]):
    def is_before(self, one: Slots[E], other: Slots[E]) -> bool:
        if one.load == other.load:
            return one.last_grant < other.last_grant
        return one.load < other.load


class _MostAwaited(_Tournament[E]):
    def is_before(self, one: Slots[E], other: Slots[E]) -> bool:
        return _excess_of_last(one) > _excess_of_last(other)


def _excess_of_last(slots: Slots[E]) -> float:
    """Of the last request that waits for this engine, as it was when that arrived."""
    return slots.excess(slots.in_use + slots.waiting - 1)


class Balancer(Generic[E]):
    """Chooses an engine for each request, and knows where the sessions are."""

    __slots__ = (
        "_awaited",
        "_by_number",
        "_compares",
        "_free_places",
        "_grants",
        "_least",
        "_numbers",
        "_places",
        "moves",
        "sessions",
    )

    def __init__(self, sessions: SessionTable | None = None) -> None:
        self._least: _LeastBusy[E] = _LeastBusy()
        """Engines that are ready."""
        self._awaited: _MostAwaited[E] = _MostAwaited()
        """Engines for which requests wait."""
        self._by_number: dict[int, Slots[E]] = {}
        self._compares = False
        """Whether there has ever been more than one engine: the only one is not compared."""
        self._places = 0
        self._free_places: list[int] = []
        self._numbers = 0
        self._grants = 0
        self.sessions = SessionTable() if sessions is None else sessions
        self.moves: Counter[str] = Counter()
        """Sessions that have moved to another engine, by reason: overloaded, not_ready, gone."""

    # Engines ------------------------------------------------------------------------------------

    def add(self, slots: Slots[E]) -> None:
        """Use an engine."""
        if slots.number:
            return
        self._numbers += 1
        slots.number = self._numbers
        self._by_number[slots.number] = slots
        self._grants += 1
        slots.last_grant = self._grants
        if slots.place == _NOWHERE:
            free = self._free_places
            if free:
                slots.place = free.pop()
            else:
                slots.place = self._places
                self._places += 1
        if self._places > 1 and not self._compares:
            self._compares = True
            for other in self._by_number.values():
                self.changed(other)
        self.changed(slots)

    def remove(self, slots: Slots[E]) -> None:
        """Use an engine no more, and forget its sessions."""
        if slots.number:
            del self._by_number[slots.number]
            slots.number = NO_ENGINE
        slots.total = 0
        self.changed(slots)

    def changed(self, slots: Slots[E]) -> None:
        """The number of slots of an engine, or of its requests, has changed."""
        place = slots.place
        if place == _NOWHERE:
            return
        if slots.total:
            slots.load = (slots.in_use + slots.waiting) / slots.total
            self._least.put(place, slots)
        else:
            self._least.put(place, None)
        if slots.waiting or slots.is_awaited:
            slots.is_awaited = slots.waiting > 0
            self._awaited.put(place, slots if slots.waiting else None)
        if not (slots.number or slots.waiting):
            slots.place = _NOWHERE
            self._free_places.append(place)

    @property
    def total(self) -> int:
        """The slots of all engines."""
        return sum([slots.total for slots in self._by_number.values()])

    # Requests -----------------------------------------------------------------------------------

    def take(self, slots: Slots[E]) -> None:
        """A request has got one of these *slots*."""
        slots.in_use += 1
        if self._compares:
            self._grants += 1
            slots.last_grant = self._grants
            self.changed(slots)

    def release(self, slots: Slots[E]) -> None:
        """It has given it back."""
        slots.in_use -= 1
        if self._compares:
            self.changed(slots)

    def wait(self, slots: Slots[E], number: int) -> None:
        """*number* more requests wait for these *slots*."""
        slots.waiting += number
        self.changed(slots)

    def choose(self) -> Slots[E] | None:
        """The slots of the least busy engine; None if all of all engines are in use."""
        slots = self._least.first
        return slots if slots is not None and slots.in_use < slots.total else None

    def awaited(self) -> list[Slots[E]]:
        """The slots for which requests wait though some of them are free. Searches all engines."""
        return [s for s in self._by_number.values() if s.waiting and s.in_use < s.total]

    def overloaded(self) -> Slots[E] | None:
        """The slots that are furthest beyond the bound, with requests that wait for them."""
        least, slots = self._least.first, self._awaited.first
        if least is None or slots is None or _excess_of_last(slots) <= least.load:
            return None
        return slots

    # Sessions -----------------------------------------------------------------------------------

    def where(self, session: int) -> Slots[E] | None:
        """The slots that a request of *session* has to use; None if it may use those of any engine.

        The module's docstring numbers the cases.
        """
        slots = self._by_number.get(self.sessions.use(session))
        if slots is None or not slots.total:
            return None  # 1
        least = self._least.first
        if least is not None and slots.excess(slots.in_use + slots.waiting) > least.load:
            return None  # 2
        return slots  # 3

    def pin(self, session: int, slots: Slots[E]) -> None:
        """*session* is at the engine of these *slots* from now on."""
        number = self.sessions.engine_of(session)
        if number and number != slots.number:
            old = self._by_number.get(number)
            reason = "gone" if old is None else "overloaded" if old.total else "not_ready"
            self.moves[reason] += 1
        self.sessions.pin(session, slots.number)
