"""Admission to the engines: which request runs now, which waits, which is rejected.

``arrive`` decides a request that needs a slot. The first case that applies:

1. KEY_IS_BUSY: the requests of its key, running and waiting, are at the concurrency limit.
2. GRANTED: a slot is free that it may use (``balancer.py``: the engine of its session, or any), the
   key may run one more request, and no request waits for that slot.
3. QUEUE_FULL: all places in the queue are taken.
4. SHARE_IS_FULL: the key has its share of the queue (``shares.py``), and there are other keys.
5. QUEUED: it waits, for the engine of its session or for any, until ``on_slot`` or ``on_refused``
   is called, or until it leaves.

A request that had a slot, and is to be sent again, waits in any case (``queue_again``).

A granted slot is a ``SlotLease``, which its holder releases once.

A slot that becomes free goes to the first waiting request that may use it, which is one that waits

- for any engine, or
- for the engine of the slot, or
- for the engine that is furthest beyond the bound: its session then moves.

Among them, keys take turns (``fair_queue.py``): one that floods the queue delays another by one
turn. So no request waits while a slot that it may use is free.

While an engine is not ready, it has no slots. While none is ready every request waits, and a model
that is loading needs no special case.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from typing import Generic, Protocol

from llama_gguf.errors import GatewayError
from llama_gguf.scheduling.balancer import Balancer, E, Slots
from llama_gguf.scheduling.fair_queue import FairQueue, Turns, one_turn
from llama_gguf.scheduling.sessions import NO_SESSION, SessionTable
from llama_gguf.scheduling.shares import is_within_share


class Ticket(Protocol[E]):
    """A request that needs a slot. ``on_slot`` is called once, when a queued one gets its slot."""

    key_id: str
    session: int

    def on_slot(self, lease: SlotLease[E]) -> None: ...
    def on_refused(self, error: GatewayError) -> None: ...


class Verdict(enum.IntEnum):
    """Of a request that is not granted a slot at once."""

    QUEUED = 0
    QUEUE_FULL = 1
    KEY_IS_BUSY = 2
    SHARE_IS_FULL = 3


class SlotLease(Generic[E]):
    """The slot of one request, from its grant to its release."""

    __slots__ = ("_admission", "_is_released", "has_departed", "key_id", "slots")

    def __init__(self, admission: Admission[E], slots: Slots[E], key_id: str) -> None:
        self._admission = admission
        self.slots = slots
        self.key_id = key_id
        self.has_departed = False
        self._is_released = False

    @property
    def engine(self) -> E:
        """The engine that works on the request."""
        return self.slots.engine

    def depart(self) -> None:
        """Release the key's concurrency only; the slot stays in use until ``release``.

        For a cancelled request that the engine is still working on.
        """
        if not self.has_departed:
            self.has_departed = True
            self._admission.depart(self)

    def release(self) -> None:
        """Give the slot back, and grant it to the next request. Further calls do nothing."""
        if not self._is_released:
            self._is_released = True
            self._admission.release(self)


def _never() -> bool:
    return False


class Admission(Generic[E]):
    """Slots and a bounded, fair queue.

    Args:
        balancer: chooses the engine.
        queue_size: requests that may wait.
        per_key: concurrent requests of one key, running and waiting; 0 = no limit.
        running_per_key: concurrent running requests of one key; 0 = no limit.
        is_shared: whether there may be other keys, so that a part of the queue is reserved for
            them.
        turns_of: by a key's id, its turns in the queue.
    """

    __slots__ = (
        "_balancer",
        "_freed",
        "_held_by_key",
        "_is_granting",
        "_is_shared",
        "_per_key",
        "_queue_size",
        "_running_by_key",
        "_running_per_key",
        "_waiting",
        "running",
    )

    def __init__(
        self,
        balancer: Balancer[E],
        *,
        queue_size: int,
        per_key: int = 0,
        running_per_key: int = 0,
        is_shared: Callable[[], bool] = _never,
        turns_of: Callable[[str], Turns] = one_turn,
    ) -> None:
        self._balancer = balancer
        self.running = 0
        self._freed: list[Slots[E]] = []
        """Slots of which some may be free, for requests that wait."""
        self._is_granting = False
        self._queue_size = queue_size
        self._per_key = per_key
        self._running_per_key = running_per_key
        self._is_shared = is_shared
        self._held_by_key: Counter[str] = Counter()
        self._running_by_key: Counter[str] = Counter()
        self._waiting: FairQueue[Ticket[E], Slots[E]] = FairQueue(turns_of)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._waiting.size

    @property
    def slots(self) -> int:
        """Requests that may run at once."""
        return self._balancer.total

    @property
    def sessions(self) -> SessionTable:
        """Which engine each session is at."""
        return self._balancer.sessions

    def arrive(
        self, ticket: Ticket[E], key_id: str, session: int = NO_SESSION
    ) -> SlotLease[E] | Verdict:
        """Decide a request that needs a slot; the module's docstring numbers the cases.

        After QUEUED, the ticket waits until it gets its slot or ``leave`` is called. Other verdicts
        change nothing.
        """
        if self._per_key and self._held_by_key[key_id] >= self._per_key:
            return Verdict.KEY_IS_BUSY  # 1
        balancer = self._balancer
        own = balancer.where(session) if session else None
        slots = balancer.choose() if own is None else own.if_free()
        if slots is not None and self._may_pass(key_id):
            if self._per_key:
                self._held_by_key[key_id] += 1
            if session and own is None:
                balancer.pin(session, slots)
            return self._lease(slots, key_id)  # 2
        if self._waiting.size >= self._queue_size:
            return Verdict.QUEUE_FULL  # 3
        if self._has_share(key_id):
            return Verdict.SHARE_IS_FULL  # 4
        self._waiting.add(ticket, key_id, own)
        self._wait(own, slots)
        if self._per_key:
            self._held_by_key[key_id] += 1
        return Verdict.QUEUED  # 5

    def queue_again(
        self, ticket: Ticket[E], key_id: str, session: int = NO_SESSION
    ) -> SlotLease[E] | None:
        """Queue a request again that had a slot, before all others of its key.

        It has been admitted, so no limit applies. Returns its slot if one is free.
        """
        if self._per_key:
            self._held_by_key[key_id] += 1
        balancer = self._balancer
        own = balancer.where(session) if session else None
        slots = balancer.choose() if own is None else own.if_free()
        if slots is not None and self._may_pass(key_id):
            if session and own is None:
                balancer.pin(session, slots)
            return self._lease(slots, key_id)
        self._waiting.add_first(ticket, key_id, own)
        self._wait(own, slots)
        return None

    def _wait(self, own: Slots[E] | None, free: Slots[E] | None) -> None:
        """A request has been queued for *own*, or for any engine, though *free* has free slots."""
        if own is not None:
            self._balancer.wait(own, 1)
        if free is not None and self._is_granting:
            self._freed.append(free)

    def _lease(self, slots: Slots[E], key_id: str) -> SlotLease[E]:
        self._balancer.take(slots)
        self.running += 1
        if self._running_per_key:
            self._running_by_key[key_id] += 1
        return SlotLease(self, slots, key_id)

    def leave(self, ticket: Ticket[E]) -> None:
        """Remove a waiting *ticket* from the queue.

        Raises:
            KeyError: it is not waiting.
        """
        own = self._waiting.remove(ticket)
        if own is not None:
            self._balancer.wait(own, -1)
        if self._per_key:
            self._release(ticket.key_id)

    def depart(self, lease: SlotLease[E]) -> None:
        """See ``SlotLease.depart``."""
        if self._per_key:
            self._release(lease.key_id)

    def release(self, lease: SlotLease[E]) -> None:
        """See ``SlotLease.release``."""
        slots = lease.slots
        self._balancer.release(slots)
        self.running -= 1
        if self._running_per_key:
            _count_down(self._running_by_key, lease.key_id)
        if self._per_key and not lease.has_departed:
            self._release(lease.key_id)
        if self._waiting.size:
            self._freed.append(slots)
            self._grant_freed()

    def grant(self) -> None:
        """Assign free slots to waiting requests; to be called when engines or slots change."""
        if self._waiting.size:
            self._freed += self._balancer.awaited()
            self._grant_freed()

    def _grant_freed(self) -> None:
        # Within `on_slot`, the loop that has called it continues with what has become free:
        # recursion would be as deep as the queue is long.
        if self._is_granting:
            return
        self._is_granting = True
        freed = self._freed
        try:
            while self._waiting.size:
                slots = freed[-1] if freed else self._balancer.choose()
                if slots is not None and self._grant_one(slots):
                    continue
                if not freed:
                    break
                freed.pop()
        finally:
            self._is_granting = False
            freed.clear()

    def _grant_one(self, slots: Slots[E]) -> bool:
        """Assign one of *slots*; False if none is free, or no request may use it."""
        if slots.in_use >= slots.total:
            return False
        balancer = self._balancer
        taken = self._waiting.take(self._may_run, (None, slots, balancer.overloaded()))
        if taken is None:
            return False
        ticket, own = taken
        if own is not None:
            balancer.wait(own, -1)
        session = ticket.session
        # While it waited for any engine, another request of its session may have got one.
        is_moving = own is not slots and (own is not None or balancer.where(session) is None)
        if session and is_moving:
            balancer.pin(session, slots)
        ticket.on_slot(self._lease(slots, ticket.key_id))
        return True

    def _may_pass(self, key_id: str) -> bool:
        """Whether a free slot may go to *key_id* at once, past the requests that wait.

        Those cannot use the slot: it is not their engine's, or their keys are at
        ``running_per_key``. Except while slots are being granted: their turn may be yet to come.
        """
        if self._is_granting and self._waiting.size:
            return False
        return self._may_run(key_id)

    def _may_run(self, key_id: str) -> bool:
        limit = self._running_per_key
        return not limit or self._running_by_key[key_id] < limit

    def _has_share(self, key_id: str) -> bool:
        """Whether *key_id* has its share of the queue; its first request may always wait."""
        waiting = self._waiting.waiting_of(key_id)
        if not waiting:
            return False
        free = self._queue_size - self._waiting.size - 1
        return not is_within_share(waiting + 1, free=free) and self._is_shared()

    def waiting(self) -> list[Ticket[E]]:
        """All waiting requests, in no particular order."""
        return self._waiting.all()

    def _release(self, key_id: str) -> None:
        _count_down(self._held_by_key, key_id)


def _count_down(counter: Counter[str], key_id: str) -> None:
    """Decrement; entries at zero are deleted, so memory is bounded by the keys in use."""
    counter[key_id] -= 1
    if not counter[key_id]:
        del counter[key_id]
