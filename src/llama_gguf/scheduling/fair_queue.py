"""The order in which waiting requests get slots: fair between keys, by their weights.

``take`` chooses the next request:

1. Keys of normal priority precede those of low priority, except that a waiting key of low priority
   gets at least one of ``LOW_EVERY`` grants.
2. Among keys of the same priority, the first in the order gets as many grants in a row as its
   weight, and then moves to the end. Over time, each key that always has requests waiting gets a
   share in proportion to its weight.
3. Within a key, requests are served in the order of their arrival.

Requests may wait for a certain engine, or for any. A slot goes to the first request in this order
among those that may use it. A key without waiting requests for an engine leaves the order of those
that wait for it, and returns at its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")

LOW_EVERY: Final = 10


class Turns:
    """What the order of the queue depends on, for one key.

    Args:
        per_round: its weight.
        is_low: whether its priority is low.
    """

    __slots__ = ("is_low", "per_round")

    def __init__(self, per_round: int = 1, *, is_low: bool = False) -> None:
        self.per_round: Final = per_round
        self.is_low: Final = is_low


ONE_TURN: Final = Turns()
ANY: Final = (None,)
"""Stands for requests that may use any engine."""


def one_turn(_key_id: str) -> Turns:
    """All keys are equal."""
    return ONE_TURN


class _Line(Generic[T, P]):
    """The waiting requests of one key."""

    __slots__ = ("count", "is_low", "key_id", "parts", "per_round", "taken", "turn")

    def __init__(self, key_id: str, turn: int) -> None:
        self.key_id = key_id
        self.turn = turn
        """When it has moved to the end of the order, or entered it, as a serial number."""
        self.parts: dict[P | None, _Part[T, P]] = {}
        self.count = 0
        self.is_low = False
        self.per_round = 1
        self.taken = 0
        """Grants in its present turn."""


class _Part(Generic[T, P]):
    """Those of one key that wait for the same engine, or for any engine."""

    __slots__ = ("engine", "line", "requests")

    def __init__(self, line: _Line[T, P], engine: P | None) -> None:
        self.line = line
        self.engine = engine
        # Ordered, and any request can leave in O(1). With numbers in the order of arrival.
        self.requests: OrderedDict[T, int] = OrderedDict()


class _Order(Generic[T, P]):
    """The order of the keys that have requests for the same engine, or for any engine."""

    __slots__ = ("low", "normal")

    def __init__(self) -> None:
        self.normal: OrderedDict[str, _Part[T, P]] = OrderedDict()
        self.low: OrderedDict[str, _Part[T, P]] = OrderedDict()

    def keys(self, *, is_low: bool) -> OrderedDict[str, _Part[T, P]]:
        return self.low if is_low else self.normal


class FairQueue(Generic[T, P]):
    """Waiting requests, by the ids of their keys and the engines that they wait for.

    Args:
        turns_of: by a key's id; called for each request that has to wait.
    """

    __slots__ = (
        "_lines",
        "_newest",
        "_oldest",
        "_orders",
        "_parts",
        "_turn",
        "_turns_of",
        "_yielded",
        "size",
    )

    def __init__(self, turns_of: Callable[[str], Turns] = one_turn) -> None:
        self._turns_of = turns_of
        self._lines: dict[str, _Line[T, P]] = {}
        self._orders: dict[P | None, _Order[T, P]] = {}
        self._parts: dict[T, _Part[T, P]] = {}
        """By request."""
        self._turn = 0
        self._newest = 0
        self._oldest = 0
        self._yielded = 0
        """Grants in a row to keys of normal priority, while one of low priority waited."""
        self.size = 0

    def add(self, request: T, key_id: str, engine: P | None = None) -> None:
        """Queue *request* behind those of its key; None: for any engine."""
        self._newest += 1
        self._add(request, key_id, engine).requests[request] = self._newest

    def add_first(self, request: T, key_id: str, engine: P | None = None) -> None:
        """Queue *request* before those of its key."""
        self._oldest -= 1
        requests = self._add(request, key_id, engine).requests
        requests[request] = self._oldest
        requests.move_to_end(request, last=False)

    def _add(self, request: T, key_id: str, engine: P | None) -> _Part[T, P]:
        line = self._line(key_id)
        part = line.parts.get(engine)
        if part is None:
            part = line.parts[engine] = _Part(line, engine)
            if engine not in self._orders:
                self._orders[engine] = _Order()
            self._orders[engine].keys(is_low=line.is_low)[key_id] = part
        self._parts[request] = part
        line.count += 1
        self.size += 1
        return part

    def _line(self, key_id: str) -> _Line[T, P]:
        """The line of a key, with its present turns: a reload of the keys may have changed them."""
        turns = self._turns_of(key_id)
        line = self._lines.get(key_id)
        if line is None:
            self._turn += 1
            line = self._lines[key_id] = _Line(key_id, self._turn)
        if line.is_low != turns.is_low:
            line.is_low = turns.is_low
            for engine, part in line.parts.items():
                order = self._orders[engine]
                del order.keys(is_low=not turns.is_low)[key_id]
                order.keys(is_low=turns.is_low)[key_id] = part
        line.per_round = turns.per_round
        return line

    def remove(self, request: T) -> P | None:
        """Remove *request*, wherever it is in its line.

        Returns:
            The engine that it waited for.

        Raises:
            KeyError: it does not wait.
        """
        part = self._parts.pop(request)
        line, engine = part.line, part.engine
        del part.requests[request]
        if not part.requests:
            del line.parts[engine]
            order = self._orders[engine]
            del order.keys(is_low=line.is_low)[line.key_id]
            if not (order.normal or order.low):
                del self._orders[engine]
        line.count -= 1
        if not line.count:
            del self._lines[line.key_id]
        self.size -= 1
        return engine

    def take(
        self, may_run: Callable[[str], bool], engines: Sequence[P | None] = ANY
    ) -> tuple[T, P | None] | None:
        """Dequeue the next request.

        Args:
            may_run: whether the key with this id may have one more request running.
            engines: requests for others have to wait; None stands for those for any engine.

        Returns:
            It and the engine that it waited for; None if there is none that may run.
        """
        line = self._first(engines, may_run, is_low=False)
        low = self._first(engines, may_run, is_low=True)
        if low is None:
            self._yielded = 0
        elif line is None or self._yielded >= LOW_EVERY - 1:
            line = low  # 1
            self._yielded = 0
        else:
            self._yielded += 1
        if line is None:
            return None
        request = _earliest(line, engines)
        engine = self.remove(request)
        line.taken += 1
        if line.taken >= line.per_round and line.count:  # 2
            line.taken = 0
            self._turn += 1
            line.turn = self._turn
            for each in line.parts:
                self._orders[each].keys(is_low=line.is_low).move_to_end(line.key_id)
        return request, engine

    def _first(
        self, engines: Sequence[P | None], may_run: Callable[[str], bool], *, is_low: bool
    ) -> _Line[T, P] | None:
        first: _Line[T, P] | None = None
        for engine in engines:
            order = self._orders.get(engine)
            if order is None:
                continue
            for part in order.keys(is_low=is_low).values():
                if first is not None and part.line.turn >= first.turn:
                    break
                if may_run(part.line.key_id):
                    first = part.line
                    break
        return first

    def waiting_of(self, key_id: str) -> int:
        """The number of requests of a key that wait."""
        line = self._lines.get(key_id)
        return 0 if line is None else line.count

    def all(self) -> list[T]:
        """All requests, in no particular order."""
        return list(self._parts)


def _earliest(line: _Line[T, P], engines: Sequence[P | None]) -> T:
    """Of a key's requests for one of these *engines*, the one that has waited for longest."""
    best: T | None = None
    earliest = 0
    for engine in engines:
        part = line.parts.get(engine)
        if part is not None:
            request, number = next(iter(part.requests.items()))
            if best is None or number < earliest:  # 3
                best, earliest = request, number
    assert best is not None
    return best
