"""The order in which waiting requests get slots: fair between keys, by their weights.

``take`` chooses the next request:

1. Keys of normal priority precede those of low priority, except that a waiting key of low priority
   gets at least one of ``LOW_EVERY`` grants.
2. Among keys of the same priority, the first in the order gets as many grants in a row as its
   weight, and then moves to the end. Over time, each key that always has requests waiting gets a
   share in proportion to its weight.
3. Within a key, requests are served in the order of their arrival.

A key without waiting requests leaves the order, and returns at its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

LOW_EVERY: Final = 10


@dataclass(frozen=True, slots=True)
class Turns:
    """What the order of the queue depends on, for one key.

    Args:
        per_round: its weight.
        is_low: whether its priority is low.
    """

    per_round: int = 1
    is_low: bool = False


ONE_TURN: Final = Turns()


def one_turn(_key_id: str) -> Turns:
    """All keys are equal."""
    return ONE_TURN


class _Line(Generic[T]):
    """The waiting requests of one key."""

    __slots__ = ("per_round", "requests", "taken")

    def __init__(self) -> None:
        # A dict and not a deque: it keeps the order too, and any request can leave in O(1).
        self.requests: dict[T, None] = {}
        self.per_round = 1
        self.taken = 0
        """Grants in its present turn."""


class FairQueue(Generic[T]):
    """Waiting requests, by the ids of their keys.

    Args:
        turns_of: by a key's id; called for each request that has to wait.
    """

    __slots__ = ("_low", "_normal", "_turns_of", "_yielded", "size")

    def __init__(self, turns_of: Callable[[str], Turns] = one_turn) -> None:
        self._turns_of = turns_of
        self._normal: OrderedDict[str, _Line[T]] = OrderedDict()
        self._low: OrderedDict[str, _Line[T]] = OrderedDict()
        self._yielded = 0
        """Grants in a row to keys of normal priority, while one of low priority waited."""
        self.size = 0

    def add(self, request: T, key_id: str) -> None:
        """Queue *request* behind those of its key."""
        self._line(key_id).requests[request] = None
        self.size += 1

    def add_first(self, request: T, key_id: str) -> None:
        """Queue *request* before those of its key."""
        line = self._line(key_id)
        line.requests = {request: None, **line.requests}
        self.size += 1

    def _line(self, key_id: str) -> _Line[T]:
        """The line of a key, with its present turns: a reload of the keys may have changed them."""
        turns = self._turns_of(key_id)
        lines, others = (self._low, self._normal) if turns.is_low else (self._normal, self._low)
        line = lines.get(key_id)
        if line is None:
            line = others.get(key_id)
            if line is None:
                line = _Line()
            else:
                del others[key_id]
            lines[key_id] = line
        line.per_round = turns.per_round
        return line

    def remove(self, request: T, key_id: str) -> None:
        """Remove *request*, wherever it is in its line.

        Raises:
            KeyError: it does not wait.
        """
        self._remove(self._normal if key_id in self._normal else self._low, request, key_id)

    def _remove(self, lines: OrderedDict[str, _Line[T]], request: T, key_id: str) -> None:
        requests = lines[key_id].requests
        del requests[request]
        if not requests:
            del lines[key_id]
        self.size -= 1

    def take(self, may_run: Callable[[str], bool]) -> T | None:
        """Dequeue the next request; None if there is none that may run.

        Args:
            may_run: whether the key with this id may have one more request running.
        """
        lines, key_id = self._normal, _first(self._normal, may_run)
        low = _first(self._low, may_run)
        if low is None:
            self._yielded = 0
        elif key_id is None or self._yielded >= LOW_EVERY - 1:
            lines, key_id = self._low, low  # 1
            self._yielded = 0
        else:
            self._yielded += 1
        if key_id is None:
            return None
        line = lines[key_id]
        request = next(iter(line.requests))  # 3
        self._remove(lines, request, key_id)
        line.taken += 1
        if line.taken >= line.per_round and line.requests:  # 2
            line.taken = 0
            lines.move_to_end(key_id)
        return request

    def waiting_of(self, key_id: str) -> int:
        """The number of requests of a key that wait."""
        line = self._normal.get(key_id) or self._low.get(key_id)
        return 0 if line is None else len(line.requests)

    def all(self) -> list[T]:
        """All requests, in no particular order."""
        lines = [*self._normal.values(), *self._low.values()]
        return [request for line in lines for request in line.requests]


def _first(lines: OrderedDict[str, _Line[T]], may_run: Callable[[str], bool]) -> str | None:
    for key_id in lines:  # a generator expression would be evaluated to its end when compiled
        if may_run(key_id):
            return key_id
    return None
