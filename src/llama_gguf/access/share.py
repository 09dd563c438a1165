"""What one gateway may use of a window before it has synchronised with the others.

Several gateways share a window through a store (``shared_limits.py``). No request waits for it: a
gateway holds a *share*, which it uses without a call, and which is renewed as soon as something of
it is used. Shares and what is used are never more than the limit together, so that no order of
calls admits more; a window that the store does not know yet is divided by the number of gateways.

Nothing here reads a clock. Amounts are requests, tokens or milliseconds of the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

LOCAL: Final = 0
OPEN: Final = 1
CLOSED: Final = 2
OUTAGE_POLICIES: Final = {"local": LOCAL, "open": OPEN, "closed": CLOSED}
"""SHARED_LIMITS_OUTAGE: what decides while the store cannot be reached."""
CREDIT_PART: Final = 20
"""Of a limit: what a new gateway may admit beyond it. Two of them admit a tenth at most."""
MAX_PENDING: Final = 128
"""Periods of a window that slides; it has 61 at most."""


class StoreState:
    """What all windows need to know of the store. Read for each request, hence so plain.

    Args:
        outage: one of ``OUTAGE_POLICIES``.
        offset: of the server's clock from the gateway's, in seconds.
    """

    __slots__ = (
        "dirty",
        "gateways",
        "is_new",
        "is_up",
        "is_urgent",
        "local_decisions",
        "offset",
        "outage",
        "wake",
        "watched",
    )

    def __init__(self, outage: int, offset: float) -> None:
        self.outage = outage
        self.offset = offset
        self.is_up = False
        self.is_new = False
        """Whether the store has known this gateway for less than two seconds."""
        self.gateways = 1
        """That share the windows, this one included."""
        self.dirty: dict[str, Share] = {}
        """By name, the windows to synchronise next."""
        self.watched: dict[str, Share] = {}
        """By name, those to synchronise within a second: others may have changed them."""
        self.is_urgent = False
        """Whether one of them cannot wait, because its share is used up."""
        self.local_decisions = 0
        """Made while the store could not be reached."""
        self.wake: Callable[[], None] = _nothing
        """Called when a call is due: a window became dirty, or it became urgent."""

    def note(self, share: Share, *, is_urgent: bool) -> None:
        """Synchronise *share* soon, or at once."""
        if share.name not in self.dirty or (is_urgent and not self.is_urgent):
            self.dirty[share.name] = share
            self.is_urgent = self.is_urgent or is_urgent
            self.wake()


def _nothing() -> None:
    pass


class Share:
    """One gateway's part of one window.

    Args:
        name: of the window in the store.
        limit: of the window, of all gateways together.
        length: seconds that it slides by; 0 for one of the calendar.
        kept_seconds: in the store, after the last change.
        state: of the store.
        counts: by period, what all gateways have used as far as it is known. Its owner adds to it
            what is used here, and ``apply`` replaces its content.
    """

    __slots__ = (
        "counts",
        "credit",
        "credited",
        "gives_back",
        "held",
        "kept_seconds",
        "length",
        "limit",
        "name",
        "on_applied",
        "pending",
        "period",
        "sent",
        "state",
    )

    def __init__(
        self,
        name: str,
        *,
        limit: int,
        length: int,
        kept_seconds: int,
        state: StoreState,
        counts: dict[int, int],
    ) -> None:
        self.name = name
        self.kept_seconds = kept_seconds
        self.limit = limit
        self.length = length
        self.state = state
        self.counts = counts
        self.period = 0
        """Of the calendar: the present one."""
        self.held = max(limit // state.gateways, 1)
        """May be used before the next reply. Negative after a request that cost more than was left:
        a window admits its limit and one estimate of each gateway."""
        self.pending: dict[int, int] = {}
        """By period, used here and not yet sent; may be negative."""
        self.sent: dict[int, int] = {}
        """By period, in the call that has no reply yet."""
        self.credit = 0
        """May be used beyond the share while the gateway is new, until the others give back."""
        self.credited = False
        self.gives_back = False
        """Whether another gateway needs what is not used of this share."""
        self.on_applied: Callable[[], None] = _nothing

    def change_limit(self, limit: int) -> None:
        """Apply another *limit*; what was used still counts."""
        self.limit = limit
        self.held = min(self.held, (limit - self.used()) // self.state.gateways)

    def add(self, period: int, amount: int) -> None:
        """Count what was used here; negative if it is given back."""
        pending = self.pending
        pending[period] = pending.get(period, 0) + amount
        if len(pending) > MAX_PENDING and self.length:  # the store cannot be reached
            self.pending = {at: n for at, n in pending.items() if at > period - self.length}
        if self.held <= 0:
            self.credit -= amount
        self.held -= amount
        self.state.note(self, is_urgent=self.held < amount)

    def admits(self, used: int, oldest: int) -> bool:
        """Whether a request is admitted in which *used* of the limit is used, as far as is known.

        1. The store is up: while something of the share is left.
        2. This gateway is new to the store, and the others hold all shares: a little, once.
        3. It is not up: by SHARED_LIMITS_OUTAGE. ``local``: this gateway's part of what was left
           when the store was last reached.

        Args:
            used: in the window.
            oldest: period that still counts.
        """
        state = self.state
        if state.is_up:
            if used < self.limit and self.held > 0:  # 1
                return True
            state.watched[self.name] = self
            if used >= self.limit:
                return False
            state.note(self, is_urgent=True)
            return state.is_new and self.credit > 0  # 2
        state.local_decisions += 1  # 3
        if state.outage != LOCAL:
            return state.outage == OPEN
        unreported = self.unreported(oldest)
        part = max((self.limit - used + unreported) // state.gateways, 1)
        return used < self.limit and unreported < part

    def give_credit(self) -> None:
        """The gateway is new to the store, and the others hold its share."""
        self.credit = max(self.limit // CREDIT_PART, 1)
        self.credited = True

    def unreported(self, oldest: int) -> int:
        """Used here since the last reply, from period *oldest* on."""
        return sum(n for at, n in self.sent.items() if at >= oldest) + sum(
            n for at, n in self.pending.items() if at >= oldest
        )

    def used(self) -> int:
        """In the window, as the last reply had it."""
        return sum(self.counts.values()) if self.length else self.counts.get(self.period, 0)

    def is_short(self) -> bool:
        """Whether the share is much smaller than this gateway's part of what is left."""
        left = self.limit - self.used()
        return left > 0 and self.held * 2 < max(left // self.state.gateways, 1)

    def may_grow(self) -> bool:
        """Whether the share will be larger without anything else than time."""
        if not self.length:
            return self.is_short()
        return self.held * 2 < max(self.limit // self.state.gateways, 1) and self.limit > 0

    def begin(self) -> int:
        """Prepare a call: everything pending is sent with it.

        Returns:
            What is kept of the share until its reply.
        """
        self.held = max(self.held // 2 if self.gives_back else self.held, 0)
        self.gives_back = False
        self.sent, self.pending = self.pending, {}
        return self.held

    def apply(self, held: int, known: list[int], *, has_lost: bool = False) -> None:
        """Take over the reply to the call that ``begin`` has prepared.

        Args:
            held: the new share.
            known: period, amount, period, amount and so on, with what was sent.
            has_lost: whether the store knows less than this gateway.
        """
        counts = self.counts
        if not has_lost:
            counts.clear()
        for place in range(0, len(known), 2):
            period, amount = known[place], known[place + 1]
            counts[period] = max(amount, counts.get(period, 0))
        if not has_lost:
            for period, amount in self.pending.items():
                counts[period] = max(counts.get(period, 0) + amount, 0)
        self.sent = {}
        self.held = held - sum(self.pending.values())
        if not self.is_short():
            self.credit = 0
        elif self.state.is_new and not self.credited and self.used() * 2 < self.limit:
            self.give_credit()  # later, others have used it, and do not only hold it
        self.on_applied()
