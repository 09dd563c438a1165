"""Admission to the engine: which request runs now, which waits, which is rejected.

A request that needs a slot arrives; the decision, in this order:

1. its key has as many requests here as it may: it is over its concurrency limit;
2. a slot is free, and its key may run one more: it is granted;
3. the queue is full: it is turned away;
4. its key has its share of the queue, and there are other keys: it is turned away;
5. it waits. Within a key first come, first served; between keys in turn, so
   that a key that floods the queue delays another by one request per slot.

A slot that comes free goes to the key whose turn it is. While the engine cannot
serve there are no slots, so that everything waits: loading needs no case of its own.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

from llama_gguf.errors import GatewayError
from llama_gguf.scheduling.shares import is_within_share


class Ticket(Protocol):
    """What waits: it knows its key, and is told when its turn has come."""

    key_id: str

    def on_slot(self) -> None: ...
    def on_refused(self, error: GatewayError) -> None: ...


class Verdict(enum.IntEnum):
    GRANTED = 0
    QUEUED = 1
    QUEUE_FULL = 2
    KEY_IS_BUSY = 3
    SHARE_IS_FULL = 4


def _never() -> bool:
    return False


class Admission:
    """Slots and a bounded, fair queue.

    Args:
        slots: requests at the engine at once.
        queue_size: requests that may wait.
        per_key: requests of one key that may run or wait together; 0 = no cap.
        running_per_key: requests of one key that may run together; 0 = no cap.
        is_shared: whether there may be other keys, for which some of the queue is kept free.
    """

    __slots__ = (
        "_held_by_key",
        "_is_granting",
        "_is_shared",
        "_per_key",
        "_queue_size",
        "_running_by_key",
        "_running_per_key",
        "_waiting",
        "queued",
        "running",
        "slots",
    )

    def __init__(
        self,
        *,
        slots: int,
        queue_size: int,
        per_key: int = 0,
        running_per_key: int = 0,
        is_shared: Callable[[], bool] = _never,
    ) -> None:
        self.slots = slots
        self.running = 0
        self.queued = 0
        self._is_granting = False
        self._queue_size = queue_size
        self._per_key = per_key
        self._running_per_key = running_per_key
        self._is_shared = is_shared
        self._held_by_key: Counter[str] = Counter()
        self._running_by_key: Counter[str] = Counter()
        # Keys in the order of their turns; a dict keeps the order and lets anyone leave in O(1).
        self._waiting: OrderedDict[str, dict[Ticket, None]] = OrderedDict()

    def arrive(self, ticket: Ticket) -> Verdict:
        """Decide a request that needs a slot. GRANTED holds one until ``done``."""
        key_id = ticket.key_id
        if self._per_key and self._held_by_key[key_id] >= self._per_key:
            return Verdict.KEY_IS_BUSY
        if self.running < self.slots and (
            self._may_pass(key_id) if self._running_per_key else not self.queued
        ):
            verdict = Verdict.GRANTED
            self.running += 1
            if self._running_per_key:
                self._running_by_key[key_id] += 1
        elif self.queued >= self._queue_size:
            return Verdict.QUEUE_FULL
        elif self._has_share(key_id):
            return Verdict.SHARE_IS_FULL
        else:
            verdict = Verdict.QUEUED
            self._waiting.setdefault(key_id, {})[ticket] = None
            self.queued += 1
        if self._per_key:
            self._held_by_key[key_id] += 1
        return verdict

    def leave(self, ticket: Ticket) -> None:
        """Take a waiting *ticket* out of the queue.

        Raises:
            KeyError: it does not wait.
        """
        self._take_out(ticket.key_id, ticket)
        if self._per_key:
            self._release(ticket.key_id)

    def depart(self, key_id: str) -> None:
        """Give back the key's place alone: its slot is in use until ``done``."""
        if self._per_key:
            self._release(key_id)

    def done(self, key_id: str, *, has_departed: bool = False) -> None:
        """Give back a slot, and grant it to the next request.

        Args:
            key_id: of the request that held it.
            has_departed: its key's place was given back before, by ``depart``.
        """
        self.running -= 1
        if self._running_per_key:
            _count_down(self._running_by_key, key_id)
        if self._per_key and not has_departed:
            self._release(key_id)
        if self.queued and not self._is_granting:  # else the loop that is under way sees it
            self.grant()

    def resize(self, slots: int) -> None:
        """Set the number of slots. Running requests beyond it finish."""
        self.slots = slots
        self.grant()

    def grant(self) -> None:
        """Hand out what slots are free."""
        self._is_granting = True
        try:
            while self.queued and self.running < self.slots:
                ticket = self._next()
                if ticket is None:
                    break
                ticket.on_slot()
        finally:
            self._is_granting = False

    def _next(self) -> Ticket | None:
        """The request whose turn it is, out of the queue and with a slot."""
        key_id = next((key_id for key_id in self._waiting if self._may_run(key_id)), None)
        if key_id is None:
            return None
        ticket = next(iter(self._waiting[key_id]))
        self._take_out(key_id, ticket)
        if key_id in self._waiting:
            self._waiting.move_to_end(key_id)
        self.running += 1
        if self._running_per_key:
            self._running_by_key[key_id] += 1
        return ticket

    def _may_pass(self, key_id: str) -> bool:
        """Whether *key_id* may run one more, a slot being free.

        Requests that wait all the same are of keys that may not.
        """
        return not self._is_granting and key_id not in self._waiting and self._may_run(key_id)

    def _may_run(self, key_id: str) -> bool:
        cap = self._running_per_key
        return not cap or self._running_by_key[key_id] < cap

    def _has_share(self, key_id: str) -> bool:
        """Whether *key_id* has its share of the queue; its first request may always wait."""
        waiting = self._waiting.get(key_id)
        if waiting is None:
            return False
        free = self._queue_size - self.queued - 1
        return not is_within_share(len(waiting) + 1, free=free) and self._is_shared()

    def waiting(self) -> list[Ticket]:
        """Everyone who waits, in no particular order."""
        return [ticket for tickets in self._waiting.values() for ticket in tickets]

    def _take_out(self, key_id: str, ticket: Ticket) -> None:
        waiting = self._waiting[key_id]
        del waiting[ticket]
        if not waiting:
            del self._waiting[key_id]
        self.queued -= 1

    def _release(self, key_id: str) -> None:
        _count_down(self._held_by_key, key_id)


def _count_down(counter: Counter[str], key_id: str) -> None:
    """One less; what is zero takes no room."""
    counter[key_id] -= 1
    if not counter[key_id]:
        del counter[key_id]
