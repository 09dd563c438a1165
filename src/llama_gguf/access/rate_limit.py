"""Rate limits: the interface ``RateLimiter``, and sliding windows that count in this process.

Nothing here reads a clock or sleeps: the caller passes ``now``, in seconds on
a monotonic clock (``loop.time()``, never ``time.time()``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

REFUSED: Final = -1


class RateLimiter:
    """Admits at most *limit* requests of one key in any *window* seconds.

    No call waits: a limiter whose counts several gateways share decides by what it has leased, and
    renews its lease at another time. This is a base class, not a ``typing.Protocol``, through which
    mypyc would call the interpreter for each request.

    Args:
        limit: may be changed at any time; requests that were admitted before still count.
        window: seconds.
    """

    __slots__ = ("limit", "window")

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window

    def hit(self, now: float) -> int:
        """Decide one request that arrived at *now*, and count it if it is admitted.

        Returns:
            How many more would be admitted; REFUSED if this one is not. A
            number and not an object, since this runs once per request.
        """
        raise NotImplementedError

    def take_back(self, hit_at: float) -> None:
        """Undo the hit at *hit_at*, of a request that was rejected for another reason."""
        raise NotImplementedError

    def remaining(self, now: float) -> int:
        """How many requests would be admitted at *now*."""
        raise NotImplementedError

    def reset(self, now: float) -> float:
        """Seconds until no request counts any more; the whole window directly after a hit."""
        raise NotImplementedError

    def retry_after(self, now: float) -> float:
        """Seconds until a request would be admitted: 0.0 if one would be at *now*."""
        raise NotImplementedError


NewLimiter = Callable[[str, int], RateLimiter]
"""Makes the limiter of a key, from its id and its limit per minute."""


class SlidingWindow(RateLimiter):
    """Counts in this process.

    Exact, at the cost of one float per admitted request: memory is bounded by
    *limit*, and a call's work by the number of requests that have left the window.

    Raises:
        ValueError: *limit* is below 1, or *window* is not above 0.
    """

    __slots__ = ("_admitted",)

    def __init__(self, *, limit: int, window: float = 60.0) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if window <= 0:
            raise ValueError(f"window must be above 0 seconds, not {window}")
        super().__init__(limit, window)
        self._admitted: deque[float] = deque()

    def hit(self, now: float) -> int:
        """As ``RateLimiter.hit``.

        A refused request is not counted, so a client that keeps retrying is
        admitted as soon as its oldest admitted request leaves the window.
        """
        admitted = self._admitted
        horizon = now - self.window
        if admitted and admitted[0] <= horizon:
            self._forget(horizon)
        remaining = self.limit - len(admitted) - 1
        if remaining < 0:
            return REFUSED
        admitted.append(now)
        return remaining

    def retry_after(self, now: float) -> float:
        admitted = self._admitted
        horizon = now - self.window
        self._forget(horizon)
        if len(admitted) < self.limit:
            return 0.0
        # After the limit was lowered, the window may hold more than the limit: all but the newest
        # limit - 1 have to leave it. `max`, since rounding can make the difference zero.
        return max(admitted[len(admitted) - self.limit] - horizon, 1e-9)

    def remaining(self, now: float) -> int:
        self._forget(now - self.window)
        return max(self.limit - len(self._admitted), 0)

    def take_back(self, hit_at: float) -> None:
        with suppress(ValueError):  # it has left the window already
            self._admitted.remove(hit_at)

    def _forget(self, horizon: float) -> None:
        admitted = self._admitted
        while admitted and admitted[0] <= horizon:
            admitted.popleft()

    def reset(self, now: float) -> float:
        return max(self._admitted[-1] + self.window - now, 0.0) if self._admitted else 0.0


def local_limiter(_key_id: str, limit: int) -> RateLimiter:
    """A limiter that counts the requests to this gateway alone."""
    return SlidingWindow(limit=limit)


def network_of(address: str) -> str:
    """The unit that failures are counted by: an IPv4 address, or a /64 of IPv6.

    One IPv6 host commonly has a /64 to itself, and could send each request from a new address.
    Anything that is not an IPv6 address is returned unchanged.
    """
    if ":" not in address:
        return address
    from ipaddress import IPv6Address, IPv6Network  # noqa: PLC0415  # of few clients

    parsed = IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed) >> 64 << 64, 64)))


class FailureLimit:
    """Limits the invalid keys that an address may send.

    Memory is bounded: when the table is full, its oldest entry is removed.

    Args:
        per_minute: invalid keys in any 60 seconds; 0 = no limit.
    """

    MAX_ADDRESSES = 10_000

    def __init__(self, *, per_minute: int) -> None:
        self._per_minute = per_minute
        self.addresses: dict[str, SlidingWindow] = {}
        """Those that have recently sent an invalid key."""

    def retry_after(self, address: str, now: float) -> float:
        """Seconds until a key from *address* is checked again; 0.0 if it is not over the limit."""
        window = self.addresses.get(address)
        if window is None:
            return 0.0
        if not window.reset(now):
            del self.addresses[address]  # none of its failures counts any more
        return window.retry_after(now)

    def failed(self, address: str, now: float) -> None:
        """Count an invalid key from *address*."""
        if not self._per_minute:
            return
        window = self.addresses.get(address)
        if window is None:
            if len(self.addresses) >= self.MAX_ADDRESSES:
                del self.addresses[next(iter(self.addresses))]
            window = self.addresses[address] = SlidingWindow(limit=self._per_minute)
        window.hit(now)
