"""Who may go to the engine now, who waits, and who is turned away.

A request that needs a slot arrives; the decision, in this order:

1. its key has as many requests here as it may: it is over its concurrency limit;
2. a slot is free, and nobody waits: it is granted;
3. the queue is full: it is turned away;
4. it waits. Within a key first come, first served; between keys in turn, so
   that a key that floods the queue delays another by one request per slot.

A slot that comes free goes to the key whose turn it is. While the engine cannot
serve there are no slots, so that everything waits: loading needs no case of its own.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from typing import Protocol

from llama_gguf.errors import GatewayError


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


class Admission:
    """Slots and a bounded, fair queue.

    Args:
        slots: requests at the engine at once.
        queue_size: requests that may wait.
        per_key: requests of one key that may run or wait together; 0 = no cap.
    """

    __slots__ = (
        "_held_by_key",
        "_is_granting",
        "_per_key",
        "_queue_size",
        "_waiting",
        "queued",
        "running",
        "slots",
    )

    def __init__(self, *, slots: int, queue_size: int, per_key: int = 0) -> None:
        self.slots = slots
        self.running = 0
        self.queued = 0
        self._is_granting = False
        self._queue_size = queue_size
        self._per_key = per_key
        self._held_by_key: Counter[str] = Counter()
        # Keys in the order of their turns; a dict keeps the order and lets anyone leave in O(1).
        self._waiting: OrderedDict[str, dict[Ticket, None]] = OrderedDict()

    def arrive(self, ticket: Ticket) -> Verdict:
        """Decide a request that needs a slot. GRANTED holds one until ``done``."""
        key_id = ticket.key_id
        if self._per_key and self._held_by_key[key_id] >= self._per_key:
            return Verdict.KEY_IS_BUSY
        if self.running < self.slots and not self.queued:
            verdict = Verdict.GRANTED
            self.running += 1
        elif self.queued >= self._queue_size:
            return Verdict.QUEUE_FULL
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

    def done(self, key_id: str | None) -> None:
        """Give back a slot, and hand it to whoever is next.

        Args:
            key_id: whose place is given back, too; None after ``depart``.
        """
        self.running -= 1
        if self._per_key and key_id is not None:
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
                self._next().on_slot()
        finally:
            self._is_granting = False

    def _next(self) -> Ticket:
        """Whoever's turn it is, out of the queue and with a slot."""
        key_id, waiting = next(iter(self._waiting.items()))
        ticket = next(iter(waiting))
        self._take_out(key_id, ticket)
        if key_id in self._waiting:
            self._waiting.move_to_end(key_id)
        self.running += 1
        return ticket

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
        self._held_by_key[key_id] -= 1
        if not self._held_by_key[key_id]:
            del self._held_by_key[key_id]
