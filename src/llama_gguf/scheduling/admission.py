"""Admission to the engine: which request runs now, which waits, which is rejected.

``arrive`` decides a request that needs a slot. The first case that applies:

1. KEY_IS_BUSY: the requests of its key, running and waiting, are at the concurrency limit.
2. GRANTED: a slot is free, the key may run one more request, and no request waits for that slot.
3. QUEUE_FULL: all places in the queue are taken.
4. SHARE_IS_FULL: the key has its share of the queue (``shares.py``), and there are other keys.
5. QUEUED: it waits until ``on_slot`` or ``on_refused`` is called, or until it leaves.

``grant`` assigns free slots to waiting requests, until slots or requests run out:

1. Keys take turns: the first in the order of ``_waiting`` that may run one more request is next,
   and then moves to the end. A key that floods the queue delays another by one request per slot.
2. Within a key, requests are served in the order of their arrival.

While the engine is not ready, the number of slots is zero, so every request waits, and a
model that is loading needs no special case.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

from llama_gguf.errors import GatewayError
from llama_gguf.scheduling.shares import is_within_share


class Ticket(Protocol):
    """A request that needs a slot. ``on_slot`` is called once, when a queued one gets its slot."""

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
        per_key: concurrent requests of one key, running and waiting; 0 = no limit.
        running_per_key: concurrent running requests of one key; 0 = no limit.
        is_shared: whether there may be other keys, so that a part of the queue is reserved for
            them.
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
        # Keys in the order of their turns. The tickets of each are a dict and not a deque: it keeps
        # the order too, and any ticket can leave in O(1).
        self._waiting: OrderedDict[str, dict[Ticket, None]] = OrderedDict()

    def arrive(self, ticket: Ticket) -> Verdict:
        """Decide a request that needs a slot; the module's docstring numbers the cases.

        After GRANTED, the caller holds a slot until it calls ``done``. After QUEUED, the ticket
        waits until it gets its slot or ``leave`` is called. Other verdicts change nothing.
        """
        key_id = ticket.key_id
        if self._per_key and self._held_by_key[key_id] >= self._per_key:
            return Verdict.KEY_IS_BUSY  # 1
        if self.running < self.slots and (
            self._may_pass(key_id) if self._running_per_key else not self.queued
        ):
            verdict = Verdict.GRANTED  # 2
            self.running += 1
            if self._running_per_key:
                self._running_by_key[key_id] += 1
        elif self.queued >= self._queue_size:
            return Verdict.QUEUE_FULL  # 3
        elif self._has_share(key_id):
            return Verdict.SHARE_IS_FULL  # 4
        else:
            verdict = Verdict.QUEUED  # 5
            self._waiting.setdefault(key_id, {})[ticket] = None
            self.queued += 1
        if self._per_key:
            self._held_by_key[key_id] += 1
        return verdict

    def leave(self, ticket: Ticket) -> None:
        """Remove a waiting *ticket* from the queue.

        Raises:
            KeyError: it is not waiting.
        """
        self._dequeue(ticket.key_id, ticket)
        if self._per_key:
            self._release(ticket.key_id)

    def depart(self, key_id: str) -> None:
        """Release the key's concurrency only; the slot stays in use until ``done``.

        For a cancelled request that the engine is still working on.
        """
        if self._per_key:
            self._release(key_id)

    def done(self, key_id: str, *, has_departed: bool = False) -> None:
        """Release a slot, and grant it to the next request.

        Args:
            key_id: of the request that held the slot.
            has_departed: whether ``depart`` has released the key's concurrency already.
        """
        self.running -= 1
        if self._running_per_key:
            _count_down(self._running_by_key, key_id)
        if self._per_key and not has_departed:
            self._release(key_id)
        # Within `on_slot`, the loop in `grant` continues with the slot: recursion would be as deep
        # as the queue is long.
        if self.queued and not self._is_granting:
            self.grant()

    def resize(self, slots: int) -> None:
        """Set the number of slots. Running requests in excess of it finish."""
        self.slots = slots
        self.grant()

    def grant(self) -> None:
        """Assign free slots to waiting requests."""
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
        """Dequeue the next request and count its slot; None if no waiting key may run one more."""
        key_id = next((key_id for key_id in self._waiting if self._may_run(key_id)), None)  # 1
        if key_id is None:
            return None
        ticket = next(iter(self._waiting[key_id]))  # 2
        self._dequeue(key_id, ticket)
        if key_id in self._waiting:
            self._waiting.move_to_end(key_id)
        self.running += 1
        if self._running_per_key:
            self._running_by_key[key_id] += 1
        return ticket

    def _may_pass(self, key_id: str) -> bool:
        """Whether a free slot may go to *key_id* at once, past requests that wait.

        Those belong to keys at ``running_per_key``, which cannot use the slot; except while
        ``grant`` runs, when it may not have reached them yet.
        """
        return not self._is_granting and key_id not in self._waiting and self._may_run(key_id)

    def _may_run(self, key_id: str) -> bool:
        limit = self._running_per_key
        return not limit or self._running_by_key[key_id] < limit

    def _has_share(self, key_id: str) -> bool:
        """Whether *key_id* has its share of the queue; its first request may always wait."""
        waiting = self._waiting.get(key_id)
        if waiting is None:
            return False
        free = self._queue_size - self.queued - 1
        return not is_within_share(len(waiting) + 1, free=free) and self._is_shared()

    def waiting(self) -> list[Ticket]:
        """All waiting requests, in no particular order."""
        return [ticket for tickets in self._waiting.values() for ticket in tickets]

    def _dequeue(self, key_id: str, ticket: Ticket) -> None:
        waiting = self._waiting[key_id]
        del waiting[ticket]
        if not waiting:
            del self._waiting[key_id]
        self.queued -= 1

    def _release(self, key_id: str) -> None:
        _count_down(self._held_by_key, key_id)


def _count_down(counter: Counter[str], key_id: str) -> None:
    """Decrement; entries at zero are deleted, so memory is bounded by the keys in use."""
    counter[key_id] -= 1
    if not counter[key_id]:
        del counter[key_id]
