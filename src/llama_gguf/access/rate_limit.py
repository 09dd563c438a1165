"""Sliding-window rate limits.

Nothing here reads a clock or sleeps: the caller passes ``now``, in seconds on
any clock that never runs backwards (``loop.time()``, never ``time.time()``).
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network
from typing import Final

REFUSED: Final = -1


class SlidingWindow:
    """Admit at most *limit* requests in any *window* seconds.

    Exact, at the price of one float per admitted request: memory is bounded
    by *limit*, and the work by the number of requests that left the window.

    Raises:
        ValueError: *limit* is below 1, or *window* is not above 0.
    """

    __slots__ = ("_admitted", "limit", "window")

    def __init__(self, *, limit: int, window: float = 60.0) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if window <= 0:
            raise ValueError(f"window must be above 0 seconds, not {window}")
        self.limit = limit
        self.window = window
        self._admitted: deque[float] = deque()

    def hit(self, now: float) -> int:
        """Decide one request that arrived at *now*.

        Returns:
            How many more would be admitted; REFUSED when this one is not. A
            number and not an object, since this runs once per request.

        A refused request leaves no trace, so a client that keeps knocking is
        let in as soon as its oldest admitted request leaves the window.
        """
        admitted = self._admitted
        horizon = now - self.window
        if admitted and admitted[0] <= horizon:
            self._forget(horizon)
        left = self.limit - len(admitted) - 1
        if left < 0:
            return REFUSED
        admitted.append(now)
        return left

    def retry_after(self, now: float) -> float:
        """Seconds until a request would be admitted: 0.0 when one would be at *now*."""
        admitted = self._admitted
        horizon = now - self.window
        self._forget(horizon)
        if len(admitted) < self.limit:
            return 0.0
        # A lowered limit may leave more in the window than it allows: all but the newest
        # limit - 1 have to leave. The result is above zero but for rounding.
        return max(admitted[len(admitted) - self.limit] - horizon, 1e-9)

    def remaining(self, now: float) -> int:
        """How many requests would be admitted at *now*."""
        self._forget(now - self.window)
        return max(self.limit - len(self._admitted), 0)

    def take_back(self, hit_at: float) -> None:
        """Undo a hit at *hit_at*: the request was refused for another reason, and costs nothing."""
        with suppress(ValueError):  # it has left the window by itself
            self._admitted.remove(hit_at)

    def _forget(self, horizon: float) -> None:
        admitted = self._admitted
        while admitted and admitted[0] <= horizon:
            admitted.popleft()

    def reset(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        return max(self._admitted[-1] + self.window - now, 0.0) if self._admitted else 0.0


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the first 64 bits, since anybody has as many as that.

    An address that is no IPv6 address is returned as it is.
    """
    if ":" not in address:
        return address
    parsed = IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed) >> 64 << 64, 64)))


class FailureLimit:
    """How many wrong keys an address may try in a minute.

    Memory is bounded whatever is thrown at it: when the table is full, the address
    that was seen first is forgotten.

    Args:
        per_minute: wrong keys in any 60 seconds; 0 = any number.
    """

    MAX_ADDRESSES = 10_000

    def __init__(self, *, per_minute: int) -> None:
        self._per_minute = per_minute
        self.addresses: dict[str, SlidingWindow] = {}
        """Those that have tried a wrong key, as far as is remembered."""

    def retry_after(self, address: str, now: float) -> float:
        """Seconds that *address* has to wait before its key is looked at; 0.0 for most."""
        window = self.addresses.get(address)
        if window is None:
            return 0.0
        if not window.reset(now):
            del self.addresses[address]  # forgiven
        return window.retry_after(now)

    def failed(self, address: str, now: float) -> None:
        """Count a wrong key from *address*."""
        if not self._per_minute:
            return
        window = self.addresses.get(address)
        if window is None:
            if len(self.addresses) >= self.MAX_ADDRESSES:
                del self.addresses[next(iter(self.addresses))]
            window = self.addresses[address] = SlidingWindow(limit=self._per_minute)
        window.hit(now)
