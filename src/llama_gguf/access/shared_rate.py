"""A rate that several gateways share: the same window as the local one, by whole seconds.

A request counts for the second in which it arrived, and 60 seconds more: never more requests pass
than in the local window, and a limited client waits up to a second longer. Seconds are those of the
store's clock, so that all gateways mean the same.
"""

from __future__ import annotations

from llama_gguf.access.rate_limit import REFUSED, RateLimiter
from llama_gguf.access.share import OPEN, Share

SHORTEST_WAIT = 1.0
"""Seconds: for a request that is refused only because this gateway's share is used up."""


class SharedRate(RateLimiter):
    """As ``RateLimiter``; decides by this gateway's share.

    Args:
        limit: of all gateways together.
        share: of the window; slides by one second more than *window*.
        window: seconds.
    """

    __slots__ = ("_second", "_used", "share")

    def __init__(self, limit: int, share: Share, window: float = 60.0) -> None:
        super().__init__(limit, window)
        self.share = share
        self._second = 0
        self._used = 0
        """In the window that ends with ``_second``."""
        share.on_applied = self.forget

    def hit(self, now: float) -> int:
        """As ``RateLimiter.hit``."""
        share = self.share
        second = int(now + share.state.offset)
        used = self._used_at(second)
        if share.limit != self.limit:
            share.change_limit(self.limit)
        if (used >= self.limit or share.held <= 0 or not share.state.is_up) and not share.admits(
            used, second - share.length + 1
        ):
            return REFUSED
        share.counts[second] = share.counts.get(second, 0) + 1
        self._used = used + 1
        share.add(second, 1)
        return max(self.limit - self._used, 0)

    def take_back(self, hit_at: float) -> None:
        """As ``RateLimiter.take_back``."""
        share = self.share
        second = int(hit_at + share.state.offset)
        if share.counts.get(second, 0) > 0:
            share.counts[second] -= 1
            self._second = 0
            share.add(second, -1)

    def remaining(self, now: float) -> int:
        """As ``RateLimiter.remaining``; the other gateways' requests as far as they are known."""
        return max(self.limit - self._used_at(int(now + self.share.state.offset)), 0)

    def reset(self, now: float) -> float:
        """As ``RateLimiter.reset``."""
        at = now + self.share.state.offset
        self._used_at(int(at))
        used = [second for second, n in self.share.counts.items() if n]
        return min(max(max(used) + self.share.length - at, 0.0), self.window) if used else 0.0

    def retry_after(self, now: float) -> float:
        """As ``RateLimiter.retry_after``."""
        at = now + self.share.state.offset
        used = self._used_at(int(at))
        if used < self.limit:
            state = self.share.state
            is_open = not state.is_up and state.outage == OPEN
            return 0.0 if self.share.held > 0 or is_open else SHORTEST_WAIT
        counts = self.share.counts
        for second in sorted(counts):
            used -= counts[second]
            if used < self.limit:
                return max(second + self.share.length - at, 1e-9)
        raise AssertionError("unreachable: without its seconds, a window has nothing")

    def forget(self) -> None:
        """The counts have changed: add them up when they are needed."""
        self._second = 0

    def _used_at(self, second: int) -> int:
        if second != self._second:
            counts, length = self.share.counts, self.share.length
            for old in [at for at in counts if not second - length < at <= second]:
                number = counts.pop(old)
                if old > second:  # by a clock that was ahead
                    counts[second] = counts.get(second, 0) + number
            self._second = second
            self._used = sum(counts.values())
        return self._used
