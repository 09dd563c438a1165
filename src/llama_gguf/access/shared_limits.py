"""Which windows are shared with other gateways, and what is sent to the store and read from it.

The protocol is this module and ``shared_limits.lua``, which runs in the store; ``share.py`` decides
requests between two calls. Nothing here does I/O or reads a clock; ``gateway/shared_store.py`` does
both.

Rule 1: one call at a time, with a number. A call without a reply is sent again as it was; the
store ignores what it has had already.

Rule 2: names in the store are digests of key ids; amounts are all that is stored.

Rule 3: a store that has lost its data gets, from each gateway, what that knew: the greatest counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container
from typing import Any, Final

from llama_gguf.access.share import Share, StoreState

PREFIX: Final = "llama-gguf:"
GATEWAYS: Final = PREFIX + "gateways"
CHANGED: Final = PREFIX + "changed"
MAX_WINDOWS: Final = 64
"""In one call: some 2 ms of the store's time."""
NEW_PULSES: Final = 3
"""For as many a gateway is new: two seconds, and the pulse at once."""
EVERYTHING: Final = "*"
"""Instead of a window's name: a gateway has come, and all windows are divided again."""
RATE: Final = "requests_per_minute"
RATE_SECONDS: Final = 61
KEPT_SECONDS: Final = 120
"""In the store, a window that slides."""
EXPIRY_SECONDS: Final = {1: 5 * 86_400, 2: 130 * 86_400, 3: 5 * 86_400}
"""In the store, of the windows of a budget by the calendar, by their places."""


def digest_of(key_id: str) -> str:
    """The name of a key in the store."""
    return hashlib.sha256(key_id.encode()).hexdigest()[:32]


def window_name(digest: str, window: str) -> str:
    """The name of a window in the store."""
    return f"{PREFIX}{digest}:{window}"


def digest_in(name: str) -> str:
    """The digest in the name of a window."""
    return name.removeprefix(PREFIX).partition(":")[0]


class Call:
    """A call of the script.

    Args:
        number: of the call.
        shares: whose windows are in it.
        asked: names of those that give something back.
        keys: of the script.
        arguments: of the script.
    """

    def __init__(
        self,
        number: int,
        shares: list[Share],
        asked: frozenset[str],
        keys: list[str],
        arguments: list[str],
    ) -> None:
        self.number = number
        self.shares = shares
        self.asked = asked
        self.keys = keys
        self.arguments = arguments


class SharedLimits:
    """All windows of one gateway.

    Args:
        state: that the shares look at.
        gateway_id: random; of this process.
        channel: on which gateways are asked to give back.
        find: returns whether it has made the share of a window by its name, for a key that has not
            been used here yet.
    """

    def __init__(
        self, state: StoreState, gateway_id: str, channel: str, find: Callable[[str], bool]
    ) -> None:
        self.state = state
        self.channel = channel
        self._id = gateway_id
        self._find = find
        self._shares: dict[str, Share] = {}
        self._number = 0
        self._unanswered: Call | None = None
        self._has_left = False
        self._epoch = ""
        self._since = ""
        self._pulses = True
        self._new_for = 0
        """Pulses."""
        self._unknowing: dict[str, Share] = {}
        """Windows whose counts are to be restored in a store that has lost its data."""
        self._short: dict[str, Share] = {}
        """To be synchronised again soon: others were asked to give back."""
        self.retries = 0
        """In a row, because of short shares."""

    def share(
        self, name: str, *, limit: int, length: int, kept_seconds: int, counts: dict[int, int]
    ) -> Share:
        """A new share of the window *name*; see ``Share``."""
        known = self._shares.get(name)
        share = Share(
            name,
            limit=limit,
            length=length,
            kept_seconds=kept_seconds,
            state=self.state,
            counts=counts,
        )
        if known is not None and not known.limit:  # one that only gave back
            share.held = 0
        self._shares[name] = share
        if counts:
            self._unknowing[name] = share
        self.state.note(share, is_urgent=share.held <= 0)
        return share

    def has(self, name: str) -> bool:
        """Whether the window *name* has a share."""
        return name in self._shares

    def change_limit(self, name: str, limit: int) -> None:
        """Apply another *limit* to the window *name*, also if it is not used here now.

        A share of a higher one would be kept from the other gateways.
        """
        share = self._shares.get(name)
        if share is not None and share.limit not in (0, limit):
            share.change_limit(limit)
            self.state.note(share, is_urgent=False)

    def keep_only(self, digests: Container[str]) -> None:
        """Forget the rates of keys other than those with these *digests*.

        Budgets stay, here and in their ledger: a key that is added again continues.
        """
        for name in [name for name in self._shares if name.endswith(RATE)]:
            if digest_in(name) not in digests:
                del self._shares[name]

    # Out ----------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether there is something to send."""
        return self._unanswered is not None or self._pulses or bool(self.state.dirty)

    def pulse(self) -> None:
        """Every second: show that this gateway lives, find out what has changed elsewhere."""
        self._pulses = True
        state = self.state
        self._new_for -= 1
        state.is_new = self._new_for > 0
        watched, state.watched = state.watched, {}
        state.dirty.update(watched)

    def retry_short(self) -> None:
        """Synchronise what is short again."""
        self.state.dirty.update(self._short)
        self._short = {}

    @property
    def is_short(self) -> bool:
        """Whether ``retry_short`` would do something."""
        return bool(self._short)

    def next_call(self, *, leaves: bool = False) -> Call | None:
        """The call to send now; the last one again, as long as it has no reply.

        Args:
            leaves: whether the gateway does. All calls then have what was used and not yet sent,
                and nothing else; there is at least one.
        """
        if self._unanswered is not None:
            return self._unanswered
        state = self.state
        if leaves:
            state.dirty = {name: share for name, share in state.dirty.items() if share.pending}
            if self._has_left and not state.dirty:
                return None
        elif not self.is_due:
            return None
        names = list(state.dirty)[:MAX_WINDOWS]
        shares = [state.dirty.pop(name) for name in names]
        state.is_urgent = False
        asked = frozenset(share.name for share in shares if share.gives_back)
        self._number += 1
        wants_changes, self._pulses = self._pulses, False
        arguments = [
            self._id,
            str(self._number),
            f"{self._id}-{self._number}",
            self.channel,
            (self._since or "0") if wants_changes else "",
            "1" if leaves else "0",
            *(self._window(share) for share in shares),
        ]
        keys = [GATEWAYS, CHANGED, *names]
        self._unanswered = Call(self._number, shares, asked, keys, arguments)
        return self._unanswered

    def _window(self, share: Share) -> str:
        gives_back = int(share.gives_back)
        keep = share.begin()
        restored = share.counts if self._unknowing.pop(share.name, None) else {}
        return json.dumps(
            [
                share.limit,
                share.length,
                share.period,
                share.kept_seconds,
                keep,
                gives_back,
                _flat(share.sent),
                _flat({at: n - share.sent.get(at, 0) for at, n in restored.items()}),
            ],
            separators=(",", ":"),
        )

    def on_left(self) -> None:
        """The store has had a call of this gateway, which leaves: the reply does not matter."""
        self._unanswered = None
        self._has_left = True

    # In -----------------------------------------------------------------------------------------

    def on_reply(self, call: Call, reply: list[Any], sent_at: float, received_at: float) -> None:
        """Take over the store's reply to *call*.

        Args:
            call: that ``next_call`` returned.
            reply: of the script.
            sent_at: on the gateway's clock.
            received_at: on it, too.
        """
        state = self.state
        self._unanswered = None
        moment, epoch, joined, gateways, changes, *windows = reply
        server = int(moment) / 1000
        if abs(server - (received_at + state.offset)) > received_at - sent_at + 0.01:
            state.offset = server - (sent_at + received_at) / 2
        has_lost = epoch.decode() != self._epoch
        if joined or has_lost:
            self._restart(gateways, has_lost=has_lost)
            self._epoch = epoch.decode()
        state.is_up = True
        for share, (held, known) in zip(call.shares, windows, strict=True):
            share.apply(held, known, has_lost=has_lost)
            self._look(share, was_asked=share.name in call.asked)
        self.retries = self.retries + 1 if self._short else 0
        if gateways != state.gateways:
            state.gateways = gateways
            self._divide_again()
        for name in changes:
            self._on_changed(name.decode())
        if has_lost:
            self._since = ""  # its clock may be behind that of the lost one
        elif call.arguments[4]:
            # A little earlier: other calls may have the same millisecond.
            self._since = str(int(moment) - 10)

    def _look(self, share: Share, *, was_asked: bool) -> None:
        """Whether *share* is to be synchronised again without having been used."""
        if share.limit and share.is_short() and not was_asked:
            self._short[share.name] = share
        else:
            self._short.pop(share.name, None)
        if share.may_grow():
            self.state.watched[share.name] = share

    def _restart(self, gateways: int, *, has_lost: bool) -> None:
        """The store does not know this gateway, or nothing at all: no earlier share counts."""
        is_first = not self._epoch
        self.state.is_new, self._new_for = True, NEW_PULSES
        for share in self._shares.values():
            if is_first:
                share.held = min(share.held, share.limit // gateways)
            else:
                share.held = min(share.held, 0)
                share.give_credit()
            self.state.watched[share.name] = share
            if has_lost and share.counts:
                self._unknowing[share.name] = share
        self.pulse()

    def _divide_again(self) -> None:
        """A gateway has come or gone: no share is larger than its part."""
        for share in self._shares.values():
            if share.held > share.limit // self.state.gateways:
                share.gives_back = True
                self.state.dirty[share.name] = share

    def _on_changed(self, name: str) -> None:
        """Another gateway may have used the window *name*."""
        share = self._shares.get(name)
        if share is not None or self._find(name):
            self.state.watched[name] = share or self._shares[name]

    def on_recall(self, name: str) -> None:
        """Another gateway needs what is not used of this gateway's share."""
        if name == EVERYTHING:
            self._pulses = self.state.is_urgent = True
            self.state.wake()
            return
        if not name.startswith(PREFIX):
            return  # of another program
        share = self._shares.get(name)
        if share is None:
            if self._find(name):
                share = self._shares[name]
            else:  # of a key that is not known here: it is not used, either
                share = self.share(
                    name, limit=0, length=RATE_SECONDS, kept_seconds=KEPT_SECONDS, counts={}
                )
        share.gives_back = True
        self.state.dirty.pop(name, None)
        self.state.note(share, is_urgent=True)

    def on_lost(self) -> None:
        """The store cannot be reached: SHARED_LIMITS_OUTAGE decides."""
        self.state.is_up = False
        self._short = {}


def _flat(by_period: dict[int, int]) -> list[int]:
    return [number for pair in by_period.items() if pair[1] for number in pair]
