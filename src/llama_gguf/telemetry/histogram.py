"""Histograms of seconds, and their buckets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

# Those of OpenTelemetry's GenAI conventions, extended: prompts on a CPU take longer, and tokens of
# a small model less.
FIRST_BYTE_BUCKETS: Final[tuple[float, ...]] = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 320.0),
)
TOKEN_BUCKETS: Final[tuple[float, ...]] = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 10.0),
)
DURATION_BUCKETS: Final[tuple[float, ...]] = tuple(0.01 * 2**n for n in range(19))


class Histogram:
    """Counts per bucket. ``counts[-1]`` is the number of values above all bounds.

    Args:
        bounds: upper bounds in seconds, ascending.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def copy(self) -> Histogram:
        made = Histogram(self.bounds)
        made.counts, made.sum = [*self.counts], self.sum
        return made

    def observe(self, seconds: Sequence[float]) -> None:
        # Sorted, since a search for each bound costs less than one for each value.
        values = sorted(seconds)
        counts = self.counts
        below = 0
        for bucket, bound in enumerate(self.bounds):
            up_to = bisect_right(values, bound)
            counts[bucket] += up_to - below
            below = up_to
            if below == len(values):
                break
        counts[-1] += len(values) - below
        self.sum += sum(values)


class Histograms(dict[str, Histogram]):
    """By operation; created when it first occurs."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        super().__init__()
        self._bounds = bounds

    def copy(self) -> Histograms:
        made = Histograms(self._bounds)
        made.update({operation: histogram.copy() for operation, histogram in self.items()})
        return made

    def __missing__(self, operation: str) -> Histogram:
        histogram = self[operation] = Histogram(self._bounds)
        return histogram
